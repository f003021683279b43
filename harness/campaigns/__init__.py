"""Campaigns: attacks on the program by thousands of hostile inputs, too long for the tests.

Each is a module that runs by itself, and lists its findings; the tests run a small part of each.
"""
