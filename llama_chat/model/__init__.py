"""The LLaMA 2 architecture."""
