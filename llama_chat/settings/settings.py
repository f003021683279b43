"""The settings in force: the value of each, and what set it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, cast

from llama_chat.settings.definitions import (
    SETTINGS,
    ModelSettings,
    OutputSettings,
    ReplySettings,
)
from llama_chat.settings.endpoint import EndpointSettings
from llama_chat.settings.sampling import Sampling
from llama_chat.settings.setting import Value

DEFAULT_SOURCE = "default"

ENDPOINT = "endpoint:"
"""Beginning of a model's name that is the address of a server."""


@dataclass(frozen=True)
class Settings(ModelSettings, EndpointSettings, Sampling, ReplySettings, OutputSettings):
    """All settings in force."""

    sources: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Source of each value that is not the default: ``--top-p``, ``LLAMA_CHAT_TOP_P``, ``/top-p``,
    the path of a file, or the file of a model."""
    suggested: frozenset[str] = field(default=frozenset(), repr=False)
    """Settings whose value a model suggests."""

    @property
    def sampling(self) -> Sampling:
        """Sampling settings alone."""
        return Sampling(**{each.name: getattr(self, each.name) for each in fields(Sampling)})

    @property
    def server_url(self) -> str | None:
        """Address of the server to ask; None for a local model.

        If both ``model``, as ``endpoint:URL``, and ``endpoint`` name a server, the one from the
        closer source takes precedence.
        """
        model, named = self.model or "", None
        if model.startswith(ENDPOINT):
            named = model.removeprefix(ENDPOINT)
        is_closer = self._closeness("model") > self._closeness("endpoint")
        return named if is_closer or self.endpoint is None else self.endpoint

    def _closeness(self, name: str) -> int:
        """Rank the source of a value: default or file, environment, flag, command of the chat."""
        setting, source = SETTINGS[name], self.source(name)
        places = ((setting.variable,), (setting.flag,), (setting.command, "/set"))
        return max((i for i, names in enumerate(places, 1) if source in names), default=0)

    def value(self, name: str) -> Value:
        """Return the value of the setting ``name``."""
        return cast("Value", getattr(self, name))

    @property
    def hides_progress(self) -> bool:
        """True if commands show no progress bars."""
        return self.plain or self.quiet

    def source(self, name: str) -> str:
        """Return the source of the value of ``name``, as in ``sources``, or ``default``."""
        return self.sources.get(name, DEFAULT_SOURCE)

    def is_given(self, name: str) -> bool:
        """True if the value was given for this run, by a flag or in the environment."""
        return self.source(name).startswith(("--", "LLAMA_CHAT_"))

    def is_given_by_flag(self, name: str) -> bool:
        """True if a flag gave the value."""
        return self.source(name).startswith("--")

    def change(self, name: str, value: Value, source: str) -> "Settings":
        """Return a copy with another value of ``name``, set by ``source``."""
        changes: dict[str, Any] = {name: value, "suggested": self.suggested - {name}}
        return replace(self, **changes, sources={**self.sources, name: source})

    def with_model(self, values: Mapping[str, Value], source: str) -> "Settings":
        """Return a copy with the values that a model suggests for settings that nothing sets.

        Those of an earlier model are dropped; with ``model_defaults`` off they all are.
        """
        changed = self
        for name in self.suggested:
            changed = changed.change(name, SETTINGS[name].default, DEFAULT_SOURCE)
        names = values if self.model_defaults else ()
        taken = [name for name in names if changed.source(name) == DEFAULT_SOURCE]
        for name in taken:
            changed = changed.change(name, values[name], source)
        return replace(changed, suggested=frozenset(taken))

    def overlay(self, values: Mapping[str, Value], source: str) -> "Settings":
        """Return a copy with the values of a prompt file; flags and environment keep precedence."""
        changed = self
        for name, value in values.items():
            if not self.is_given(name):
                changed = changed.change(name, value, source)
        return changed
