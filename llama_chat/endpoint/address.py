"""Addresses of servers, and the keys for them."""

import ipaddress
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

from llama_chat.errors import UsageError
from llama_chat.files import expand_user, read_text
from llama_chat.settings.settings import Settings

KEY_VARIABLE = "LLAMA_CHAT_API_KEY"
"""Variable with the key; it is no setting, so that nothing lists it."""

_ADVICE = "give http://HOST:PORT, https://HOST or unix:PATH"

_MAX_KEY_BYTES = 2**14


@dataclass(frozen=True, slots=True)
class Address:
    """Address of a server."""

    url: str
    """Beginning of the URLs of all routes, without a slash at its end."""
    socket: str | None = None
    """Path of its Unix socket; None for a port."""

    @property
    def title(self) -> str:
        """Address as a user writes it."""
        return self.url if self.socket is None else f"unix:{self.socket}"

    @property
    def what(self) -> str:
        """Name in error messages."""
        return f"endpoint {self.title!r}"

    @property
    def host(self) -> str:
        """Name or number of the machine."""
        return urlsplit(self.url).hostname or ""

    @property
    def is_encrypted(self) -> bool:
        """True if others cannot read what is sent."""
        return self.url.startswith("https:")

    @property
    def is_here(self) -> bool:
        """True if nothing leaves this machine."""
        if self.socket is not None or self.host == "localhost":
            return True
        with suppress(ValueError):
            return ipaddress.ip_address(self.host).is_loopback
        return False


def parse_address(text: str) -> Address:
    """Parse an address; ``/v1`` is appended to one without a path.

    Raises:
        UsageError: if it is not a valid address, or has a name, a password or a query in it.
    """
    if text.startswith("unix:") and len(text) > 5 and text.isprintable():
        return Address("http://localhost/v1", str(expand_user(text[5:]).absolute()))
    # With an @ it may hold a password.
    what = "endpoint" if "@" in text else f"endpoint {text[:60]!r}"
    if not re.fullmatch(r"[!-~]+", text):
        raise UsageError(what, "a character of it is in no URL", _ADVICE)
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise UsageError(what, "not a URL", _ADVICE) from None
    if parts.scheme not in ("http", "https") or not host:
        raise UsageError(what, "not a URL of a server", _ADVICE)
    place = f"[{host}]" if ":" in host else host
    place += f":{port}" if port is not None else ""
    what = f"endpoint {f'{parts.scheme}://{place}'!r}"
    if "@" in parts.netloc:
        why = "its URL has a name or a password"
        raise UsageError(what, why, f"leave it out, and set {KEY_VARIABLE}")
    if parts.query or parts.fragment or "?" in text or "#" in text:
        raise UsageError(what, "its URL has a query or a fragment", "leave it out")
    return Address(f"{parts.scheme}://{place}{parts.path.rstrip('/') or '/v1'}")


def read_key(settings: Settings, environment: Mapping[str, str] | None = None) -> str | None:
    """Return the key for the server: that of the environment, else that of a file; None for none.

    Raises:
        UsageError: if the file cannot be read, or the key cannot be sent.
    """
    environment = os.environ if environment is None else environment
    where, key = KEY_VARIABLE, environment.get(KEY_VARIABLE)
    if key is None and settings.api_key_file is not None:
        path = expand_user(settings.api_key_file)
        where = f"key file {str(path)!r}"
        key = read_text(path, where, "name a file that holds the key", _MAX_KEY_BYTES)
    return parse_key(key or "", where) or None


def parse_key(text: str, where: str) -> str:
    """Return a key without the white space around it.

    Raises:
        UsageError: about ``where``, if it cannot be sent.
    """
    key = text.strip()
    if not re.fullmatch(r"[!-~]*", key):
        raise UsageError(where, "a character of the key cannot be sent", "give the key alone")
    return key
