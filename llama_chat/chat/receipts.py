"""Receipts: all that determines an answer, written to its JSON and read back for a replay."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from llama_chat import __version__
from llama_chat.documents import parse_json
from llama_chat.errors import LlamaChatError, UsageError
from llama_chat.generation.constraints import Grammar
from llama_chat.generation.events import Finish, Token
from llama_chat.settings.definitions import SETTINGS
from llama_chat.settings.sampling import Sampling
from llama_chat.settings.settings import Settings

if TYPE_CHECKING:
    from llama_chat.chat.local_session import LocalSession
    from llama_chat.chat.templates import ChatTemplate
    from llama_chat.generation.continuation import Request
    from llama_chat.llama import Llama
    from llama_chat.tokenizers.streaming import Leading

Describe = Callable[[Sequence[Token], Finish], dict[str, Any]]
"""Function that describes an answer for its JSON."""


LOAD_SETTINGS = ("device", "dtype", "quantize", "kv_dtype", "context", "threads")
"""Settings that a replay loads the model with."""


@dataclass(frozen=True, slots=True)
class GenerationInputs:
    """All that determined an answer, besides the model and the seed."""

    ids: Sequence[int]
    """The prompt."""
    sampling: Sampling
    max_tokens: int | None
    stop: Sequence[str]
    end_ids: Sequence[int]
    """End tokens of the chat template."""
    leading: "Leading"
    grammar: Grammar | None
    template: dict[str, str] | None
    """Name and hash of the chat template."""

    @classmethod
    def of_session(cls, session: "LocalSession") -> "GenerationInputs":
        """Return the inputs of the last reply of a session."""
        return cls(
            session.prompt_ids,
            session.sampler.sampling,
            session.max_tokens,
            session.stop,
            sorted(session.template.end_ids),
            "strip",
            session.grammar,
            _identity(session.template),
        )

    @classmethod
    def of_request(
        cls, request: "Request | LlamaChatError", template: "ChatTemplate | None" = None
    ) -> "GenerationInputs":
        """Return the inputs of a request, encoded with ``template`` if one is given.

        Raises:
            LlamaChatError: if the request is the error of its encoding.
        """
        if isinstance(request, LlamaChatError):
            raise request
        return cls(
            request.ids,
            request.sampler.sampling,
            request.max_tokens,
            request.stop,
            sorted(request.end_ids),
            request.leading,
            request.grammar,
            None if template is None else _identity(template),
        )


def _identity(template: "ChatTemplate") -> dict[str, str]:
    return {"name": template.name, "hash": template.fingerprint}


def describe(
    llama: "Llama", loaded: Settings, asked: Callable[[], GenerationInputs], n_logprobs: int
) -> Describe:
    """Return the function that adds a receipt, and log-probabilities, to the JSON of an answer.

    Args:
        llama: the model.
        loaded: the settings that it was loaded with.
        asked: returns the inputs of the answer, once it is written.
        n_logprobs: number of the most likely tokens at each position; 0 for no log-probabilities.
    """

    def described(tokens: Sequence[Token], finish: Finish) -> dict[str, Any]:
        known = asked()
        receipt = {
            "version": __version__,
            "fingerprint": fingerprint_of(llama),
            "kernel": llama.kernel,
            "path": str(Path(llama.checkpoint.path).absolute()),
            "load": {name: loaded.value(name) for name in LOAD_SETTINGS},
            "template": known.template,
            "sampling": asdict(known.sampling) | {"seed": finish.seed},
            "max_tokens": known.max_tokens,
            "stop": list(known.stop),
            "end_ids": list(known.end_ids),
            "leading": known.leading,
            "grammar": None if known.grammar is None else asdict(known.grammar),
            "prompt_ids": list(known.ids),
            "ids": [token.id for token in tokens],
        }
        if not n_logprobs:
            return {"receipt": receipt}
        piece = llama.tokenizer.piece
        logprobs = [logprob_json(piece, each, n_logprobs) for each in tokens]
        return {"logprobs": logprobs, "receipt": receipt}

    return described


def fingerprint_of(llama: "Llama") -> str:
    """Return the fingerprint; empty if the files cannot be read, so that the answer succeeds."""
    try:
        return llama.fingerprint
    except LlamaChatError:
        return ""


def logprob_json(piece: Callable[[int], str], token: Token, n: int) -> dict[str, Any]:
    """Describe a token and the ``n`` most likely ones at its position."""

    def one(token_id: int, logprob: float) -> dict[str, Any]:
        return {"id": token_id, "piece": piece(token_id), "logprob": round(logprob, 6)}

    return one(token.id, token.logprob) | {"top": [one(*each) for each in token.alternatives[:n]]}


@dataclass(frozen=True, slots=True)
class Receipt:
    """A receipt that was read and checked."""

    where: str
    """The file, for errors."""
    version: str
    fingerprint: str
    kernel: str
    path: str
    load: dict[str, Any]
    sampling: Sampling
    max_tokens: int
    stop: tuple[str, ...]
    end_ids: tuple[int, ...]
    leading: "Leading"
    grammar: Grammar | None
    prompt_ids: tuple[int, ...]
    ids: tuple[int, ...]
    cached_tokens: int
    """Tokens of the prompt that were in the cache."""


def parse_receipt(line: str, where: str) -> Receipt:
    """Read the receipt in the JSON of an answer.

    Raises:
        UsageError: about ``where``, if there is none, or it is invalid.
    """
    advice = "give what --json wrote"
    try:
        answer = parse_json(line)
    except ValueError as error:
        raise UsageError(where, str(error), advice) from None
    found = answer.get("receipt") if isinstance(answer, dict) else None
    if not isinstance(found, dict):
        raise UsageError(where, "it has no receipt", advice)
    try:
        return _checked(found, answer["cached_tokens"], where)
    except (KeyError, TypeError, ValueError) as error:
        why = f"it lacks {error}" if isinstance(error, KeyError) else f"it is damaged ({error})"
        raise UsageError(where, why[:120], advice) from None


def _checked(found: dict[str, Any], cached_tokens: object, where: str) -> Receipt:
    grammar = found["grammar"]
    if grammar is not None:
        grammar = Grammar(_text(grammar["what"]), _text(grammar["source"])).checked()
    load = {
        name: None if value is None else SETTINGS[name].check(value)
        for name, value in dict(found["load"]).items()
        if name in LOAD_SETTINGS
    }
    if found["leading"] not in ("keep", "dummy", "strip"):
        raise ValueError("unknown treatment of leading white space")
    if not isinstance(cached_tokens, int):
        raise TypeError("cached_tokens")
    return Receipt(
        where=where,
        version=_text(found["version"]),
        fingerprint=_text(found["fingerprint"]),
        kernel=_text(found["kernel"]),
        path=cast("str", SETTINGS["model"].check(found["path"])),
        load=load,
        sampling=Sampling(**found["sampling"]),
        max_tokens=cast("int", SETTINGS["max_tokens"].check(found["max_tokens"])),
        stop=cast("tuple[str, ...]", SETTINGS["stop"].check(found["stop"])),
        end_ids=_ids(found["end_ids"]),
        leading=found["leading"],
        grammar=grammar,
        prompt_ids=_ids(found["prompt_ids"]),
        ids=_ids(found["ids"]),
        cached_tokens=cached_tokens,
    )


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("a field is not text")
    return value


def _ids(value: object) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(i) is int and 0 <= i < 2**31 for i in value):
        raise ValueError("its ids are not a list of token ids")
    return tuple(value)
