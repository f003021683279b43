"""Models on OpenAI-compatible servers: addresses, requests, and their answers.

A server is as hostile as a model file: every length, number and text that it sends is checked or
bounded, and its key is sent to its own address only.
"""
