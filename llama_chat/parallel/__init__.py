"""One model on several devices: its division among ranks, and how these work together."""
