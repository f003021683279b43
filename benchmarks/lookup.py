"""Measure the gain of lookup if a reply repeats the prompt, and its cost if it does not.

    python -m benchmarks.lookup [--model NAME] [--rounds 5] [--new 200] [--json FILE]

Three tasks copy from the message and two do not. In each round each task is answered without
lookup and with it, in one process, at temperature 0 from an empty cache. It prints the median
decode speeds over the rounds, the median of the ratios within a round, since the speed of a shared
machine varies, and the numbers of tokens drafted and accepted.
"""

import argparse
import json
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path

from llama_chat.chat.conversation import Message
from llama_chat.generation.engine import Engine
from llama_chat.generation.events import Finish, Token
from llama_chat.generation.sampling import Sampler
from llama_chat.library import find_model
from llama_chat.loading.plan import load
from llama_chat.settings.sampling import Sampling

CODE = '''\
class Inventory:
    """Goods of a shop, by name."""

    def __init__(self):
        self.items = {}
        self.log = []

    def add(self, name, count, price):
        if count <= 0:
            raise ValueError("count must be positive")
        if name in self.items:
            item = self.items[name]
            item["count"] += count
            item["price"] = price
        else:
            self.items[name] = {"count": count, "price": price}
        self.log.append(("add", name, count))

    def remove(self, name, count):
        if name not in self.items:
            raise KeyError(name)
        item = self.items[name]
        if item["count"] < count:
            raise ValueError("not enough in stock")
        item["count"] -= count
        if item["count"] == 0:
            del self.items[name]
        self.log.append(("remove", name, count))

    def total(self):
        result = 0
        for name, item in self.items.items():
            result += item["count"] * item["price"]
        return result
'''

PASSAGE = """\
The lighthouse stood at the end of a long stone pier, a mile from the village. Every evening \
the keeper climbed its hundred and twelve steps with a can of oil in one hand and a lantern in the \
other. He trimmed the wick, polished the brass, and wound the clockwork that turned the great \
lens. Then he sat down by the window to write in his book: the wind, the state of the sea, and the \
names of the ships that passed. In thirty years he had missed only one night, when a winter storm \
broke the door and carried his boat away. The fishermen still spoke of that night. They had found \
their way home by the bells of the church, which the baker's daughter rang until her hands bled."""

DATA = """\
{
  "name": "weather-station",
  "version": "2.1.0",
  "sensors": [
    {"id": 1, "kind": "temperature", "unit": "celsius", "place": "roof"},
    {"id": 2, "kind": "humidity", "unit": "percent", "place": "roof"},
    {"id": 3, "kind": "pressure", "unit": "hectopascal", "place": "cellar"},
    {"id": 4, "kind": "wind", "unit": "metres per second", "place": "mast"},
    {"id": 5, "kind": "rain", "unit": "millimetres", "place": "garden"}
  ],
  "upload": {"every": 60, "server": "https://weather.example.org/api", "retries": 3},
  "owner": {"name": "Ada Smith", "email": "ada@example.org"},
}"""

TASKS = {
    "edit code": f"```python\n{CODE}```\n\nRename the class `Inventory` to `Store`. "
    "Print the whole code.",
    "quote": f"Repeat this text word for word:\n\n{PASSAGE}",
    "fix JSON": f"This JSON has a comma too many. Correct it and print the whole JSON:\n\n"
    f"```json\n{DATA}\n```",
    "explain": "Why is the sky blue?",
    "describe": "Describe a thunderstorm over a small town.",
}


@dataclass
class Comparison:
    """Results of a task without lookup and with it."""

    task: str
    without: list[float] = field(default_factory=list)
    """Tokens per second of decoding, by rounds."""
    lookup: list[float] = field(default_factory=list)
    identical: bool = True
    completion_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0

    @property
    def ratio(self) -> float:
        """Speed with lookup divided by that without, the median over the rounds."""
        pairs = zip(self.lookup, self.without, strict=True)
        return statistics.median(fast / slow for fast, slow in pairs)

    def row(self) -> str:
        """Format the figures as a row of the table."""
        slow, fast = statistics.median(self.without), statistics.median(self.lookup)
        return (
            f"{self.task:<10} {self.completion_tokens:6} {slow:8.1f} {fast:7.1f} {self.ratio:6.2f}"
            f"  {'yes' if self.identical else 'NO':<9} {self.drafted_tokens:7} "
            f"{self.accepted_tokens:8}"
        )


def answer(engine: Engine, ids: list[int], n_new: int, *, lookup: bool) -> tuple[list[int], Finish]:
    """Return the ids of a greedy reply, begun with an empty cache, and its last event."""
    engine.cache.trim(0)
    sampler = Sampler(Sampling(temperature=0))
    *tokens, finish = engine.generate(ids, sampler, max_tokens=n_new, lookup=lookup)
    if not isinstance(finish, Finish):
        raise TypeError(finish)
    return [token.id for token in tokens if isinstance(token, Token)], finish


def compare(model: str, n_rounds: int, n_new: int) -> list[Comparison]:
    """Run all tasks ``n_rounds`` times, after a warm-up round."""
    llama = load(find_model(model))
    engine, template = llama.engine(), llama.template()
    found = {task: Comparison(task) for task in TASKS}
    for number in range(n_rounds + 1):
        for task, text in TASKS.items():
            ids = template.render([Message("user", text)], open_reply=True)
            comparison, replies = found[task], []
            # Each goes first in every other round.
            for lookup in (False, True) if number % 2 else (True, False):
                reply, finish = answer(engine, ids, n_new, lookup=lookup)
                replies.append(reply)
                if number:
                    speeds = comparison.lookup if lookup else comparison.without
                    speeds.append(finish.decode_tok_s)
                if lookup:
                    comparison.drafted_tokens = finish.usage.drafted_tokens
                    comparison.accepted_tokens = finish.usage.accepted_tokens
            comparison.identical &= replies[0] == replies[1]
            comparison.completion_tokens = len(replies[0])
    return list(found.values())


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--new", type=int, default=200, help="tokens of a reply, at most")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    comparisons = compare(options.model, options.rounds, options.new)
    print("task       tokens  without  lookup  ratio  identical  drafted accepted")
    for comparison in comparisons:
        print(comparison.row())
    if options.json:
        results = [asdict(comparison) | {"ratio": comparison.ratio} for comparison in comparisons]
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
