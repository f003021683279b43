"""``llama-chat chat``: the conversation on a terminal."""

import sys
from typing import TYPE_CHECKING

from llama_chat import __version__, starter
from llama_chat.cli.loading import (
    load_model,
    new_session,
    open_prompt,
    sampling,
    with_prompt_file,
)
from llama_chat.cli.options import takes_settings
from llama_chat.cli.pull import fetch
from llama_chat.errors import ModelError, UsageError
from llama_chat.library import NO_MODEL_ADVICE
from llama_chat.settings import Settings
from llama_chat.terminal import streams

if TYPE_CHECKING:
    from llama_chat.terminal.commands import Head


@takes_settings
def chat(settings: Settings) -> None:
    """Open the chat; what `llama-chat` alone does on a terminal."""
    open_chat(settings)


def open_chat(settings: Settings) -> None:
    """Load the model and talk.

    Raises:
        UsageError: if stdin or stdout is not a terminal.
    """
    for stream, name in ((sys.stdin, "stdin"), (sys.stdout, "stdout")):
        if not streams.is_terminal(stream):
            raise UsageError(
                name, "the chat needs a terminal", "use llama-chat ask or complete in a pipe"
            )
    if not settings.text("model") and not starter.is_installed(starter.DEFAULT):
        _offer_starter()
    from llama_chat.terminal.keyboard import hold_keys

    with hold_keys():
        _talk(settings)


def _talk(settings: Settings) -> None:
    """Load the model, show what it is, and run the chat."""
    from llama_chat.terminal.app import ChatApp
    from llama_chat.terminal.renderer import Renderer

    prompt = open_prompt(settings)
    before_prompt = None if prompt is None else _head(settings)
    settings = with_prompt_file(settings, prompt)
    llama = load_model(settings)
    renderer = Renderer(settings.text("color"))
    session = new_session(llama, settings, prompt, renderer.note)
    app = ChatApp(session, renderer, llama.name, before_prompt)
    if not settings["quiet"]:
        dtype = str(llama.model.dtype).removeprefix("torch.")
        renderer.note(
            f"llama-chat {__version__} · {llama.name} · {dtype} on {llama.model.device} · "
            f"context {llama.context} · template {session.template.name}"
        )
        renderer.note("/help lists the commands · Ctrl-C stops a reply · Ctrl-D leaves\n")
    app.prefill()
    app.run()


def _head(settings: Settings) -> "Head":
    """What the settings say of all that a prompt file may change."""
    from llama_chat.terminal.commands import Head

    return Head(
        settings.text("system"),
        settings.texts("stop"),
        settings.integer("max_tokens"),
        sampling(settings),
    )


def _offer_starter() -> None:
    """Ask whether to fetch the starter model.

    Raises:
        ModelError: if the person declines.
    """
    model = starter.STARTERS[starter.DEFAULT]
    streams.say("No model is configured.")
    sys.stderr.write(
        f"Fetch {model.title} ({model.size / 1e6:.0f} MB, licence {model.licence})? [Y/n] "
    )
    sys.stderr.flush()
    reply = sys.stdin.readline()
    if not reply or reply.strip().lower() not in ("", "y", "yes"):
        raise ModelError("model", "none is configured", NO_MODEL_ADVICE)
    fetch(starter.DEFAULT)
