"""``llama-chat chat``: the chat on a terminal."""

import os
import sys
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llama_chat import __version__
from llama_chat.chat import store
from llama_chat.chat.conversation import Attachment
from llama_chat.chat.prompt_files import PromptFile
from llama_chat.cli.completing import conversations
from llama_chat.cli.flags import Variables
from llama_chat.cli.loading import model_path, open_prompt, plan_model
from llama_chat.cli.options import takes_settings
from llama_chat.cli.pull import fetch, is_offline
from llama_chat.cli.ranks import exit_at_once
from llama_chat.cli.slots import Slots
from llama_chat.cli.warm import find_server
from llama_chat.errors import ModelError, UsageError
from llama_chat.library import NO_MODEL_ADVICE, starter
from llama_chat.parallel.world import find_world
from llama_chat.settings.settings import Settings
from llama_chat.terminal import streams
from llama_chat.terminal.interrupts import Interrupts

if TYPE_CHECKING:
    from llama_chat.terminal.model_loader import Plan

ContinueLatest = Annotated[
    bool, typer.Option("--continue", "-c", help="Continue the latest conversation.")
]
Resume = Annotated[
    str | None,
    typer.Option(
        "--resume",
        metavar="[NAME]",
        help="Continue a saved conversation; without a name, pick one.",
        autocompletion=conversations,
    ),
]


@takes_settings
def chat(
    settings: Settings,
    continue_latest: ContinueLatest = False,
    resume: Resume = None,
    variables: Variables = None,
) -> None:
    """Open the chat, as `llama-chat` alone does on a terminal.

    A text piped to stdin is attached to the first message, unless the prompt file has a slot for
    it.
    """
    open_chat(settings, variables, continue_latest=continue_latest, resume=resume)


def open_chat(
    settings: Settings,
    variables: Sequence[str] | None = None,
    *,
    continue_latest: bool = False,
    resume: str | None = None,
) -> None:
    """Run the chat; the model loads in the background.

    Args:
        settings: the settings.
        variables: texts ``NAME=TEXT`` for the slots of prompt files.
        continue_latest: whether to continue the latest conversation.
        resume: the name of a saved conversation to continue.

    Raises:
        UsageError: if stdout is not a terminal, or there is no such conversation.
    """
    if continue_latest and resume is not None:
        raise UsageError("--continue", "--resume is given too", "give one of them")
    if not streams.is_terminal(sys.stdout):
        raise UsageError(
            "stdout", "the chat needs a terminal", "use llama-chat ask or complete in a pipe"
        )
    saved = store.latest() if continue_latest else _saved(resume, settings)
    attachments = [] if streams.is_terminal(sys.stdin) else [_read_piped()]
    # A wrong name or address is an error before anything is drawn.
    if settings.server_url is not None:
        plan_model(settings)
    else:
        if not settings.model and not starter.is_installed(starter.DEFAULT):
            _offer_starter(settings)
        model_path(settings)
    slots = Slots(variables, (lambda: str(attachments[0])) if attachments else None)
    prompt = open_prompt(settings, slots)
    if slots.takes_stdin:
        attachments = []
    with _own_terminal(), Interrupts(exit_at_once) as interrupts:
        from llama_chat.terminal.raw_input import hold_keys

        with hold_keys():
            _run_chat(settings, prompt, slots, attachments, saved, interrupts)
    if interrupts.status:
        if threading.active_count() > 1:
            exit_at_once(interrupts.status)  # Python would wait for the load
        raise typer.Exit(interrupts.status)


def _own_terminal() -> AbstractContextManager[None]:
    if find_world() is None:
        return nullcontext()
    from llama_chat.terminal.own_terminal import own_terminal

    return own_terminal()


def _saved(resume: str | None, settings: Settings) -> Path | None:
    """Find the conversation to resume; an empty name lets the user pick one.

    Raises:
        UsageError: if there is none, or none can be picked here.
        Exit: if the user picks none.
    """
    if resume != "":
        return None if resume is None else store.find(resume)
    if settings.plain or streams.is_dumb() or not streams.is_terminal(sys.stdin):
        raise UsageError("--resume", "no name is given", "llama-chat sessions lists them")
    from llama_chat.terminal.commands.sessions import pick_session

    if not (entries := store.entries()):
        raise UsageError("--resume", "no conversation is saved yet", "begin one: llama-chat")
    name = pick_session(entries)
    if name is None:
        raise typer.Exit
    return store.path_of(name)


def _read_piped() -> Attachment:
    """Read the document on stdin, then reopen stdin as the terminal."""
    text = streams.read_stdin()
    if not text.strip():
        raise UsageError("stdin", "it is empty", "pipe a text to it, or call it on a terminal")
    try:
        keyboard = os.open(os.ctermid(), os.O_RDWR)
    except OSError:
        raise UsageError(
            "keyboard", "there is no terminal", "use llama-chat ask or complete in a pipe"
        ) from None
    os.dup2(keyboard, 0)
    os.close(keyboard)
    sys.stdin = os.fdopen(0, encoding="utf-8", errors="replace", closefd=False)
    return Attachment(text)


def _plan(settings: Settings, *, reclaimable: int = 0) -> "Plan":
    """Plan to load a model, or to chat with one that a warm server has loaded."""
    if (found := find_server(settings, lambda line: None, starts=False)) is not None:
        from llama_chat.server.warm_session import WarmPlan

        return WarmPlan(*found, model_path(settings))
    return plan_model(settings, reclaimable=reclaimable)


def _run_chat(
    settings: Settings,
    prompt: PromptFile | None,
    slots: Slots,
    attachments: list[Attachment],
    saved: Path | None,
    interrupts: Interrupts,
) -> None:
    """Show the attachments and the saved conversation, and run the chat."""
    from llama_chat.terminal.app import ChatApp
    from llama_chat.terminal.chat import Chat
    from llama_chat.terminal.commands.sessions import open_saved

    chat = Chat(settings, _plan, prompt, interrupts)
    chat.variables = slots.values
    tell = chat.renderer.note
    if not settings.quiet:
        tell(f"llama-chat {__version__} · /help lists the commands · Ctrl-D leaves")
        for attachment in attachments:
            tell(f"attached: {attachment.summary}")
        chat.renderer.space()
    if saved is not None:
        open_saved(chat, saved)
        chat.renderer.space()
    chat.attachments = attachments
    ChatApp(chat).run()


def _offer_starter(settings: Settings) -> None:
    """Ask whether to download the starter model.

    Raises:
        ModelError: if the user declines, or it cannot be downloaded offline.
    """
    if is_offline(settings):
        raise ModelError("model", "none is configured", "give --model PATH")
    model = starter.STARTERS[starter.DEFAULT]
    streams.say("No model is configured.")
    size = f"{model.size / 1e6:.0f} MB"
    if not streams.confirm(f"Download {model.title} ({size}, licence {model.licence})?"):
        raise ModelError("model", "none is configured", NO_MODEL_ADVICE)
    fetch(starter.DEFAULT, settings)
