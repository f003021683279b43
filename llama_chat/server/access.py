"""Rules about who may use the port of the server."""

import re
from dataclasses import dataclass

from llama_chat.errors import UsageError

_ORIGIN = r"([a-z][a-z0-9+.-]*)://([a-z0-9._~-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?"

_USUAL_PORTS = {"http": ":80", "https": ":443"}
"""Ports that no browser writes."""


@dataclass(frozen=True, slots=True)
class AccessRules:
    """Requirements on requests over TCP; those through the socket file have none."""

    hosts: frozenset[str] | None
    """Names in ``Host``, without ports: a page of another name must not reach the server through a
    name of its own that resolves to this machine (DNS rebinding). None for any name, where there is
    a key, which no such page knows."""
    origins: frozenset[str] = frozenset()
    """Web pages that may read answers."""
    api_key: str | None = None


def parse_origin(text: str) -> str:
    """Return the origin of a web page as browsers write it.

    Raises:
        UsageError: if it is none, such as ``*`` or an address with a path.
    """
    found = re.fullmatch(_ORIGIN, text.strip().lower().removesuffix("/"))
    if found is None:
        why = "not the origin of a web page"
        raise UsageError(f"--cors {text[:100]!r}", why, "write it as https://example.org:8080")
    scheme, host, port = found.groups(default="")
    return f"{scheme}://{host}{'' if port == _USUAL_PORTS.get(scheme) else port}"
