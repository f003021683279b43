"""Campaigns: thousands of hostile inputs, each the same again from a seed and a number."""
