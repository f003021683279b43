"""Echo of messages that are too long to show whole."""

from llama_chat.errors import counted

_LINES_MAX = 20
_FIRST_MAX = 200


def is_long(text: str) -> bool:
    """True if ``text`` is echoed by its first line and its size."""
    return text.count("\n") >= _LINES_MAX


def shortened(text: str) -> str:
    """Return ``text``, or its first line and its size if it is long."""
    if not is_long(text):
        return text
    first = text.lstrip("\n").partition("\n")[0]
    n_lines = text.count("\n") + 1
    return f"{first[:_FIRST_MAX]} … ({counted(n_lines, 'line')}, {len(text):,} characters)"
