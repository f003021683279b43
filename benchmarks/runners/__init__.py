"""One program each, driven line by line by ``benchmarks.compare``.

What is here runs in the environment of the program it drives: it imports nothing else.
"""
