"""Fuzzing: hostile inputs for every parser, reproducible from a seed and a number.

``python -m tests.fuzz --help`` runs campaigns of any length.
"""
