"""The command line as a whole: its commands, its errors and its exit status."""

import os
import signal
import sys
from types import FrameType
from typing import Annotated

import typer
from typer.exceptions import Abort, TyperException

from llama_chat import __version__
from llama_chat.cli import completing, config, models, sessions
from llama_chat.cli.ask import answer, ask, message_of
from llama_chat.cli.bench import bench
from llama_chat.cli.chat import GoOn, Resume, chat, open_chat
from llama_chat.cli.complete import complete
from llama_chat.cli.convert import convert
from llama_chat.cli.inspect import inspect
from llama_chat.cli.options import takes_settings
from llama_chat.cli.pull import pull
from llama_chat.cli.tokenize import tokenize
from llama_chat.errors import INTERRUPTED_STATUS, ClosedPipe, LlamaChatError
from llama_chat.settings import Settings
from llama_chat.terminal import streams

app = typer.Typer(
    name="llama-chat",
    help="Talk with a Llama-2 model in the terminal.",
    epilog="Without a command: the chat on a terminal; an answer to stdin when that is piped.",
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
)

for command in (chat, ask, complete, tokenize, inspect, convert, pull, bench):
    app.command()(command)
for group in (models.app, sessions.app, config.app):
    app.add_typer(group)


def _show_version(ctx: typer.Context, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:  # which is what completion does
        print(f"llama-chat {__version__}")  # noqa: T201 - asked for
        raise typer.Exit


@app.callback()
@takes_settings
def main(
    settings: Settings,
    go_on: GoOn = False,
    resume: Resume = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object, for piped stdin.")
    ] = False,
    version: bool = typer.Option(
        False,
        "--version",
        help="Print the version and exit.",
        callback=_show_version,
        is_eager=True,
    ),
) -> None:
    """Talk with a Llama-2 model in the terminal."""
    if streams.is_terminal(sys.stdin) or go_on or resume is not None:
        open_chat(settings, go_on=go_on, resume=resume)
    else:
        answer(message_of(None), settings, as_json=as_json)


def run(arguments: list[str]) -> int:
    """Run the program and return its exit status; every failure is one line on stderr."""
    streams.prepare()
    completing.prepare()
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # nohup ignores SIGHUP, and so do we
            signal.signal(number, _leave)
    try:
        command = typer.main.get_command(app)
        status = command.main(args=arguments, prog_name="llama-chat", standalone_mode=False)
        return status if isinstance(status, int) else 0
    except LlamaChatError as error:
        streams.fail(str(error))
        return error.status
    except TyperException as error:
        message = error.format_message().rstrip(".")
        streams.fail(f"command line: {message}: see llama-chat --help")
        return error.exit_code
    except ClosedPipe as closed:
        return closed.status
    except (KeyboardInterrupt, Abort):
        return INTERRUPTED_STATUS
    except Exception as error:
        # A mistake of ours: still one line, the terminal as it was, and a way to tell us where.
        if os.environ.get("LLAMA_CHAT_TRACEBACK"):
            raise
        streams.fail(f"unexpected: {error}: report it with LLAMA_CHAT_TRACEBACK=1 set")
        return 1


def _leave(number: int, frame: FrameType | None) -> None:
    """End the program as a signal asks, by way of every ``finally``."""
    sys.exit(128 + number)
