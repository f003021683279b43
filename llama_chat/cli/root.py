"""``llama-chat`` without a command: the chat on a terminal, or an answer to piped stdin."""

import sys
from typing import Annotated

import typer

from llama_chat import __version__
from llama_chat.cli.answering import AnswerOptions
from llama_chat.cli.ask import answer
from llama_chat.cli.chat import ContinueLatest, Resume, open_chat
from llama_chat.cli.flags import (
    DryRun,
    FailOnLength,
    GrammarFile,
    JsonSchema,
    Logprobs,
    Regex,
    Variables,
)
from llama_chat.cli.grammars import read_grammar
from llama_chat.cli.options import takes_settings
from llama_chat.errors import UsageError
from llama_chat.settings.settings import Settings
from llama_chat.terminal import streams


def _show_version(ctx: typer.Context, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:  # which is what completion does
        streams.write_own(f"llama-chat {__version__}\n")
        raise typer.Exit


@takes_settings
def main(
    settings: Settings,
    continue_latest: ContinueLatest = False,
    resume: Resume = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Write one JSON object (with piped stdin).")
    ] = False,
    fail_on_length: FailOnLength = False,
    variables: Variables = None,
    dry_run: DryRun = False,
    json_schema: JsonSchema = None,
    regex: Regex = None,
    grammar: GrammarFile = None,
    logprobs: Logprobs = 0,
    version: bool = typer.Option(
        False,
        "--version",
        help="Print the version and exit.",
        callback=_show_version,
        is_eager=True,
    ),
) -> None:
    """Talk with a Llama-2 model in the terminal."""
    constraint = read_grammar(json_schema, regex, grammar)
    if streams.is_terminal(sys.stdin) or continue_latest or resume is not None:
        of_answers = {
            "--json": as_json,
            "--logprobs": logprobs > 0,
            "--fail-on-length": fail_on_length,
            "--dry-run": dry_run,
        }
        given = [flag for flag, is_given in of_answers.items() if is_given]
        if constraint is not None:
            given.append(constraint.what)
        if given:
            advice = "use it with ask, complete or piped stdin"
            raise UsageError(given[0], "the chat does not take it", advice)
        open_chat(settings, variables, continue_latest=continue_latest, resume=resume)
    else:
        answer(
            None,
            settings,
            variables,
            AnswerOptions(as_json, False, fail_on_length, logprobs),
            grammar=constraint,
            dry_run=dry_run,
        )
