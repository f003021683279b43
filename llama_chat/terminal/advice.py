"""Advice in the words of the chat: slash commands in place of flags and commands of a shell."""

import re

from llama_chat.errors import LlamaChatError
from llama_chat.settings.definitions import SETTINGS

_IN_CHAT = {
    "llama-chat config show": "/settings",
    "llama-chat models": "/model",
    "llama-chat sessions": "/sessions",
    **{setting.flag: setting.command for setting in SETTINGS.values()},
}
"""Words of a shell, and what does the same in the chat."""

_OF_A_SHELL = re.compile(rf"(?<![\w-])(?:{'|'.join(map(re.escape, _IN_CHAT))})(?![\w-])")


def line_in_chat(error: LlamaChatError) -> str:
    """Return the line of an error; only its advice is changed, as names may be in the rest."""
    return f"{error.what}: {error.why}: {in_chat(error.advice)}"


def in_chat(advice: str) -> str:
    """Return advice that names slash commands."""
    return _OF_A_SHELL.sub(lambda found: _IN_CHAT[found[0]], advice)
