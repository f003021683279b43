"""Times and sizes on the command line."""

import re

from llama_chat.errors import UsageError
from llama_chat.settings.setting import bytes_of

_UNITS = {"s": 1, "m": 60, "h": 3600, "": 1}


def seconds(text: str, what: str) -> float:
    """Parse a time such as ``10``, ``90s``, ``10m`` or ``1h``.

    Raises:
        UsageError: about ``what``, if it is none.
    """
    found = re.fullmatch(r"(\d{1,9}(?:\.\d+)?) *([smh]?)", text.strip())
    if found is None:
        raise UsageError(f"{what} {text!r}", "not a time", "write 90s, 10m or 1h")
    return float(found[1]) * _UNITS[found[2]]


def n_bytes(text: str, what: str) -> int:
    """Parse a size such as ``512M`` or ``2.5G``; see ``bytes_of``.

    Raises:
        UsageError: about ``what``, if it is none.
    """
    found = bytes_of(text)
    if not found:
        raise UsageError(f"{what} {text!r}", "not a size", "write 512M or 2G")
    return found
