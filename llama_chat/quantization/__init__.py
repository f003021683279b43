"""Packed weights: their layouts, quantization, and products with them."""
