"""Runners of one program each, which ``benchmarks.programs`` starts.

A runner runs in the Python environment of its program, and imports only what that has.
"""
