"""Commands that show tokens, the KV cache, speeds, and alternatives to generated tokens."""

import math
from bisect import bisect_right
from collections.abc import Iterable
from itertools import accumulate
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.text import Text

from llama_chat.errors import NothingYetError, UsageError, counted
from llama_chat.generation.logprobs import TokenLogprobs
from llama_chat.settings.definitions import SETTINGS
from llama_chat.terminal.chat import Chat
from llama_chat.terminal.commands.command import Command, Value, message_of, whole_number
from llama_chat.terminal.commands.settings import set_value, show_value
from llama_chat.terminal.sanitizer import sanitize

if TYPE_CHECKING:
    from llama_chat.chat.context_use import ContextRow
    from llama_chat.chat.session import ChatSession

N_UNCERTAIN = 8
"""Number of least certain tokens that ``/why`` lists."""


def _context(chat: Chat, argument: str) -> None:
    if argument:
        set_value(chat, SETTINGS["context"], argument, "/context")
        show_value(chat, SETTINGS["context"])
        return
    session = chat.wait_for_session()
    rows = session.context_rows()
    chat.renderer.table(
        ("#", "role", "tokens", "cached", "if full", "text"),
        (
            (
                str(row.message.number or ""),
                row.message.role,
                str(len(row.ids)),
                str(row.cached),
                _if_full(row),
                row.message.preview,
            )
            for row in rows
        ),
        right=("#", "tokens", "cached"),
    )
    if dropped := chat.conversation.n_dropped:
        turns = "turn is" if dropped == 1 else f"{dropped} turns are"
        chat.renderer.note(f"the oldest {turns} no longer shown to the model")
    used, total = sum(len(row.ids) for row in rows), session.context
    if total is not None:
        chat.renderer.note(f"{used} of {counted(total, 'token')}, {max(total - used, 0)} free")


def _if_full(row: "ContextRow") -> str:
    """Describe what happens to a message when the context is full."""
    if not row.message.number:
        return "stays"
    return "goes next" if row.goes_next else ""


def _stats(chat: Chat, argument: str) -> None:
    if chat.last is None:
        raise NothingYetError("/stats", "reply")
    usage, timings = chat.last.usage, chat.last.timings
    evaluated = chat.wait_for_session().n_evaluated
    chat.renderer.table(
        ("last reply", ""),
        (
            ("ended by", chat.last.reason),
            ("prompt_tokens", str(usage.prompt_tokens)),
            ("cached_tokens", str(usage.cached_tokens)),
            ("completion_tokens", str(usage.completion_tokens)),
            ("drafted_tokens", str(usage.drafted_tokens)),
            ("accepted_tokens", str(usage.accepted_tokens)),
            ("ttft_s", f"{timings.ttft_s:.3f}"),
            ("prefill_tok_s", f"{chat.last.prefill_tok_s:.1f}"),
            ("decode_tok_s", f"{chat.last.decode_tok_s:.1f}"),
            ("seed", "the server's" if chat.last.seed is None else str(chat.last.seed)),
            *([] if usage.counted_by == "engine" else [("counted by", usage.counted_by)]),
            *([] if evaluated is None else [("tokens evaluated in total", str(evaluated))]),
        ),
    )


def _tokens(chat: Chat, argument: str) -> None:
    session = chat.wait_for_session()
    message = message_of(chat, argument, "/tokens") if argument else chat.conversation.head
    if message is None:
        raise NothingYetError("/tokens")
    row = next((row for row in session.context_rows() if row.message is message), None)
    if row is None:
        raise UsageError(
            "/tokens",
            f"the model is not shown message {message.number}",
            "/context lists what it is",
        )
    cells = [f"{token_id:>6} {sanitize(_quoted(session, token_id))}" for token_id in row.ids]
    _columns(chat, cells)
    chat.renderer.note(
        f"message {message.number}, with the template around it: {counted(len(cells), 'token')}"
    )


def _columns(chat: Chat, cells: list[str]) -> None:
    """Write cells side by side, in rows."""
    width = min(max(map(cell_len, cells), default=0), 40) + 2
    n_columns = max((chat.renderer.console.width - 1) // width, 1)
    for start in range(0, len(cells), n_columns):
        row = cells[start : start + n_columns]
        chat.renderer.line(Text("".join(c + " " * (width - cell_len(c)) for c in row).rstrip()))


def _why(chat: Chat, argument: str) -> None:
    session = chat.wait_for_session()
    reply = chat.conversation.head
    if reply is None or reply.role == "user":
        raise NothingYetError("/why", "reply")
    logprobs = reply.logprobs
    if logprobs is None or not len(logprobs):
        raise UsageError(
            "/why",
            "no probabilities of the last reply",
            "they are kept for replies of this session, where the engine gives them",
        )
    if not argument:
        _show_certainty(chat, session, logprobs)
    else:
        for index in _token_indices(session, logprobs, argument):
            _show_alternatives(chat, session, logprobs, index)


def _token_indices(session: "ChatSession", logprobs: TokenLogprobs, argument: str) -> list[int]:
    """Find a token by its number from 1, or the first three in which the given text begins."""
    if argument.isdecimal():
        number = whole_number(argument, "/why", "a token")
        if number > len(logprobs):
            why = f"the reply has {counted(len(logprobs), 'token')}"
            raise UsageError("/why", why, "/why shows them")
        return [number - 1]
    # Bytes, since a token may be a part of a character.
    pieces = [session.token_bytes(logprobs.token(i)[0]) for i in range(len(logprobs))]
    said, sought = b"".join(pieces), argument.encode("utf-8", "replace")
    ends = list(accumulate(map(len, pieces)))
    places: list[int] = []
    at = said.find(sought)
    while at >= 0 and len(places) < 3:
        places.append(bisect_right(ends, at))
        at = said.find(sought, ends[places[-1]])
    if not places:
        raise UsageError("/why", f"the reply does not say {argument[:40]!r}", "/why shows it")
    return places


def _show_certainty(chat: Chat, session: "ChatSession", logprobs: TokenLogprobs) -> None:
    """Write the reply coloured by token probability, and a table of its least certain tokens."""
    text = Text()
    for index in range(len(logprobs)):
        token_id, logprob = logprobs.token(index)
        text.append(sanitize(_piece(session, token_id)), _probability_style(math.exp(logprob)))
    chat.renderer.line(text)
    order = sorted(range(len(logprobs)), key=lambda index: logprobs.token(index)[1])
    rows = []
    for index in order[:N_UNCERTAIN]:
        token_id, logprob = logprobs.token(index)
        others = [
            f"{_quoted(session, other)} {math.exp(p):.0%}"
            for other, p in logprobs.alternatives(index)
            if other != token_id
        ]
        rows.append(
            (
                str(index + 1),
                _quoted(session, token_id),
                f"{math.exp(logprob):.0%}",
                ", ".join(others[:3]),
            )
        )
    chat.renderer.table(
        ("#", "token", "probability", "alternatives"), rows, right=("#", "probability")
    )
    chat.renderer.note(
        f"the least certain of {counted(len(logprobs), 'token')}; "
        "/why N lists the alternatives to token N"
    )


def _probability_style(probability: float) -> str:
    """Choose the style of a token: plain if probable, more visible the less it is."""
    return "" if probability > 0.7 else "bold" if probability > 0.3 else "bold red"


def _show_alternatives(
    chat: Chat, session: "ChatSession", logprobs: TokenLogprobs, index: int
) -> None:
    """Write the likeliest tokens at one position, with bars."""
    written, logprob = logprobs.token(index)
    before = "".join(
        _piece(session, logprobs.token(i)[0]) for i in range(max(index - 12, 0), index)
    )
    chat.renderer.note(f"token {index + 1}, after …{before[-40:]}".replace("\n", "⏎"))
    entries = list(logprobs.alternatives(index))
    if written not in [token_id for token_id, _ in entries]:
        entries.append((written, logprob))
    chat.renderer.table(
        ("", "id", "token", "probability", ""),
        (
            (
                "●" if token_id == written else "",
                str(token_id),
                _quoted(session, token_id),
                f"{math.exp(p):.2%}",
                "█" * round(20 * math.exp(p)) or "▏",
            )
            for token_id, p in entries
        ),
        right=("id", "probability"),
    )


def _piece(session: "ChatSession", token_id: int) -> str:
    return session.token_bytes(token_id).decode("utf-8", "replace")


def _quoted(session: "ChatSession", token_id: int) -> str:
    """Quote the text of a token, the bytes of a part of one, or the name of a control token."""
    data = session.token_bytes(token_id)
    try:
        return repr(data.decode() or session.piece(token_id))
    except UnicodeDecodeError:
        return f"<{data.hex(' ')}>"


def _numbers(chat: Chat, argument: str) -> Iterable[Value]:
    return [(str(message.number), message.preview) for message in chat.conversation.path()]


COMMANDS = (
    Command(
        "context",
        "[n]",
        "Tokens of each message, cached and next to be dropped; or set the context length.",
        "/context",
        _context,
    ),
    Command("stats", "", "Counts and speeds of the last reply.", "/stats", _stats),
    Command(
        "tokens",
        "[n]",
        "Ids and pieces of the last message, or of message n.",
        "/tokens 1",
        _tokens,
        _numbers,
    ),
    Command(
        "why",
        "[n|word]",
        "Probabilities of the last reply, and the alternatives at token n or at a word.",
        "/why 7",
        _why,
    ),
)
