"""Times and sizes on the command line."""

from llama_chat.errors import UsageError
from llama_chat.settings.setting import bytes_of, seconds_of


def seconds(text: str, what: str) -> float:
    """Parse a time such as ``90s``; see ``seconds_of``.

    Raises:
        UsageError: about ``what``, if it is not a valid time.
    """
    found = seconds_of(text)
    if found is None:
        raise UsageError(f"{what} {text!r}", "not a time", "write 90s, 10m or 1h")
    return found


def n_bytes(text: str, what: str) -> int:
    """Parse a size such as ``512M`` or ``2.5G``; see ``bytes_of``.

    Raises:
        UsageError: about ``what``, if it is not a valid size.
    """
    found = bytes_of(text)
    if not found:
        raise UsageError(f"{what} {text!r}", "not a size", "write 512M or 2G")
    return found
