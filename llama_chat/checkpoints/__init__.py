"""One reader per checkpoint format, all returning a ``Checkpoint``."""
