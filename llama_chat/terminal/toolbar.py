"""Toolbar below the input."""

from typing import TYPE_CHECKING

from prompt_toolkit.formatted_text import StyleAndTextTuples

from llama_chat.errors import counted
from llama_chat.files import readable_size

if TYPE_CHECKING:
    from llama_chat.chat.context_use import ContextUse
    from llama_chat.terminal.chat import Chat

SEPARATOR = " · "


def toolbar(chat: "Chat", typed: str, width: int) -> StyleAndTextTuples:
    """Draw model, context use with the unsent message, sampling, and the last reply's speed.

    Args:
        chat: the conversation.
        typed: the message typed so far; empty if it is a command.
        width: columns of the terminal; what does not fit is left out, the speed first.
    """
    settings = chat.settings
    model = chat.model_name
    sampling = f"temp {settings.temperature:g} · top-p {settings.top_p:g}"
    parts = [model, sampling]
    warning = speed = ""
    if (session := chat.session) is not None:
        use = chat.context_use(session, typed)
        parts.insert(1, _context(use, session.context, len(chat.attachments)))
        warning = _warning(use.n_dropped)
    if work := _work(chat):
        parts.append(work)
    elif (last := chat.last) is not None and last.usage.completion_tokens:
        speed = f"{last.decode_tok_s:.1f} tok/s · first in {last.timings.ttft_s:.2f} s"
        parts.append(speed)
    if chat.reply_prefix:
        parts.append("reply prefix set")
    for spare in filter(None, (speed, sampling, model)):
        if len(SEPARATOR.join([*parts, *filter(None, [warning])])) >= width - 1:
            parts.remove(spare)
    line: StyleAndTextTuples = [("class:bottom-toolbar.text", " " + SEPARATOR.join(parts))]
    if warning:
        line.append(("class:bottom-toolbar.warning", SEPARATOR + warning))
    return line


def _context(use: "ContextUse", context: int | None, n_files: int) -> str:
    attached = f" with {counted(n_files, 'file')}" if n_files else ""
    about = "" if use.is_exact else "≈"
    limit = "" if context is None else f"/{context}"
    return f"context {about}{use.n_tokens}{limit}{attached}"


def _warning(n_dropped: int | None) -> str:
    """Describe how much of the conversation sending the message would drop."""
    if n_dropped is None:
        return "does not fit"
    if not n_dropped:
        return ""
    return "drops the oldest turn" if n_dropped == 1 else f"drops the oldest {n_dropped} turns"


def _work(chat: "Chat") -> str:
    """Describe the background job and its progress."""
    if not chat.loader.busy:
        return ""
    loader = chat.loader
    what = "loading" if loader.is_loading else "reading"
    done, total = loader.progress
    if not total:
        return f"{what} …"
    rate = f" at {readable_size(int(loader.rate))}/s" if loader.is_loading and loader.rate else ""
    return f"{what} {100 * done // total} %{rate}"
