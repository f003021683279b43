"""The LLaMA 2 architecture and nothing else."""
