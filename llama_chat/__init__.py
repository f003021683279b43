"""llama-chat: talk with a Llama-2 model in the terminal."""

__version__ = "0.1.0"
