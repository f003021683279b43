"""Campaigns: thousands of hostile inputs, too long for the tests, which run a small part of each.

Each is a module that is run by itself and lists its findings. A seed and a number reproduce an
input.
"""
