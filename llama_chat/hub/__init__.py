"""Fetching models from a Hugging Face hub into our own folder.

Which files there are, and where, is asked through ``huggingface_hub``, so that its endpoint, token
and proxy settings apply. The bytes are fetched here: that library begins a file anew each time, and
a model is too large for that. They go into our own folder, not into the cache of that library, as
plain files that have their names only once they are whole and verified.
"""
