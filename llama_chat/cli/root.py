"""``llama-chat`` without a command: the chat on a terminal, or an answer to piped stdin."""

import sys
from typing import Annotated

import typer

from llama_chat import __version__
from llama_chat.cli.answering import FailOnLength
from llama_chat.cli.ask import answer, message_of
from llama_chat.cli.chat import GoOn, Resume, open_chat
from llama_chat.cli.options import takes_settings
from llama_chat.settings.settings import Settings
from llama_chat.terminal import streams


def _show_version(ctx: typer.Context, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:  # which is what completion does
        print(f"llama-chat {__version__}")  # noqa: T201 - asked for
        raise typer.Exit


@takes_settings
def main(
    settings: Settings,
    go_on: GoOn = False,
    resume: Resume = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object, for piped stdin.")
    ] = False,
    fail_on_length: FailOnLength = False,
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
        message = message_of(None, settings)
        answer(message, settings, as_json=as_json, fail_on_length=fail_on_length)
