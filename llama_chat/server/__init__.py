"""The warm server: HTTP on a socket, in front of the scheduler."""
