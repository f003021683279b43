"""``llama-chat replay``: reproduction of an answer from its receipt."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llama_chat import __version__
from llama_chat.chat.prompt_files import read_prompt_text
from llama_chat.chat.receipts import LOAD_SETTINGS, Receipt, parse_receipt
from llama_chat.cli.loading import load_model
from llama_chat.cli.options import takes
from llama_chat.documents import parse_json
from llama_chat.errors import LlamaChatError, UsageError, counted
from llama_chat.settings.settings import Settings
from llama_chat.terminal import streams
from llama_chat.terminal.streams import AnswerWriter

if TYPE_CHECKING:
    from llama_chat.llama import Llama


@takes("model", "model_paths", *LOAD_SETTINGS, "quiet", "plain")
def replay(
    settings: Settings,
    file: Annotated[
        str, typer.Argument(metavar="FILE.json", help="Output of --json; `-` is stdin.")
    ],
    as_json: Annotated[
        bool, typer.Option("--json", help="Write one line of JSON per receipt.")
    ] = False,
) -> None:
    """Reproduce an answer from its receipt.

    If it differs, the first different token and the causes are reported. The model is loaded as it
    was then, except where flags say otherwise. A file may have several receipts, one in each line.
    """
    text = streams.read_stdin(must_fit=False) if file == "-" else read_prompt_text(Path(file))
    receipts = _parse(text, f"receipt {file!r}")
    llama, loaded = None, None
    first_error: LlamaChatError | None = None
    for receipt in receipts:
        ours = _as_then(settings, receipt)
        if llama is None or loaded != _load_values(ours):
            llama = None  # its memory is free before the next one is loaded
            llama, loaded = load_model(ours)[0], _load_values(ours)
        error = _replay(llama, receipt, ours, as_json=as_json)
        first_error = first_error or error
    if first_error is not None:
        raise first_error


def _parse(text: str, where: str) -> list[Receipt]:
    """Read one receipt, which may be indented, or one in each line.

    Raises:
        UsageError: if one is damaged, or there is none.
    """
    lines = [(n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise UsageError(where, "it is empty", "give what --json wrote")
    if len(lines) == 1 or _is_json(text):
        return [parse_receipt(text, where)]
    return [parse_receipt(line, f"{where}, line {n}") for n, line in lines]


def _is_json(text: str) -> bool:
    try:
        parse_json(text)
    except ValueError:
        return False
    return True


def _as_then(settings: Settings, receipt: Receipt) -> Settings:
    """Return the settings with those of the receipt where none is given."""
    for name, value in {**receipt.load, "model": receipt.path, "draft": None}.items():
        if not settings.is_given(name):
            settings = settings.change(name, value, receipt.where)
    return settings


def _load_values(settings: Settings) -> list[object]:
    return [settings.value(name) for name in ("model", *LOAD_SETTINGS)]


def _replay(
    llama: "Llama", receipt: Receipt, settings: Settings, *, as_json: bool
) -> LlamaChatError | None:
    """Write the answer again; return the error that says where it differs."""
    from llama_chat.generation.events import Token
    from llama_chat.generation.sampling import Sampler

    known = receipt.prompt_ids + receipt.ids
    if not receipt.prompt_ids or max(known) >= llama.backend.vocab_size:
        raise UsageError(receipt.where, "its ids are of another model", "name that with --model")
    writer = AnswerWriter(raw=as_json)
    events = llama.engine().generate(
        receipt.prompt_ids,
        Sampler(receipt.sampling),
        max_tokens=receipt.max_tokens,
        stop=receipt.stop,
        end_ids=receipt.end_ids,
        leading=receipt.leading,
        lookup=settings.lookup,
        grammar=receipt.grammar,
    )
    text, ids = "", []
    for event in events:
        text += event.text
        if not as_json:
            writer.write(event.text)
        if isinstance(event, Token):
            ids.append(event.id)
    writer.finish()
    at = _first_difference(ids, receipt.ids)
    causes = [] if at is None else _causes(llama, receipt)
    if as_json:
        report: dict[str, Any] = {"text": text, "ids": ids, "same": at is None, "differs_at": at}
        streams.write_json(report | {"causes": causes})
    if at is None:
        if not settings.quiet:
            streams.say(f"llama-chat: the same {counted(len(ids), 'token')} again")
        return None
    now, then = (_shown(llama, each, at) for each in (ids, receipt.ids))
    return LlamaChatError(receipt.where, f"token {at} is {now}, and was {then}", "; ".join(causes))


def _first_difference(now: list[int], then: tuple[int, ...]) -> int | None:
    """Return the index of the first token that differs, or of which one has none; else None."""
    shorter = min(len(now), len(then))
    found = (i for i in range(shorter) if now[i] != then[i])
    return next(found, None if len(now) == len(then) else shorter)


def _shown(llama: "Llama", ids: list[int] | tuple[int, ...], at: int) -> str:
    return f"{llama.tokenizer.piece(ids[at])!r} ({ids[at]})" if at < len(ids) else "the end"


def _causes(llama: "Llama", receipt: Receipt) -> list[str]:
    """Return what may have changed the answer, as far as the receipt says."""
    pairs = {
        "model": (receipt.fingerprint, llama.fingerprint),
        "kernel": (receipt.kernel, llama.kernel),
        "version of llama-chat": (receipt.version, __version__),
    }
    causes = [
        f"the {what} was {then} and is {now}" for what, (then, now) in pairs.items() if then != now
    ]
    if receipt.cached_tokens:
        causes.append(f"{counted(receipt.cached_tokens, 'token')} of the prompt were cached then")
    return causes or ["model, kernel and version are the same, so the receipt was edited"]
