"""Models on servers that speak in the style of OpenAI: addresses, requests, and their answers.

A server is as hostile as a model file: every length, number and text of it is checked or bounded,
and the key for it is sent to its own address alone.
"""
