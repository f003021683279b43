"""Packed weights at work: C for the processor, where it was built."""
