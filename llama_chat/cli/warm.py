"""Answers of a server that is running already, in place of loading the model."""

from typing import Any

from llama_chat.cli.loading import model_path
from llama_chat.settings.definitions import SETTINGS
from llama_chat.settings.settings import Settings

_TEMPLATE = ("template", "template_name")


def identity_of(settings: Settings) -> dict[str, Any]:
    """Return the settings that decide which model a server has, and how it is computed."""
    names = [name for name, setting in SETTINGS.items() if setting.scope == "load"]
    found: dict[str, Any] = {name: settings.value(name) for name in (*names, *_TEMPLATE)}
    return {**found, "model": str(model_path(settings).resolve())}
