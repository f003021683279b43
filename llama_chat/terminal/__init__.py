"""The terminal: streams, drawing and the interactive chat."""
