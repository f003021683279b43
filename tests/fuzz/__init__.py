"""Fuzzing: hostile inputs for every parser, each the same again from a seed and a number.

``python -m tests.fuzz --help`` runs campaigns of any length.
"""
