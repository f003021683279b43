"""Measure the gain of a draft model that agrees with a model on a given part of its tokens.

    python -m benchmarks.draft MODEL DRAFT [--agree 0.7] [--rounds 5] [--new 128] [--json FILE]

The draft model computes drafts at its own cost, but its tokens are replaced by those that the model
chooses, or by others where the two should disagree. So models of random weights can be measured. In
each round the same text is decoded without the draft model and with it, in one process, at
temperature 0. It prints the median speeds and the median of the ratios in a round.
"""

import argparse
import json
import statistics
from pathlib import Path

import torch
from torch import Tensor

from llama_chat.generation.draft_model import ModelDrafter
from llama_chat.generation.engine import Engine
from llama_chat.generation.events import Finish, Token
from llama_chat.generation.sampling import Sampler
from llama_chat.loading.plan import load
from llama_chat.settings.sampling import Sampling


class AgreeingDrafter(ModelDrafter):
    """Drafter that is right about a part of the tokens of a known text."""

    def __init__(self, drafter: ModelDrafter, text: list[int], agree: float) -> None:
        """Compute as ``drafter`` does, and be right about the fraction ``agree`` of ``text``."""
        vars(self).update(vars(drafter))
        right = torch.rand(len(text), generator=torch.Generator().manual_seed(0)) < agree
        self._tokens = [token_id if right[i] else 0 for i, token_id in enumerate(text)]

    def _most_likely(self, logits: Tensor) -> list[int]:
        n_rows, end = len(super()._most_likely(logits)), self._cache.length
        places = range(end - n_rows + 1, end + 1)
        return [self._tokens[i] if i < len(self._tokens) else 0 for i in places]


def decode(engine: Engine, ids: list[int], n_new: int) -> tuple[list[int], Finish]:
    """Return the ids of a greedy text, begun with an empty cache, and its last event."""
    engine.cache.trim(0)
    sampler = Sampler(Sampling(temperature=0))
    *tokens, finish = engine.generate(ids, sampler, max_tokens=n_new, lookup=False)
    if not isinstance(finish, Finish):
        raise TypeError(finish)
    return [token.id for token in tokens if isinstance(token, Token)], finish


def main() -> None:
    """Run the benchmark and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("draft")
    parser.add_argument("--agree", type=float, default=0.7, help="part of the tokens")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--new", type=int, default=128, help="tokens of the text")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    llama = load(options.model, draft=options.draft)
    plain, drafting = llama.engine(), llama.engine()
    plain.draft_model = None
    plain.end_ids = drafting.end_ids = frozenset()
    ids = llama.prompt_ids("Once upon a time")
    known, _ = decode(plain, ids, options.new)
    if drafting.draft_model is None:
        raise SystemExit("the draft model is not used here")
    text = [*ids, *known]
    drafting.draft_model = AgreeingDrafter(drafting.draft_model, text, options.agree)
    speeds: dict[str, list[float]] = {"without": [], "with": []}
    identical = True
    for number in range(options.rounds + 1):
        for name in ("without", "with") if number % 2 else ("with", "without"):
            found, finish = decode(drafting if name == "with" else plain, ids, options.new)
            identical &= found == known
            if number:
                speeds[name].append(finish.decode_tok_s)
            if name == "with":
                usage = finish.usage
    ratio = statistics.median(b / a for a, b in zip(*speeds.values(), strict=True))
    before, after = (statistics.median(each) for each in speeds.values())
    print(f"without {before:.2f} tok/s, with {after:.2f} tok/s, ratio {ratio:.2f}")
    print(f"identical: {'yes' if identical else 'NO'}")
    print(f"drafted {usage.drafted_tokens}, accepted {usage.accepted_tokens} of {options.new}")
    if options.json:
        options.json.write_text(json.dumps({"ratio": ratio, **speeds}, indent=1))


if __name__ == "__main__":
    main()
