"""The tokens that continue a prompt, as they are sampled: text, stop strings, limits, end."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from llama_chat.generation.constraints import Constraint, Grammar
from llama_chat.generation.events import Finish, FinishReason, Timings, Token, Usage
from llama_chat.generation.likeliest import Likeliest, Search
from llama_chat.generation.logprobs import Scored
from llama_chat.generation.sampling import SampledToken, Sampler
from llama_chat.generation.stopping import StopStrings, stop_strings
from llama_chat.tokenizers.base import Tokenizer
from llama_chat.tokenizers.streaming import Leading, StreamingDecoder


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt to continue, and where to end.

    Raises:
        ValueError: if ``max_tokens`` is no whole number of at least 1, or ``stop`` one text.
    """

    ids: Sequence[int]
    """The prompt, at least one token."""
    sampler: Sampler
    max_tokens: int | None = None
    """Limit on the tokens generated, at least 1; None leaves the context as the only limit."""
    stop: Sequence[str] = ()
    """Texts to end before, in which control tokens may stand as well; one that is a control token
    counts as an end token."""
    end_ids: Iterable[int] = ()
    """End tokens in addition to those of the model."""
    n_begun: int = 0
    """Number of tokens at the end of ``ids`` that begin the text to continue. Their text is not
    yielded again, except for a character that they leave incomplete."""
    leading: Leading = "keep"
    """Treatment of leading white space, see ``StreamingDecoder``."""
    grammar: Grammar | None = None
    """Grammar that the text must meet, unless it is cut off; leading white space stays then."""
    choices: Sequence[Sequence[int]] = ()
    """Continuations to score, each at least one token, in place of generating one."""

    def __post_init__(self) -> None:
        limit = self.max_tokens
        if limit is not None and not (isinstance(limit, int) and limit >= 1):
            raise ValueError(f"max_tokens is {limit}, not a whole number of 1 or more")
        stop_strings(self.stop)


class Continuation:
    """State of one generation between its forward passes."""

    def __init__(
        self, request: Request, tokenizer: Tokenizer, end_ids: frozenset[int], context: int
    ) -> None:
        """Begin after the prompt.

        Args:
            request: the prompt and its limits.
            tokenizer: of the model.
            end_ids: end tokens of the model.
            context: context length in tokens.

        Raises:
            UsageError: if no text of this vocabulary can meet the grammar.
        """
        self.ids = list(request.ids)
        """The prompt, and the tokens sampled so far."""
        self.n_prompt = len(self.ids)
        self.reason: FinishReason | None = None
        """Reason of its end; None while it goes on."""
        self.n_reused = 0
        """Tokens of the prompt that needed no forward pass."""
        self.choices = request.choices
        """Continuations to score, in place of sampling."""
        self._scored: Sequence[Scored] = ()
        self._request = request
        self._tokenizer = tokenizer
        grammar = request.grammar
        self._decoder = StreamingDecoder(tokenizer, "keep" if grammar else request.leading)
        self._decoder.decode(self.ids[self.n_prompt - request.n_begun :])
        control_ids = tokenizer.control_ids
        stop = request.stop
        self._ends = end_ids.union(
            request.end_ids, (control_ids[s] for s in stop if s in control_ids)
        )
        self._stops = StopStrings(stop, control_ids)
        self._constraint = grammar.start(tokenizer, self._ends) if grammar else Constraint()
        self._context = context
        self._stopped_at: str | None = None
        self._ended_by: int | None = None
        self._began = time.perf_counter()
        self._prefilled: float | None = None
        self._first: float | None = None
        self._last = 0.0

    @property
    def max_length(self) -> int:
        """Most tokens that ``ids`` may have at the end."""
        limit = 0 if self.choices else self._request.max_tokens
        return self._context if limit is None else min(self._context, self.n_prompt + limit)

    @property
    def is_forced(self) -> bool:
        """True if the grammar says which token is next, so that no logits are needed."""
        return bool(self._constraint.forced())

    @property
    def search(self) -> Search | None:
        """The likeliest tokens of the next logits that ``sample`` chooses from; None for none."""
        return None if self.choices or self.is_forced else self._request.sampler.search

    def _choose(self, logits: Tensor, found: Likeliest | None) -> SampledToken:
        """Return the token that the grammar forces, or else a sampled one that it allows."""
        if forced := self._constraint.forced():
            return SampledToken(forced[0], 0.0)
        return self._request.sampler(logits, self.ids, self._constraint.mask(), found)

    def sample(self, logits: Tensor, found: Likeliest | None = None) -> Token | None:
        """Choose the next token from the ``logits`` ``(vocab_size,)`` that follow ``ids``.

        Args:
            logits: the logits.
            found: what ``search`` finds in them, if that is known already.

        Returns:
            The token; None if it is an end token. ``reason`` is set if it is the last one.
        """
        self._prefilled = self._prefilled or time.perf_counter()
        token_id, logprob, alternatives = self._choose(logits, found)
        self._last = time.perf_counter()
        self._first = self._first or self._last
        if token_id in self._ends:
            self.reason, self._ended_by = "stop", token_id
            return None
        self.ids.append(token_id)
        self._constraint.accept(token_id)
        text = self._decoder.push(token_id)
        is_hidden = not self._tokenizer.token_bytes(token_id)
        text, self._stopped_at = self._stops.push(text, token_id if is_hidden else None)
        limit = self._request.max_tokens
        if self._stopped_at is not None or self._constraint.is_finished:
            self.reason = "stop"
        elif limit is not None and len(self.ids) - self.n_prompt >= limit:
            self.reason = "length"
        elif len(self.ids) >= self._context:
            self.reason = "context"
        return Token(token_id, text, logprob, alternatives)

    def choose(self, scored: Sequence[Scored]) -> None:
        """Take the scores of the choices, which is the end."""
        self._prefilled = self._first = self._last = time.perf_counter()
        self.reason, self._scored = "stop", scored

    def finish(self, n_drafted: int = 0, n_accepted: int = 0) -> Finish:
        """Return the last event; a continuation that goes on is interrupted."""
        held = ""
        if self._stopped_at is None:
            certain, self._stopped_at = self._stops.push(self._decoder.flush(), self._ended_by)
            held = certain + self._stops.flush()
        n_new = len(self.ids) - self.n_prompt
        return Finish(
            self.reason or "interrupted",
            held,
            Usage(self.n_prompt, self.n_reused, n_new, n_drafted, n_accepted),
            self._timings(),
            self._request.sampler.seed,
            self._stopped_at,
            self._constraint.is_complete if self._request.grammar else None,
            self._scored,
        )

    def _timings(self) -> Timings:
        prefilled = self._prefilled or time.perf_counter()
        first = self._first or prefilled
        return Timings(prefilled - self._began, max(self._last - first, 0.0), first - self._began)
