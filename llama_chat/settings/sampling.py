"""Settings of sampling."""

import secrets
from dataclasses import dataclass, fields

from llama_chat.settings.setting import define, setting_of


@dataclass(frozen=True)
class Sampling:
    """Sampling of the next token, with Meta's defaults.

    The filters apply in this order: repetition penalty on the logits, then temperature, top-k,
    top-p and min-p on the probabilities.

    Raises:
        ValueError: if a value is out of range.
    """

    temperature: float = define(
        "number",
        0.6,
        "Randomness; 0 takes the most likely token.",
        scope="sampling",
        low=0,
        high=10,
        example="0.2",
    )
    top_p: float = define(
        "number",
        0.9,
        "Keep the most likely tokens of this total probability; 1 turns this off.",
        scope="sampling",
        low=0,
        high=1,
        above=True,
        example="0.95",
    )
    top_k: int = define(
        "integer",
        0,
        "Keep only the N most likely tokens; 0 turns this off.",
        scope="sampling",
        low=0,
        high=10**6,
        example="40",
    )
    min_p: float = define(
        "number",
        0.0,
        "Drop tokens below this fraction of the highest probability; 0 turns this off.",
        scope="sampling",
        low=0,
        high=1,
        example="0.05",
    )
    repeat_penalty: float = define(
        "number",
        1.0,
        "Make recent tokens less likely; 1 turns this off.",
        scope="sampling",
        low=0,
        high=10,
        above=True,
        example="1.1",
    )
    seed: int | None = define(
        "integer",
        None,
        "Seed of the random numbers, for the same answer again.",
        scope="sampling",
        low=0,
        high=2**63 - 1,
        example="42",
    )

    def new_seed(self) -> int:
        """Return the seed; if there is none, a random one of 32 bits, short enough to type."""
        return secrets.randbelow(2**32) if self.seed is None else self.seed

    def __post_init__(self) -> None:
        for each in fields(Sampling):
            value = getattr(self, each.name)
            if value is not None or each.default is not None:
                setting_of(each.metadata).check(value)
