"""Packed weights: their layouts, quantization, and matrix products."""
