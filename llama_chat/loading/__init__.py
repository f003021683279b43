"""From a path or a name to a loaded model."""
