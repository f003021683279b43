"""Checks of everything about a model, without running it."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from llama_chat.chat.conversation import Message
from llama_chat.chat.templates import ChatTemplate, choose_template
from llama_chat.checkpoints.base import Checkpoint, label
from llama_chat.checkpoints.weight_files import release_pages
from llama_chat.errors import LlamaChatError, ModelError, UsageError, counted
from llama_chat.gates import FETCH_AGAIN, gate
from llama_chat.generation.end_tokens import end_tokens
from llama_chat.kernels import mapped_files
from llama_chat.loading.formats import load_tokenizer, open_checkpoint
from llama_chat.loading.hashes import Expected, expected_hashes
from llama_chat.tokenizers.base import Tokenizer

Report = Callable[[int, int], None]
"""Callback with the bytes read so far and the bytes in all."""

State = Literal["ok", "failed", "skipped"]

_BITS = {
    torch.float32: (torch.int32, 0x7F800000),
    torch.float16: (torch.int16, 0x7C00),
    torch.bfloat16: (torch.int16, 0x7F80),
}
"""Integer type of the size of a float, and mask of its exponent: all ones if it is not finite."""

_PART = 2**20
"""Number of floats that are checked before their memory is released."""

_SAMPLES = ("Hello, world!", " naïve café", "1234 + 5678", "你好", "🦙", "</s><|im_end|>[/INST]")

_QUESTION = Message("user", "Hello!")
_DIALOGS = (
    (_QUESTION, Message("assistant", "Hi."), Message("user", "Why?")),
    (Message("system", "Be brief."), _QUESTION),
)
"""Dialogs for the template; it may refuse the second, which has a system message."""


@dataclass(frozen=True, slots=True)
class CheckResult:
    """Outcome of one check."""

    name: str
    state: State
    detail: str
    error: LlamaChatError | None = None
    """Error that it failed with, if it did."""


class _Skip(LlamaChatError):
    """A check does not apply."""


class ModelCheck:
    """All checks of one model; later ones use the results of earlier ones."""

    def __init__(self, path: Path) -> None:
        """Check the model at ``path``."""
        self.path = path
        self.report: Report = lambda done, total: None
        """Called after each part of the files that was read."""
        self.warnings: tuple[str, ...] = ()
        self._what = label(path)
        self._n_done = self._n_bytes = 0
        self._hashes: list[Expected] = []
        self._checkpoint: Checkpoint | None = None
        self._tokenizer: Tokenizer | None = None
        self._template: ChatTemplate | None = None

    def run(self) -> Iterator[CheckResult]:
        """Yield the outcome of each check, the fast ones first."""
        checks = {
            "headers": self._headers,
            "tokenizer": self._encoding,
            "template": self._rendering,
            "ends": self._ends,
            "hashes": self._digests,
            "weights": self._floats,
        }
        for name, check in checks.items():
            yield self._outcome(name, check)

    def _outcome(self, name: str, check: Callable[[], str]) -> CheckResult:
        try:
            with gate(self._what):
                return CheckResult(name, "ok", check())
        except LlamaChatError as error:
            if isinstance(error, _Skip):
                return CheckResult(name, "skipped", error.why)
            of = "" if error.what == self._what else f"{error.what}: "
            return CheckResult(name, "failed", f"{of}{error.why}", error)

    def _headers(self) -> str:
        """Check that all tensors are there, of the right shapes, and that nothing else is."""
        self._hashes = expected_hashes(self.path)
        self._n_bytes = sum(each.n_bytes for each in self._hashes)
        checkpoint = open_checkpoint(self.path)
        self._checkpoint, self.warnings = checkpoint, checkpoint.warnings
        self._n_bytes += checkpoint.n_bytes
        if surplus := checkpoint.surplus:
            why = f"{counted(surplus, 'byte', ',')} after the last tensor belong to nothing"
            raise ModelError(self._what, why, FETCH_AGAIN)
        n_tensors, n_layers = len(checkpoint.tensors), checkpoint.config.n_layers
        found = f"{counted(n_tensors, 'tensor')} of {counted(n_layers, 'layer')}"
        return f"{checkpoint.format}, {found}, as its numbers say"

    def _encoding(self) -> str:
        """Check the tokenizer against the weights: all ids must have a row in the embedding."""
        self._tokenizer = tokenizer = load_tokenizer(self._opened())
        ends = [i for i in (tokenizer.bos_id, tokenizer.eos_id) if i is not None]
        self._check_ids("BOS or EOS", [*ends, *tokenizer.control_ids.values()])
        control = set(tokenizer.control_ids.values())
        for text in _SAMPLES:
            ids = tokenizer.encode(text)
            self._check_ids(f"the text {text!r}", ids)
            if not control.isdisjoint(ids):
                why = f"the text {text!r} becomes a control token"
                raise ModelError(self._what, why, "take another conversion of the model")
        n_rows, rowless = self._opened().config.vocab_size, tokenizer.rowless
        found = f"{tokenizer.kind}, {counted(tokenizer.vocab_size, 'token')}"
        more = f", and {counted(len(rowless), 'token')} without one" if rowless else ""
        return f"{found} for {counted(n_rows, 'row')}{more}"

    def _rendering(self) -> str:
        """Check that the chat template renders dialogs, to ids that have a row."""
        checkpoint, tokenizer = self._opened(), self._loaded()
        try:
            template = choose_template("auto", checkpoint.templates, tokenizer)
        except UsageError as error:
            if checkpoint.templates.texts:
                raise
            raise _Skip(self._what, error.why, error.advice) from None
        n_tokens = 0
        for dialog in _DIALOGS:
            try:
                ids = template.render(dialog)
            except UsageError:
                if dialog[0].role == "system":
                    continue
                raise
            self._check_ids("the chat template", ids)
            n_tokens = n_tokens or len(ids)
        self._template = template
        return f"{template.name}, {counted(n_tokens, 'token')} for a dialog of three messages"

    def _ends(self) -> str:
        """Check that something ends a reply."""
        checkpoint, tokenizer = self._opened(), self._loaded()
        written = self._template.end_ids if self._template else ()
        ids = list(end_tokens(tokenizer, checkpoint.generation, written))
        self._check_ids("the end of a reply", ids)
        if not ids:
            raise _Skip(self._what, "no token ends a reply", "")
        return ", ".join(map(repr, map(tokenizer.piece, ids)))

    def _digests(self) -> str:
        """Check the files against the hashes that are known for them."""
        if not self._hashes:
            raise _Skip(self._what, "nothing states what they should be", "")
        for each in self._hashes:
            each.check(self._advance)
        n_files = counted(len(self._hashes), "file")
        return f"{n_files} as of {', '.join(sorted({each.where for each in self._hashes}))}"

    def _floats(self) -> str:
        """Check that every weight is finite, or every scale of quantized ones."""
        checkpoint = self._opened()
        for name, info in checkpoint.tensors.items():
            if not all(map(_is_finite, checkpoint.stored(name))):
                why = f"tensor {name} has numbers that are not finite"
                raise ModelError(self._what, why, FETCH_AGAIN)
            mapped_files.check()
            self._advance(info.n_bytes)
        kinds = ", ".join(sorted({info.type for info in checkpoint.tensors.values()}))
        return f"all finite, as {kinds}"

    def _opened(self) -> Checkpoint:
        if self._checkpoint is None:
            raise _Skip(self._what, "the headers cannot be read", "")
        return self._checkpoint

    def _loaded(self) -> Tokenizer:
        if self._tokenizer is None:
            raise _Skip(self._what, "the tokenizer cannot be read", "")
        return self._tokenizer

    def _check_ids(self, of: str, ids: Iterable[int]) -> None:
        n_rows = self._opened().config.vocab_size
        if odd := [i for i in ids if not 0 <= i < n_rows]:
            why = f"{of} has id {odd[0]}, past the {counted(n_rows, 'row')} of the embedding"
            raise ModelError(self._what, why, "take another conversion of the model")

    def _advance(self, n_bytes: int) -> None:
        self._n_done += n_bytes
        self.report(self._n_done, self._n_bytes)


def _is_finite(numbers: Tensor) -> bool:
    """True if no number is infinite or NaN; the memory of each part is released after its check.

    Args:
        numbers: mapped floats, with a stride if they are of blocks.
    """
    integers, exponent = _BITS[numbers.dtype]
    flat = numbers.view(integers).flatten()
    for start in range(0, len(flat), _PART):
        part = flat[start : start + _PART]
        finite = ((part.numpy() & exponent) != exponent).all()
        release_pages(part.as_strided(((len(part) - 1) * part.stride(0) + 1,), (1,)))
        if not finite:
            return False
    return True
