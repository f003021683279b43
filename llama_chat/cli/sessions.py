"""``llama-chat sessions``: saved conversations."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from llama_chat.chat import store
from llama_chat.chat.conversation_file import repair as repair_file
from llama_chat.chat.dialogs import to_dialog, to_markdown
from llama_chat.chat.records import Loaded
from llama_chat.cli.completing import conversations
from llama_chat.cli.help import Command, Group
from llama_chat.cli.listing import write, write_rows
from llama_chat.errors import LlamaChatError, UsageError
from llama_chat.files import local_time, readable_time
from llama_chat.terminal import streams

app = typer.Typer(name="sessions", cls=Group, rich_markup_mode=None)

_COLUMNS = ("name", "saved", "messages", "model", "title")
_NAME, _, _MESSAGES, _MODEL, _TITLE = range(len(_COLUMNS))

_REPAIR = "llama-chat sessions repair keeps what can be read"

_YIELDING = {_TITLE: 20, _MODEL: 8, _NAME: 24}
"""Minimum widths by column, in the order in which a narrow terminal cuts them."""

_JsonOption = Annotated[bool, typer.Option("--json", help="Write one line of JSON.")]
_Name = Annotated[
    str,
    typer.Argument(
        help="Name, or a unique prefix of it.", autocompletion=conversations, metavar="NAME"
    ),
]
_Names = Annotated[
    list[str], typer.Argument(help="Whole names.", autocompletion=conversations, metavar="NAME...")
]
_AnyNames = Annotated[
    list[str] | None,
    typer.Argument(help="Whole names.", autocompletion=conversations, metavar="[NAME...]"),
]
_BAD = ("cut", "damaged", "unreadable")


@app.callback(invoke_without_command=True)
def sessions(ctx: typer.Context, as_json: _JsonOption = False) -> None:
    """List, show, check, repair or remove saved conversations.

    Without a command it lists them.
    """
    if ctx.invoked_subcommand is None:
        _write_list(as_json=as_json)


@app.command("list", cls=Command)
def list_all(ctx: typer.Context, as_json: _JsonOption = False) -> None:
    """List saved conversations, the latest first."""
    _write_list(as_json=_wants_json(ctx, as_json))


@app.command(cls=Command)
def show(ctx: typer.Context, name: _Name, as_json: _JsonOption = False) -> None:
    """Print a conversation in Markdown.

    The system message and the examples come first, then the messages of the current branch.
    """
    path = store.find(name)
    loaded = store.read(path)
    if loaded.problem:
        streams.warn(f"conversation {path.stem!r}: {loaded.problem}: {_REPAIR}")
    messages = loaded.conversation.preface() + loaded.conversation.path()
    if _wants_json(ctx, as_json):
        streams.write_json(to_dialog(messages))
    else:
        write(to_markdown(messages, path.stem))


@app.command(cls=Command)
def rm(names: _Names) -> None:
    """Remove conversations: all that are named, or none."""
    paths = [store.find(name, whole=True) for name in dict.fromkeys(names)]
    for path in paths:
        store.refuse_if_open(path)
    for path in paths:
        store.remove(path)
        streams.say(f"removed {path.stem}")


@app.command(cls=Command)
def check(ctx: typer.Context, names: _AnyNames = None, as_json: _JsonOption = False) -> None:
    """Check conversations: all, or those named.

    Each is ok, old (without checksums), open (another program may be writing it), cut (its last
    save is incomplete), damaged or unreadable. The status is 1 if one is cut, damaged or
    unreadable.
    """
    found = [
        _Finding(entry.name, *_state(entry, loaded))
        for entry, loaded in store.read_all(_paths(names))
    ]
    _write_findings(found, as_json=_wants_json(ctx, as_json))
    if bad := sum(finding.state in _BAD for finding in found):
        raise LlamaChatError("sessions", f"{bad} of {len(found)} damaged", _REPAIR)


@app.command(cls=Command)
def repair(ctx: typer.Context, names: _AnyNames = None, as_json: _JsonOption = False) -> None:
    """Rewrite damaged conversations: all, or those named.

    Everything that can be read is kept, and so is a copy of each damaged file. Conversations
    without checksums get them. The status is 1 if one cannot be repaired.
    """
    found = []
    for entry, loaded in store.read_all(_paths(names)):
        state, problem = _state(entry, loaded)
        copy: Path | None = None
        if state not in ("ok", "open"):
            try:
                copy = repair_file(entry.path)[1]
                state = "repaired" if copy else "sealed"
            except LlamaChatError as error:
                problem = error.why
        found.append(_Finding(entry.name, state, problem, str(copy or "")))
    _write_findings(found, as_json=_wants_json(ctx, as_json))
    if bad := sum(finding.state in _BAD for finding in found):
        raise LlamaChatError(
            "sessions", f"{bad} of {len(found)} not repaired", "look at them, or remove them"
        )


@dataclass(frozen=True, slots=True)
class _Finding:
    """State of a saved conversation."""

    name: str
    state: str
    problem: str
    copy: str = ""
    """Path of the copy of the damaged file."""


def _paths(names: list[str] | None) -> list[Path] | None:
    return [store.find(name, whole=True) for name in names] if names else None


def _state(entry: store.Entry, loaded: Loaded | None) -> tuple[str, str]:
    """Return the state of a conversation, and what is damaged."""
    if loaded is None:
        return "unreadable", entry.problem
    if loaded.damage:
        return "damaged", loaded.problem
    if loaded.cut:
        try:
            store.refuse_if_open(entry.path)
        except UsageError as error:
            return "open", error.why
        return "cut", loaded.problem
    return ("ok" if loaded.n_sealed == loaded.n_lines else "old"), ""


def _write_findings(found: list[_Finding], *, as_json: bool) -> None:
    if as_json:
        streams.write_json(list(map(asdict, found)))
    elif not found:
        streams.say("no conversation is saved yet")
    else:
        rows = [list(asdict(finding).values()) for finding in found]
        columns = ("name", "state", "problem", "as it was")
        write_rows(columns, rows, yielding={2: 12, 3: 12, 0: 24}, right=())


def _wants_json(ctx: typer.Context, as_json: bool) -> bool:
    """True if ``--json`` was given, before or after the name of the subcommand."""
    return as_json or bool(ctx.parent and ctx.parent.params["as_json"])


def _write_list(*, as_json: bool) -> None:
    entries = store.entries()
    if as_json:
        streams.write_json(list(map(_describe, entries)))
    elif not entries:
        streams.say("no conversation is saved yet")
    else:
        write_rows(_COLUMNS, list(map(_row, entries)), yielding=_YIELDING, right=(_MESSAGES,))


def _describe(entry: store.Entry) -> dict[str, Any]:
    """Describe a conversation for programs."""
    return {
        "name": entry.name,
        "changed": local_time(entry.changed).isoformat(timespec="seconds"),
        "messages": entry.n_messages,
        "model": entry.model,
        "title": entry.title,
        "problem": entry.problem,
    }


def _row(entry: store.Entry) -> list[str]:
    """Describe a conversation for people, a cell for each column."""
    when = readable_time(entry.changed)
    cells = (str(entry.n_messages), entry.model, entry.title)
    if entry.problem:
        cells = ("", "", f"unreadable: {entry.problem}")
    return [entry.name, when, *cells]
