"""One writer per checkpoint format; each takes any ``Checkpoint``."""
