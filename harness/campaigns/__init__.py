"""Campaigns: thousands of hostile inputs, too long for the tests, which run a small part of each.

Each is a module that runs by itself and lists its findings; an input is the same again from a seed
and a number.
"""
