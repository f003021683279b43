"""Showing of a reply as it is generated."""

import itertools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from llama_chat.errors import CutOffError, LlamaChatError
from llama_chat.generation.events import Event, Finish, Hooks
from llama_chat.terminal.advice import line_in_chat
from llama_chat.terminal.progress import PREFILL_DELAY_S, progress
from llama_chat.terminal.status_line import StatusLine

if TYPE_CHECKING:
    from llama_chat.terminal.chat import Chat


def show_reply(
    chat: "Chat",
    generate: Callable[[Hooks], Iterator[Event]],
    *,
    begun: str = "",
    shown: str = "",
) -> None:
    """Show a reply as it is generated; Ctrl-C stops it, in prefill too, and keeps its text.

    Args:
        chat: the conversation.
        generate: starts the generation.
        begun: the part of the reply that is on the screen already.
        shown: the part of the reply to show first.
    """
    watching, renderer = chat.interrupts, chat.renderer
    with progress("Reading", PREFILL_DELAY_S, hidden=renderer.plain) as on_progress:
        events = generate(Hooks(lambda: watching.pending, on_progress))
        first = next(events)
    # The message is in the conversation now: an error raised from here would offer it again.
    chat.attachments, chat.reply_prefix = [], ""
    chat.save(durable=False)  # kept even if the reply fails
    writer, failure, event = renderer.reply(begun), None, first
    hidden = renderer.plain or chat.settings.quiet
    try:
        with StatusLine(renderer.console, hidden=hidden, colored=renderer.colored) as status:
            try:
                writer.push(shown)
                for event in itertools.chain([first], events):
                    writer.push(event.text)
                    status.count()
            except LlamaChatError as error:
                failure = error
            finally:
                writer.finish()
    finally:  # also if the terminal has gone
        chat.save()
    watching.take()
    if failure is not None:
        renderer.error(line_in_chat(failure))
    if isinstance(failure, CutOffError):
        renderer.note("what came is kept: /continue goes on, /retry begins anew")
    if isinstance(event, Finish):  # as the last one always is
        chat.last = event
        drops = chat.settings.overflow == "drop-oldest"
        renderer.ended(event, begun=bool(begun), drops_turns=drops)
        if chat.settings.verbose:
            renderer.note(event.summary())
