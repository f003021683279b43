"""Writers of checkpoint formats, each for any ``Checkpoint``."""
