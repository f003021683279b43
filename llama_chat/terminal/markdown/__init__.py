"""Markdown for the terminal, as it streams: nothing that was written is ever touched again.

``stream.py`` follows the lines: ``line_starts.py`` tells what kind each is, ``table.py`` and
``highlighting.py`` do tables and code. Prose goes through ``inline.py``, which finds where a piece
of it is certain, and ``parsing.py``, which has it parsed by markdown-it. All of it becomes spans,
which ``painting.py`` makes harmless and gives their colours.
"""

from llama_chat.terminal.markdown.painting import Painter
from llama_chat.terminal.markdown.stream import MarkdownStream

__all__ = ["MarkdownStream", "Painter"]
