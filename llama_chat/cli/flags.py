"""Options that the commands for answers share, besides those of the settings."""

from typing import Annotated

import typer

Variables = Annotated[
    list[str] | None,
    typer.Option(
        "--var",
        metavar="NAME=TEXT",
        help="Text for the slot {{NAME}} of a prompt file; may be given again.",
        show_default=False,
    ),
]

DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Show the prompt, its ids and counts; generate nothing.")
]

FailOnLength = Annotated[
    bool, typer.Option("--fail-on-length", help="Exit with status 5 if an answer is cut off.")
]

_GRAMMAR = "Grammar"

JsonSchema = Annotated[
    str | None,
    typer.Option(
        "--json-schema",
        metavar="FILE|JSON",
        help="Answer with JSON that is valid under this schema.",
        rich_help_panel=_GRAMMAR,
    ),
]
Regex = Annotated[
    str | None,
    typer.Option(
        "--regex",
        metavar="REGEX",
        help="Answer with a text that matches as a whole.",
        rich_help_panel=_GRAMMAR,
    ),
]
GrammarFile = Annotated[
    str | None,
    typer.Option(
        "--grammar",
        metavar="FILE",
        help="Answer with a text of this Lark grammar.",
        rich_help_panel=_GRAMMAR,
    ),
]

Logprobs = Annotated[
    int,
    typer.Option(
        "--logprobs",
        metavar="N",
        min=0,
        max=10,
        help="With --json: log-probabilities of the tokens and of the N most likely ones.",
        show_default=False,
    ),
]
