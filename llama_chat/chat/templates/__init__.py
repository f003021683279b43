"""Chat templates: from messages to token ids.

The templates are implemented here, one module for each; ``settings.definitions.TEMPLATES`` lists
them. A template text found in a checkpoint is only recognised, never executed.
"""

import re
from collections.abc import Iterator
from importlib import import_module

from llama_chat.chat.templates.base import ChatTemplate
from llama_chat.errors import UsageError, did_you_mean
from llama_chat.settings.definitions import TEMPLATES
from llama_chat.tokenizers.base import Tokenizer

_MARKER = re.compile(r"<\|\w{1,30}\|>|<\w{1,30}>|\[[A-Z_]{2,30}\]", re.ASCII)

TEMPLATE_NAMES = tuple(name for name in TEMPLATES if name != "auto")


def template_class(name: str) -> type[ChatTemplate]:
    """Return the template ``name`` from the module of that name."""
    template: type[ChatTemplate] = import_module(f"{__name__}.{name}").TEMPLATE
    return template


def _all_templates() -> Iterator[type[ChatTemplate]]:
    return map(template_class, TEMPLATE_NAMES)


def recognise(template_text: str | None, tokenizer: Tokenizer) -> str | None:
    """Recognise the template of a checkpoint by its template text, or else its control tokens.

    Returns:
        One of ``TEMPLATE_NAMES``, or None if it is not known.
    """
    if template_text is not None:
        found = (each.name for each in _all_templates() if each.is_text(template_text))
    else:
        controls = tokenizer.control_ids.keys()
        found = (each.name for each in _all_templates() if each.is_vocabulary(controls))
    return next(found, None)


def choose_template(name: str, template_text: str | None, tokenizer: Tokenizer) -> ChatTemplate:
    """Return the template ``name``, or for ``auto`` that of the checkpoint.

    Raises:
        UsageError: if there is none of that name, that of the checkpoint is not known, or the
            tokenizer lacks its control tokens.
    """
    if name == "auto":
        found = recognise(template_text, tokenizer)
        if found is None:
            marker = _MARKER.search(template_text or "")
            raise UsageError(
                "chat template",
                f"that of this model{f', with {marker[0]},' if marker else ''} is not known",
                f"choose one with --template: {', '.join(TEMPLATE_NAMES)}",
            )
        name = found
    if name not in TEMPLATE_NAMES:
        advice = did_you_mean(name, TEMPLATE_NAMES)
        raise UsageError(f"template {name[:40]!r}", "there is none of that name", advice)
    return template_class(name)(tokenizer)


__all__ = ["TEMPLATE_NAMES", "ChatTemplate", "choose_template", "recognise", "template_class"]
