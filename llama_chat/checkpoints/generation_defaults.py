"""Suggestions of a checkpoint for generation: end tokens and sampling settings."""

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from llama_chat.settings.definitions import SETTINGS
from llama_chat.settings.setting import Value


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """End tokens and sampling settings that a checkpoint suggests."""

    ends: tuple[tuple[int | str, str], ...] = ()
    """Tokens that end a reply, by id or by text, each with the file or metadata key that says so.
    All ids have a row in the embedding."""
    sampling: Mapping[str, Value] = field(default_factory=dict)
    """Values of settings by name, all within their range."""
    is_greedy: bool = False
    """True if the checkpoint says not to sample at all; only conversions keep that."""
    where: str = ""
    """File or metadata that ``sampling`` is from."""
    warning: str = ""
    """Line for the user about values that are out of range."""

    def end_ids(self, control_ids: Mapping[str, int]) -> list[tuple[int, str]]:
        """Return ``ends`` by id, without texts that are none of ``control_ids``."""
        found = [(control_ids.get(t) if isinstance(t, str) else t, by) for t, by in self.ends]
        return [(token_id, by) for token_id, by in found if token_id is not None]


def sampling_defaults(what: str, suggested: Mapping[str, object]) -> tuple[dict[str, Value], str]:
    """Return the values that are in the range of their settings, and a warning about the others.

    Args:
        what: name of the file in the warning.
        suggested: values by the names of settings; None for one that is not given.
    """
    found: dict[str, Value] = {}
    odd: list[str] = []
    for name, value in suggested.items():
        if name == "top_k" and value == -1:
            value = 0  # both turn it off, each in other programs
        try:
            if value is not None:
                found[name] = SETTINGS[name].check(value)
        except ValueError:
            odd.append(f"{name} {reprlib.repr(value)}")
    if not odd:
        return found, ""
    return found, f"{what}: it suggests {', '.join(odd)}, which is out of range: ignored"
