"""Toolbar below the input."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from prompt_toolkit.formatted_text import StyleAndTextTuples
from rich.cells import cell_len
from rich.text import Text

from llama_chat.errors import counted
from llama_chat.files import readable_size

if TYPE_CHECKING:
    from llama_chat.chat.context_use import ContextUse
    from llama_chat.terminal.chat import Chat

SEPARATOR = " · "


_NAME_MIN = 12
"""Columns that are left of the model's name before other parts are left out."""


def toolbar(chat: "Chat", typed: str, width: int) -> StyleAndTextTuples:
    """Draw model, context use with the unsent message, sampling, and the last reply's speed.

    Parts that do not fit are shortened one after the other, and then left out as a whole: a part of
    a number would be another number.

    Args:
        chat: the conversation.
        typed: the message typed so far; empty if it is a command.
        width: columns of the terminal.
    """
    settings, work = chat.settings, _work(chat)
    parts = {
        "model": chat.model_name,
        "context": "",
        "sampling": f"temp {settings.temperature:g} · top-p {settings.top_p:g}",
        "work": work,
        "speed": "",
        "prefix": "reply prefix set" if chat.reply_prefix else "",
        "warning": "",
    }
    short_speed = ""
    if (session := chat.session) is not None:
        use = chat.context_use(session, typed)
        parts["context"] = _context(use, session.context, len(chat.attachments))
        parts["warning"] = _warning(use.n_dropped)
    if (last := chat.last) is not None and last.usage.completion_tokens and not work:
        speed, delay = last.decode_tok_s, f"{last.timings.ttft_s:.2f} s"
        parts["speed"] = f"{speed:.1f} tok/s · first in {delay}"
        short_speed = f"{speed:.{0 if speed >= 10 else 1}f} tok/s · {delay}"
    for name, shorter in (
        ("speed", short_speed),
        ("model", None),
        ("sampling", ""),
        ("speed", ""),
        ("model", ""),
        ("prefix", ""),
        ("work", ""),
        ("context", ""),
        ("warning", ""),
    ):
        excess = cell_len(f" {_joined(parts)} ") - width
        if excess <= 0:
            break
        if shorter is None:
            shorter = _cut(parts[name], excess)
        parts[name] = shorter if parts[name] else ""
    warning = parts.pop("warning")
    line: StyleAndTextTuples = [("class:bottom-toolbar.text", f" {_joined(parts)}")]
    if warning:
        before = SEPARATOR if any(parts.values()) else ""
        line.append(("class:bottom-toolbar.warning", before + warning))
    return line


def _joined(parts: Mapping[str, str]) -> str:
    return SEPARATOR.join(filter(None, parts.values()))


def _cut(name: str, excess: int) -> str:
    """Return a name that is shorter by ``excess`` columns, as far as it stays recognizable."""
    text = Text(name)
    text.truncate(max(cell_len(name) - excess, _NAME_MIN), overflow="ellipsis")
    return text.plain


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
