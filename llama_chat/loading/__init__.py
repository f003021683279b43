"""Loading of a model by path or name."""
