"""Drives the program as a person's shell and terminal do: for tests, benchmarks and pictures."""
