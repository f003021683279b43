"""Drive the program as a user's shell and terminal do, for tests, benchmarks and pictures."""
