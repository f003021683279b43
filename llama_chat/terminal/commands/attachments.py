"""The command that attaches texts to the next message."""

import glob
import os
import re
import shlex
from collections.abc import Iterable
from contextlib import suppress
from itertools import islice
from pathlib import Path

from llama_chat.chat.conversation import Attachment
from llama_chat.chat.prompt_files import read_prompt_text
from llama_chat.errors import UsageError, reason
from llama_chat.files import expand_user
from llama_chat.terminal.chat import Chat
from llama_chat.terminal.commands.command import Command

MAX_FILES = 50
"""Files that a folder or a name with wildcards may stand for."""


def _file(chat: Chat, argument: str) -> None:
    if argument == "off":
        chat.attachments = []
    else:
        added = [text for name in _names(argument) for text in _attachments(chat, name)]
        for attachment in added:
            if attachment in chat.attachments:
                chat.renderer.note(f"attached before: {attachment.name}")
            else:
                chat.attachments.append(attachment)
    for attachment in chat.attachments:
        chat.renderer.note(f"attached: {attachment.summary}")
    if chat.attachments and not argument:
        chat.renderer.note("/file off leaves them out")
    if not chat.attachments:
        chat.renderer.note("no attachments; /file PATH adds one")


def drop_unsent(chat: Chat) -> None:
    """Drop attachments and reply prefix: they were meant for the conversation that is left."""
    dropped = [attachment.name or "document" for attachment in chat.attachments]
    if chat.reply_prefix:
        dropped.append("the reply prefix")
    chat.attachments, chat.reply_prefix = [], ""
    if dropped:
        chat.renderer.note(f"not sent, and dropped: {', '.join(dropped)}")


def _names(argument: str) -> list[str]:
    """Split an argument as a shell does; the path of a file is one name, blanks or not."""
    if argument and _exists(argument):
        return [argument]
    try:
        names = shlex.split(argument)
    except ValueError:
        raise UsageError("/file", "a quote is not closed", 'write /file "my notes.txt"') from None
    address = next((name for name in names if re.match("https?://", name)), None)
    if address is not None:
        advice = "save the page, and attach the file"
        raise UsageError(f"file {address!r}", "addresses are not fetched", advice)
    missing = next((name for name in names if not (_exists(name) or glob.has_magic(name))), None)
    if missing is not None and len(names) > 1:
        advice = 'quotes hold blanks together: /file "my notes.txt"'
        raise UsageError(f"file {missing!r}", "no such file", advice)
    return names


def _exists(name: str) -> bool:
    with suppress(OSError, ValueError):  # a name that is too long, or has a NUL
        return expand_user(name).exists()
    return False


def _attachments(chat: Chat, name: str) -> list[Attachment]:
    """Read what a name stands for: a file, the texts of a folder, or all that fit a pattern."""
    try:
        files = _files(name)
    except OSError as error:
        raise UsageError(f"file {name!r}", reason(error), "check the path") from None
    if files is None:
        return [_read(expand_user(name))]
    if len(files) > MAX_FILES:
        is_pattern = glob.has_magic(name)
        advice = "give a pattern that fits fewer" if is_pattern else "give some, such as *.txt"
        raise UsageError(f"file {name!r}", f"more than {MAX_FILES} files", advice)
    texts = []
    for path in files:
        try:
            texts.append(_read(path))
        except UsageError as error:
            chat.renderer.note(f"left out: {error}")
    if not texts:
        raise UsageError(f"file {name!r}", "no text there", "name a file with text")
    return texts


def _files(name: str) -> list[Path] | None:
    """List the files of a folder or pattern, at most one more than the limit; else None."""
    path = expand_user(name)
    if os.path.isdir(path):  # noqa: PTH112 - Path.is_dir() may raise
        found: Iterable[Path] = (
            entry for entry in path.iterdir() if not entry.name.startswith(".")
        )
    elif glob.has_magic(name) and not _exists(name):
        found = map(Path, glob.iglob(str(path)))  # noqa: PTH207 - the folder may be a pattern
    else:
        return None
    return sorted(islice((entry for entry in found if entry.is_file()), MAX_FILES + 1))


def _read(path: Path) -> Attachment:
    text = read_prompt_text(path, pipes=False)
    if not text.strip():
        raise UsageError(f"file {str(path)!r}", "it is empty", "attach a text")
    return Attachment(text, path.name)


FILE = Command(
    "file",
    "[path…|off]",
    "Attach texts to the next message: files, folders, *.txt.",
    "/file notes.txt",
    _file,
    lambda chat, argument: [("off", "no attachments")],
    paths=True,
    splits=True,
)
