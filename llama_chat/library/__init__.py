"""Models on this machine: listing them, and finding one by name or path."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from llama_chat.errors import ModelError, did_you_mean
from llama_chat.files import expand_user
from llama_chat.library import starter
from llama_chat.library.model import Model
from llama_chat.library.stores import all_models, own_folder, remove

__all__ = ["NO_MODEL_ADVICE", "Model", "find_model", "installed_models", "own_folder", "remove"]

_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
"""``ORGANISATION/NAME`` of a model hub, which may be a path as well."""

NO_MODEL_ADVICE = f"give --model PATH, or download one with: llama-chat pull {starter.DEFAULT}"


def installed_models(search_paths: Sequence[str] = ()) -> list[Model]:
    """List all models on this machine, each under a unique name.

    Of several with the same name the first keeps it; the others are named ``SOURCE:NAME``, or by
    their paths.

    Args:
        search_paths: further folders to search.
    """
    named: dict[str, Model] = {}
    for model in all_models(search_paths):
        qualified = f"{model.source}:{model.name}"
        names = (model.name, qualified, str(model.path))
        name = next((name for name in names if name not in named), None)
        if name is not None:
            named[name] = replace(model, name=name, aliases=(*model.aliases, qualified))
    return list(named.values())


def find_model(wanted: str, search_paths: Sequence[str] = ()) -> Path:
    """Return the path of the model ``wanted``: a path, a name, or if empty the starter model.

    Raises:
        ModelError: if it is not found.
    """
    if not wanted:
        if starter.is_installed(starter.DEFAULT):
            return starter.installed_path(starter.DEFAULT)
        raise ModelError("model", "none is configured", NO_MODEL_ADVICE)
    path = expand_user(wanted)
    try:
        path.stat()
        return path
    except PermissionError:
        return path  # opening it gives the reason
    except (OSError, ValueError):  # missing, too long for a path, or with a NUL
        pass
    names: dict[str, Path] = {}
    models = installed_models(search_paths)
    for model in models:
        names[model.name] = model.path
    for model in models:
        for alias in model.aliases:
            names.setdefault(alias, model.path)
    if wanted in names:
        return names[wanted]
    what = f"model {wanted[:80]!r}"
    raise ModelError(what, "neither a path nor a known name", _advice(wanted, list(names)))


def _advice(wanted: str, names: Sequence[str]) -> str:
    """Return the next step after a model was not found."""
    if wanted in starter.STARTERS:
        return f"download it with: llama-chat pull {wanted}"
    otherwise = NO_MODEL_ADVICE
    if _HUB_NAME.fullmatch(wanted):
        otherwise = f"check the path, or download it with: llama-chat pull {wanted}"
    elif names:
        otherwise = "llama-chat models lists what is here, and llama-chat pull downloads others"
    return did_you_mean(wanted, names, otherwise)
