"""Text to ids, and ids back to text as they arrive."""
