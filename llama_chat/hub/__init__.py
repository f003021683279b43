"""Download of models from a Hugging Face hub into our own folder.

Files are listed through ``huggingface_hub``, so that its endpoint, token and proxy settings apply.
Their bytes are downloaded here, since that library restarts an interrupted file from its beginning,
and model files are too large for that. They go into our own folder, not into the cache of that
library, as plain files that get their names only once they are complete and verified.
"""
