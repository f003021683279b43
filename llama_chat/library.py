"""The models on this machine: from what a person calls a model to where it lies."""

from pathlib import Path

from llama_chat import starter
from llama_chat.errors import ModelError
from llama_chat.files import data_home, expand_user
from llama_chat.settings import suggestion

NO_MODEL_ADVICE = f"give --model PATH, or fetch one with: llama-chat pull {starter.DEFAULT}"


def installed_models() -> dict[str, Path]:
    """Names and places of the models in our own folder."""
    folder = data_home() / "models"
    if not folder.is_dir():
        return {}
    found = {}
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith(".") or not entry.is_dir():
            continue
        files = sorted(entry.glob("*.gguf"))
        if files or (entry / "params.json").exists():
            found[entry.name] = files[0] if files else entry
    return found


def find_model(wanted: str) -> Path:
    """Where the model ``wanted`` is: a path, a name in our folder, or if empty the starter.

    Raises:
        ModelError: if it is nowhere; with the next step.
    """
    if not wanted:
        if starter.is_installed(starter.DEFAULT):
            return starter.installed_path(starter.DEFAULT)
        raise ModelError("model", "none is configured", NO_MODEL_ADVICE)
    path = expand_user(wanted)
    try:
        if path.exists():
            return path
    except (OSError, ValueError):  # a name too long for a path, or one that holds a NUL
        pass
    installed = installed_models()
    if wanted in installed:
        return installed[wanted]
    if wanted in starter.STARTERS:
        advice = f"fetch it with: llama-chat pull {wanted}"
    elif installed:
        advice = suggestion(wanted, installed)
    else:
        advice = NO_MODEL_ADVICE
    raise ModelError(f"model {wanted[:80]!r}", "neither a path nor a known name", advice)
