"""Measure what a grammar costs for each token, and what forced tokens save.

    python -m benchmarks.constraints [--model NAME] [--rounds 5] [--json FILE]

Each task answers under a grammar. Then the model decodes the same ids without it: a token is
sampled from the logits and replaced by the known one, so that both write the same text. It prints
the medians over the rounds of the seconds of both, and of their ratios within a round; above 1 is a
gain. Lookup is off in both.
"""

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from torch import Tensor

from llama_chat.chat.conversation import Message
from llama_chat.generation.constraints import Grammar
from llama_chat.generation.engine import Engine
from llama_chat.generation.events import Token
from llama_chat.generation.likeliest import Likeliest
from llama_chat.generation.sampling import SampledToken, Sampler
from llama_chat.library import find_model
from llama_chat.loading.plan import load
from llama_chat.settings.sampling import Sampling

N_NEW = 200


def _record(**properties: dict[str, object]) -> dict[str, object]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


PERSON = _record(
    first_name={"type": "string", "maxLength": 20},
    last_name={"type": "string", "maxLength": 20},
    date_of_birth={"type": "string", "format": "date"},
    address=_record(
        street={"type": "string", "maxLength": 20},
        postal_code={"type": "string", "pattern": "^[0-9]{5}$"},
        country={"enum": ["Germany", "France", "Netherlands", "Switzerland"]},
    ),
    newsletter_subscription={"type": "boolean"},
)

TASKS = {
    "free text": ("Tell me a story.", Grammar.regex(r"(?s:.){800,}")),
    "JSON text": (
        "Tell me a story.",
        Grammar.json_schema(_record(story={"type": "string", "minLength": 800})),
    ),
    "JSON record": ("Make up the data of a customer.", Grammar.json_schema(PERSON)),
    "JSON list": (
        "Make up three customers.",
        Grammar.json_schema(
            {"type": "array", "items": PERSON, "minItems": 3, "maxItems": 3},
        ),
    ),
}
"""Messages and the grammars of their answers: the first two force almost nothing."""


class Replay(Sampler):
    """Sampler that samples as usual, but returns the ids of a known text."""

    def __init__(self, sampling: Sampling, ids: Sequence[int]) -> None:
        super().__init__(sampling)
        self._known = iter(ids)

    def __call__(
        self,
        logits: Tensor,
        previous: Sequence[int],
        allowed: bytearray | None = None,
        found: Likeliest | None = None,
    ) -> SampledToken:
        """Sample, and return the next known id instead."""
        choice = super().__call__(logits, previous, allowed, found)
        return SampledToken(next(self._known), choice.logprob)


@dataclass
class Comparison:
    """Results of a task."""

    task: str
    tokens: int = 0
    forced: int = 0
    free: list[float] = field(default_factory=list)
    """Seconds without the grammar, by rounds."""
    constrained: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """Seconds without the grammar divided by those with it, the median over the rounds."""
        pairs = zip(self.free, self.constrained, strict=True)
        return statistics.median(free / constrained for free, constrained in pairs)

    def row(self) -> str:
        """Format the figures as a row of the table."""
        free, constrained = statistics.median(self.free), statistics.median(self.constrained)
        return (
            f"{self.task:<12} {self.tokens:6} {self.forced:6} {free:8.3f} {constrained:11.3f} "
            f"{self.ratio:6.2f}"
        )


def answer(
    engine: Engine, ids: list[int], sampler: Sampler, n_new: int, grammar: Grammar | None
) -> tuple[list[Token], float]:
    """Return the tokens of an answer to a prompt in the cache, and the seconds they took."""
    engine.prefill(ids)
    began = time.perf_counter()
    events = engine.generate(ids, sampler, max_tokens=n_new, lookup=False, grammar=grammar)
    tokens = [event for event in events if isinstance(event, Token)]
    return tokens, time.perf_counter() - began


def compare(model: str, n_rounds: int) -> list[Comparison]:
    """Run all tasks ``n_rounds`` times, after a warm-up round."""
    llama = load(find_model(model))
    engine, template, greedy = llama.engine(), llama.template(), Sampling(temperature=0)
    found = {task: Comparison(task) for task in TASKS}
    for number in range(n_rounds + 1):
        for task, (text, grammar) in TASKS.items():
            ids = template.render([Message("user", text)], open_reply=True)
            tokens, constrained = answer(engine, ids, Sampler(greedy), N_NEW, grammar)
            known = [token.id for token in tokens]
            _, free = answer(engine, ids, Replay(greedy, known), len(known), None)
            comparison = found[task]
            comparison.tokens = len(tokens)
            comparison.forced = sum(token.logprob == 0 for token in tokens)
            if number:
                comparison.free.append(free)
                comparison.constrained.append(constrained)
    return list(found.values())


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    comparisons = compare(options.model, options.rounds)
    print("task         tokens forced     free constrained  ratio")
    for comparison in comparisons:
        print(comparison.row())
    if options.json:
        results = [asdict(comparison) | {"ratio": comparison.ratio} for comparison in comparisons]
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
