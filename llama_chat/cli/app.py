"""Command line of the program: its commands, errors and exit status."""

import itertools
import os
import re
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from types import FrameType
from typing import Any

import typer
from typer.exceptions import Abort, TyperException

from llama_chat.cli import completing
from llama_chat.cli.command_line import usage_error
from llama_chat.cli.help import Command, Group
from llama_chat.errors import (
    INTERRUPTED_STATUS,
    ClosedPipe,
    LlamaChatError,
    LostRankError,
    UsageError,
    did_you_mean,
    unexpected,
)
from llama_chat.parallel.world import find_world
from llama_chat.terminal import streams

COMMANDS = (
    *("chat", "ask", "complete", "serve", "tokenize", "inspect", "check", "convert", "pull"),
    *("bench", "replay"),
)
"""Commands; each is a function in the module of its name."""

GROUPS = ("models", "sessions", "config")
"""Command groups; each is the ``app`` of the module of its name."""

_NAMES = COMMANDS + GROUPS

_HELP = re.compile(r"--help|-[A-Za-z]*h.*")

_VALUES = {"--resume": "", "--device-map": "auto"}
"""Values that options have without one."""


class _Commands(Group):
    """Commands; for a question in place of a command, the error names ``ask``."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command that ``args`` begins with.

        Raises:
            UsageError: if there is none.
        """
        word = args[0]
        if self.get_command(ctx, word) is None and not (
            ctx.resilient_parsing or word.startswith("-")
        ):
            is_text = len(word.split()) != 1
            advice = did_you_mean(
                word,
                () if is_text else _NAMES,
                f'{"" if is_text else "see llama-chat --help, or "}llama-chat ask "…"',
            )
            what = f"command {streams.one_line(word)[:40]!r}"
            raise UsageError(what, "there is no such command", advice)
        return super().resolve_command(ctx, args)


def build(arguments: Sequence[str] | None = None) -> typer.Typer:
    """Build the command line for ``arguments``, or all of it.

    Only the commands that the arguments need are built: building the options of all takes longer
    than loading a small model.
    """
    names = _NAMES if arguments is None else _needed(arguments)
    app = typer.Typer(
        name="llama-chat",
        cls=_Commands,
        help="Talk with a Llama-2 model in the terminal.",
        epilog="Without a command: the chat on a terminal; an answer to stdin when that is piped.",
        invoke_without_command=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        rich_markup_mode=None,
    )
    for name in names:
        module = import_module(f"llama_chat.cli.{name}")
        if name in GROUPS:
            app.add_typer(module.app)
        else:
            app.command(cls=Command)(getattr(module, name))
    if len(names) == 1:
        app.callback()(_only_a_command)
    else:
        from llama_chat.cli.root import main

        app.callback()(main)
    return app


def _needed(arguments: Sequence[str]) -> Sequence[str]:
    """Return the commands that are needed to parse ``arguments``: one if they begin with it."""
    if arguments and arguments[0] in _NAMES:
        return arguments[:1]
    are_shown = any(word in _NAMES or _HELP.fullmatch(word) for word in arguments)
    return _NAMES if are_shown or completing.is_requested() else ()


def _with_values(arguments: Sequence[str]) -> list[str]:
    """Insert a value after options of ``_VALUES`` without one: Typer has no optional values."""
    completed: list[str] = []
    for word, following in itertools.pairwise([*arguments, "-"]):
        completed.append(word)
        if word in _VALUES and following.startswith("-") and "--" not in completed:
            completed.append(_VALUES[word])
    return completed


def _only_a_command(ctx: typer.Context) -> None:
    """Talk with a Llama-2 model in the terminal."""
    ctx.obj = {}  # no flags before the command


def run(arguments: list[str]) -> int:
    """Run the program and return its exit status; every failure is one line on stderr."""
    streams.prepare()
    try:
        if (world := find_world()) is None:
            return _run(arguments)
        from llama_chat.cli.ranks import run_rank

        return run_rank(world, lambda: _run(arguments))
    finally:
        streams.end()


def _run(arguments: list[str]) -> int:
    arguments = _with_values(arguments)
    try:
        completing.prepare()
        command = typer.main.get_command(build(arguments))
        completing.guard_options(command.params)
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:  # nohup ignores SIGHUP: keep that
                signal.signal(number, _leave)
        status = command.main(args=arguments, prog_name="llama-chat", standalone_mode=False)
        return status if isinstance(status, int) else 0
    except LlamaChatError as error:
        streams.fail(str(error))
        return error.status
    except TyperException as error:
        streams.fail(str(usage_error(error)))
        return error.exit_code
    except ClosedPipe as closed:
        return closed.status
    except (KeyboardInterrupt, Abort):
        return INTERRUPTED_STATUS
    except LostRankError:
        raise
    except Exception as error:
        if (status := _status_of_end(error)) is not None:
            return status
        # A bug: still one line on stderr.
        if os.environ.get("LLAMA_CHAT_TRACEBACK"):
            raise
        streams.fail(unexpected(error))
        return 1


def _status_of_end(error: BaseException | None) -> int | None:
    """Return the status of a signal that came while a class was made; None for another error.

    Python 3.11 raises a RuntimeError then, with what the handler raised as its cause.
    """
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return INTERRUPTED_STATUS
        if isinstance(error, SystemExit) and isinstance(error.code, int):
            return error.code
        error = error.__cause__
    return None


def _leave(number: int, frame: FrameType | None) -> None:
    """Exit on a signal, so that every ``finally`` runs; a second one must not cut these short."""
    for each in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    sys.exit(128 + number)
