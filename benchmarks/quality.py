"""Measure the distance from the exact model: how much the next-token distributions differ.

    python -m benchmarks.quality [--model NAME] [--llama-cpp PYTHON] [--transformers PYTHON]
        [--text FILE] [--positions 2048] [--threads 2] [--json FILE]

Every program reads the same ids of a real text, in chunks as in prefill and one by one as in
decode. The exact model is the same file with weights unpacked to float32, computed in float32. Each
position gives KL(exact || program), the Kullback-Leibler divergence in nats, and whether both have
the same most likely token. ``PYTHON`` is explained in ``benchmarks.programs``.
"""

import argparse
import hashlib
import json
import math
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.programs import OURS, Program, add_options, interpreters, start
from llama_chat.generation.backend import PREFILL_CHUNK
from llama_chat.library import find_model
from llama_chat.loading.formats import load_tokenizer, open_checkpoint
from llama_chat.tokenizers.base import Tokenizer

TEXT = Path(__file__).with_name("reading.txt")
"""Fixed text of prose and code, so that the figures of two days can be compared."""

WINDOW = 2048
"""Tokens that are read into one cache, unless the model's context is shorter."""

PIECE = 128
"""Positions compared at a time: float64 copies of all logits would take gigabytes."""

STEPS = {"in chunks": PREFILL_CHUNK, "one by one": 1}
"""Tokens per forward pass, by the name of the mode."""

EXACT: dict[str, Any] = {"quantize": "none", "dtype": "float32"}
"""Options of ``load`` for the exact model."""

FIGURES = "KL mean    median     99 %       same top  perplexity"
"""Head of the table."""

OPTIONS: dict[str, dict[str, Any]] = {"llama.cpp": {"logits_all": True}}
"""Options with which a program gives the logits of every position."""


@dataclass(frozen=True, slots=True)
class Text:
    """Ids of a text, in windows that are each read into an empty cache."""

    windows: Sequence[Sequence[int]]

    @property
    def n_positions(self) -> int:
        """Tokens in all windows."""
        return sum(len(window) for window in self.windows)

    @property
    def digest(self) -> str:
        """Hash of the ids, by which results can be matched."""
        return hashlib.sha256(json.dumps(self.windows).encode()).hexdigest()[:12]

    @property
    def next_ids(self) -> Tensor:
        """Next id at each position, ``(n_positions,)``; -1 at the end of a window."""
        return torch.tensor([i for window in self.windows for i in (*window[1:], -1)])


@dataclass(frozen=True, slots=True)
class Distance:
    """Distance of a program from the exact model, over all positions of a text."""

    program: str
    reads: str
    """Key of ``STEPS``."""
    kl_mean: float
    kl_median: float
    kl_99: float
    """The 99th percentile."""
    same_top: float
    """Share of positions with the same most likely token."""
    perplexity: float

    def __str__(self) -> str:
        """Return the figures, in columns below ``FIGURES``."""
        return (
            f"{self.kl_mean:<9.3g}  {self.kl_median:<9.3g}  {self.kl_99:<9.3g}"
            f"  {self.same_top:8.2%}  {self.perplexity:10.4f}"
        )


@dataclass(slots=True)
class _Positions:
    """Results of each position compared so far."""

    kl: list[Tensor] = field(default_factory=list)
    same_top: list[Tensor] = field(default_factory=list)
    surprise: list[Tensor] = field(default_factory=list)
    """Negative log-probability of the next token of the text."""

    def add(self, exact: Tensor, other: Tensor, next_ids: Tensor) -> None:
        """Compare logits ``(n, vocab_size)``; a next id below 0 means that there is none."""
        p, q = exact.double().log_softmax(-1), other.double().log_softmax(-1)
        self.kl.append((p.exp() * (p - q)).sum(-1))
        self.same_top.append(p.argmax(-1) == q.argmax(-1))
        known = next_ids >= 0
        self.surprise.append(-q[known, next_ids[known]])

    def distance(self, program: str, reads: str) -> Distance:
        """Summarize all positions."""
        kl = torch.cat(self.kl)
        return Distance(
            program,
            reads,
            float(kl.mean()),
            float(kl.median()),
            float(kl.quantile(0.99)),
            float(torch.cat(self.same_top).double().mean()),
            math.exp(torch.cat(self.surprise).mean()),
        )


def encode(text: str, tokenizer: Tokenizer, window: int, n_positions: int) -> Text:
    """Encode the first ``n_positions`` ids of ``text``; windows begin with BOS if prompts do."""
    head = [tokenizer.bos_id] if tokenizer.add_bos and tokenizer.bos_id is not None else []
    ids, step = tokenizer.encode(text)[:n_positions], window - len(head)
    return Text([head + ids[start : start + step] for start in range(0, len(ids), step)])


def write_logits(program: Program, text: Text, step: int, to: Path) -> None:
    """Let a program read the text and write its logits ``(n_positions, vocab_size)`` to a file."""
    to.unlink(missing_ok=True)
    for window in text.windows:
        program.ask("logits", ids=window, step=step, to=str(to))


def compare(exact: Path, other: Path, text: Text) -> _Positions:
    """Compare two files of logits."""
    n = text.n_positions
    size = exact.stat().st_size // 4
    if other.stat().st_size // 4 != size:
        raise SystemExit("the programs do not see the same vocabulary in this model")
    files = [
        torch.from_file(str(file), shared=False, size=size, dtype=torch.float32).view(n, -1)
        for file in (exact, other)
    ]
    return compare_logits(files[0], files[1], text)


def compare_logits(exact: Tensor, other: Tensor, text: Text) -> _Positions:
    """Compare logits ``(n_positions, vocab_size)``."""
    next_ids, found = text.next_ids, _Positions()
    for first in range(0, text.n_positions, PIECE):
        rows = slice(first, first + PIECE)
        found.add(exact[rows], other[rows], next_ids[rows])
    return found


def measure(model: Path, text: Text, options: argparse.Namespace) -> Iterator[Distance]:
    """Let all programs read the text, the exact model first."""
    settings = {"context": max(map(len, text.windows)), "threads": options.threads}
    with tempfile.TemporaryDirectory() as folder:
        exact, other = Path(folder) / "exact", Path(folder) / "other"
        with start(OURS, sys.executable, model, **settings, **EXACT) as program:
            write_logits(program, text, PREFILL_CHUNK, exact)
        yield compare(exact, exact, text).distance("exact", "in chunks")
        for name, python in interpreters(options).items():
            with start(name, python, model, **settings, **OPTIONS.get(name, {})) as program:
                for reads, step in STEPS.items():
                    write_logits(program, text, step, other)
                    yield compare(exact, other, text).distance(name, reads)


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="smollm2-135m", help="a path or a name")
    add_options(parser)
    parser.add_argument("--text", type=Path, default=TEXT)
    parser.add_argument("--positions", type=int, default=WINDOW)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = find_model(options.model)
    checkpoint = open_checkpoint(model)
    window = min(WINDOW, checkpoint.config.context_length)
    tokenizer = load_tokenizer(checkpoint)
    text = encode(options.text.read_text(), tokenizer, window, options.positions)
    print(f"{model.name}, {text.n_positions} positions of {options.text.name} ({text.digest})")
    print(f"program       reads       {FIGURES}")
    found = []
    for distance in measure(model, text, options):
        found.append(distance)
        print(f"{distance.program:<12}  {distance.reads:<10}  {distance}", flush=True)
    if options.json:
        report = {
            "model": model.name,
            "positions": text.n_positions,
            "ids": text.digest,
            "threads": options.threads,
            "distances": [asdict(distance) for distance in found],
        }
        options.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
