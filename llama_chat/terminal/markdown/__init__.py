"""Streaming Markdown for the terminal: written text is never redrawn.

``stream.py`` processes the lines: ``line_starts.py`` recognises the kind of each, ``table.py`` and
``highlighting.py`` format tables and code. ``inline.py`` splits prose into pieces that later text
cannot change, and ``parsing.py`` parses these with markdown-it. The results are spans, which
``painting.py`` sanitizes and colours. ``resumed.py`` goes on after a text that was cut.
"""

from llama_chat.terminal.markdown.painting import Painter
from llama_chat.terminal.markdown.resumed import ResumedStream
from llama_chat.terminal.markdown.stream import MarkdownStream

__all__ = ["MarkdownStream", "Painter", "ResumedStream"]
