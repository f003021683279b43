"""Commands for attachments, saved conversations, exports and the clipboard."""

import os
from collections.abc import Iterable
from pathlib import Path

from llama_chat.chat import store
from llama_chat.chat.conversation import Conversation
from llama_chat.chat.dialogs import parse_dialog, to_dialog, to_markdown
from llama_chat.chat.prompt_files import read_prompt_text
from llama_chat.chat.records import ModelTag
from llama_chat.errors import SaveError, UsageError, counted, reason
from llama_chat.files import expand_user, readable_time
from llama_chat.terminal.chat import Chat
from llama_chat.terminal.clipboard import copy
from llama_chat.terminal.commands.attachments import FILE
from llama_chat.terminal.commands.command import Command, Value
from llama_chat.terminal.streams import to_json


def _save(chat: Chat, argument: str) -> None:
    if not chat.conversation.all:
        raise UsageError("/save", "there is no message yet", "type a message first")
    chat.file.save(chat.conversation, chat.tag)
    if argument:
        chat.file.rename(argument)
    chat.renderer.note(f"saved as {chat.file.name}")


def _load(chat: Chat, argument: str) -> None:
    if not argument:
        _sessions(chat, "")
    elif argument.endswith(".json"):
        chat.take(_dialog(expand_user(argument)), ModelTag())
        chat.file.close()
        chat.renderer.show(chat.conversation.head)
    else:
        chat.open(store.find(argument))
        chat.renderer.show(chat.conversation.head)


def _dialog(path: Path) -> Conversation:
    """Read a conversation from a JSON list of messages."""
    messages = parse_dialog(read_prompt_text(path, pipes=False), path.name)
    conversation = Conversation()
    if messages[0].role == "system":
        conversation.system = messages.pop(0).text
    for message in messages:
        conversation.add(message)
    return conversation


def _sessions(chat: Chat, argument: str) -> None:
    entries = store.entries()
    if not entries:
        chat.renderer.note("no conversation is saved yet")
        return
    chat.renderer.table(
        ("", "conversation", "messages", "saved", "begins with"),
        (
            (
                "●" if entry.path == chat.file.path else "",
                entry.name,
                str(entry.n_messages),
                readable_time(entry.changed),
                entry.title or entry.problem,
            )
            for entry in entries
        ),
        right=("messages",),
    )
    chat.renderer.note("/load NAME goes on with one")


def _session_values(chat: Chat, argument: str) -> Iterable[Value]:
    return [(name, readable_time(changed)) for name, changed in store.dated_names()]


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
    try:
        with path.open("x", encoding="utf-8", errors="replace") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError:
        raise UsageError(
            f"file {argument!r}", "it is there already", "choose another name"
        ) from None
    except (OSError, ValueError) as error:
        raise SaveError(f"file {argument!r}", reason(error), "choose another place") from None
    chat.renderer.note(f"written: {path}")


def _copy(chat: Chat, argument: str) -> None:
    reply = chat.conversation.head
    if reply is None or reply.role == "user":
        raise UsageError("/copy", "there is no reply yet", "type a message first")
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
    Command("save", "[name]", "Give the conversation a name.", "/save blue-sky", _save),
    Command(
        "load",
        "[name|FILE.json]",
        "Go on with a saved conversation.",
        "/load blue-sky",
        _load,
        _session_values,
        paths=True,
    ),
    Command("sessions", "", "List the saved conversations.", "/sessions", _sessions),
    Command(
        "export",
        "FILE.md|FILE.json",
        "Write the conversation to a file.",
        "/export chat.md",
        _export,
        paths=True,
    ),
)
