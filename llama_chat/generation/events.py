"""Events that a generation yields, and hooks to observe and stop it."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from llama_chat.generation.logprobs import Alternatives, Scored

FinishReason = Literal["stop", "length", "context", "interrupted"]

Counter = Literal["engine", "server", "chunks"]
"""Source of token counts: our engine; the server, which is believed; or the parts of the answer,
which stand for tokens where nothing counted these."""


@dataclass(frozen=True, slots=True)
class Token:
    """One sampled token."""

    id: int
    text: str
    """Text completed by it; empty while a character or a possible stop string is incomplete."""
    logprob: float
    """Natural logarithm of its probability under the model, before any sampling setting; 0 for a
    token that a grammar forced."""
    alternatives: Alternatives = ()
    """The most likely tokens at that position, if the sampler was made ``with_logprobs``."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of a generation."""

    prompt_tokens: int
    cached_tokens: int
    """Prompt tokens that were in the cache already."""
    completion_tokens: int
    drafted_tokens: int = 0
    """Tokens evaluated as drafts; see ``speculation.py``."""
    accepted_tokens: int = 0
    """Drafted tokens that were then sampled."""
    counted_by: Counter = "engine"


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds that a generation took."""

    prefill_s: float
    decode_s: float
    """Seconds from the first sampled token to the last."""
    ttft_s: float
    """Seconds from the call to the first sampled token."""


@dataclass(frozen=True, slots=True)
class Finish:
    """The end of a generation, always its last event."""

    reason: FinishReason
    text: str
    """Text that was still held back."""
    usage: Usage
    timings: Timings
    seed: int | None
    """Seed of the random numbers; None if a server drew it."""
    stopped_at: str | None = None
    """Stop string that ended it, if one did."""
    meets_grammar: bool | None = None
    """True if the text meets the grammar that it was constrained by; None without one."""
    scored: Sequence[Scored] = ()
    """Scores of the choices, where nothing was generated."""

    @property
    def prefill_tok_s(self) -> float:
        """Prompt tokens evaluated per second."""
        evaluated = self.usage.prompt_tokens - self.usage.cached_tokens
        return evaluated / self.timings.prefill_s if self.timings.prefill_s else 0.0

    @property
    def decode_tok_s(self) -> float:
        """Tokens per second after the first one."""
        steps = self.usage.completion_tokens - 1
        return steps / self.timings.decode_s if steps > 0 and self.timings.decode_s else 0.0

    def summary(self) -> str:
        """Format counts and speeds in one line."""
        usage = self.usage
        drafted = f" ({usage.accepted_tokens} from drafts)" if usage.accepted_tokens else ""
        about = "" if usage.counted_by == "engine" else "≈"
        prompt = f"{about}{usage.prompt_tokens} prompt tokens ({usage.cached_tokens} cached) · "
        return (
            f"{'' if usage.counted_by == 'chunks' else prompt}"
            f"{about}{usage.completion_tokens} written{drafted} · "
            f"first after {self.timings.ttft_s:.2f} s · {self.decode_tok_s:.1f} tokens/s"
        )


def finish_facts(finish: Finish) -> dict[str, Any]:
    """Return the last event of a continuation as JSON, without its text."""
    return {name: value for name, value in asdict(finish).items() if name != "text"}


def finish_of(facts: dict[str, Any], text: str) -> Finish:
    """Return the event that ``finish_facts`` described, with its ``text``.

    Raises:
        KeyError, TypeError, ValueError: if it is another object.
    """
    parts = {
        "usage": Usage(**facts["usage"]),
        "timings": Timings(**facts["timings"]),
        "scored": tuple(Scored(**each) for each in facts.get("scored", ())),
    }
    return Finish(text=text, **{**facts, **parts})


def token_of(facts: dict[str, Any]) -> Token:
    """Return a token from its fields as JSON.

    Raises:
        KeyError, TypeError, ValueError: if it is another object.
    """
    others = tuple((int(other), float(logprob)) for other, logprob in facts["alternatives"])
    return Token(int(facts["id"]), str(facts["text"]), float(facts["logprob"]), others)


Event = Token | Finish


@dataclass(frozen=True, slots=True)
class Hooks:
    """Callbacks to observe and stop a load, a prefill or a generation."""

    should_stop: Callable[[], bool] | None = None
    """Polled for each weight, each token and between layers; True ends the work."""
    on_progress: Callable[[int, int], None] | None = None
    """Called with what is done so far and what there is in all: prompt tokens evaluated, or bytes
    of weights loaded."""
