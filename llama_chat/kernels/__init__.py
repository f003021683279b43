"""C kernels for packed weights, and their Python bindings."""
