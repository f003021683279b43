"""Commands for attachments, exports and the clipboard."""

import os

from llama_chat.chat.dialogs import to_dialog, to_markdown
from llama_chat.errors import NothingYetError, SaveError, UsageError, counted, reason
from llama_chat.files import expand_user
from llama_chat.terminal.chat import Chat
from llama_chat.terminal.clipboard import copy
from llama_chat.terminal.commands.attachments import FILE
from llama_chat.terminal.commands.command import Command
from llama_chat.terminal.streams import to_json


def _export(chat: Chat, argument: str) -> None:
    conversation = chat.conversation
    path = expand_user(argument)
    if path.suffix not in (".md", ".json"):
        raise UsageError("/export", "it writes .md and .json", "write /export chat.md")
    messages = conversation.preface() + conversation.path()
    if path.suffix == ".json":
        text = to_json(to_dialog(messages), indent=1)
    else:
        text = to_markdown(messages, f"A conversation with {chat.model_name}")
    is_ours = False
    try:
        with path.open("x", encoding="utf-8", errors="replace") as file:
            is_ours = True
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError:
        raise UsageError(
            f"file {argument!r}", "it is there already", "choose another name"
        ) from None
    except (OSError, ValueError) as error:
        if is_ours:
            path.unlink(missing_ok=True)  # no half of it stays
        raise SaveError(f"file {argument!r}", reason(error), "choose another place") from None
    chat.renderer.note(f"written: {path}")


def _copy(chat: Chat, argument: str) -> None:
    reply = chat.conversation.head
    if reply is None or reply.role == "user":
        raise NothingYetError("/copy", "reply")
    if argument not in ("", "code"):
        raise UsageError("/copy", f"it does not know {argument[:40]!r}", "/copy or /copy code")
    text = reply.text.strip()
    if argument == "code":
        text = _last_code(text)
        if not text:
            raise UsageError("/copy code", "the last reply has no code", "/copy takes it all")
    way = copy(text, chat.renderer)
    chat.renderer.note(f"copied {counted(len(text), 'character')} {way}")


def _last_code(text: str) -> str:
    """Return the last fenced code block of a Markdown text; empty if there is none."""
    from markdown_it import MarkdownIt

    blocks = [token.content for token in MarkdownIt().parse(text) if token.type == "fence"]
    return blocks[-1] if blocks else ""


COMMANDS = (
    FILE,
    Command(
        "copy",
        "[code]",
        "Copy the last reply, or the last code in it.",
        "/copy code",
        _copy,
        lambda chat, argument: [("code", "the last code block alone")],
    ),
    Command(
        "export",
        "FILE.md|FILE.json",
        "Write the conversation to a file.",
        "/export chat.md",
        _export,
        paths=True,
    ),
)
