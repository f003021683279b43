"""Chat templates: from messages to token ids.

Some are implemented here, one module for each; ``settings.definitions.TEMPLATES`` lists them. They
also stand for the published texts that ``published`` knows. Any other text that a model ships is
rendered by Jinja, in a process of its own.
"""

from importlib import import_module

from llama_chat.chat.templates.base import ChatTemplate
from llama_chat.chat.templates.guess import guess_template
from llama_chat.chat.templates.jinja import JinjaTemplate
from llama_chat.chat.templates.published import find_published
from llama_chat.checkpoints.template_source import DEFAULT, TemplateSource
from llama_chat.errors import UsageError, did_you_mean
from llama_chat.settings.definitions import TEMPLATES
from llama_chat.tokenizers.base import Tokenizer

TEMPLATE_NAMES = tuple(name for name in TEMPLATES if name != "auto")


def template_class(name: str) -> type[ChatTemplate]:
    """Return the template ``name`` from the module of that name."""
    template: type[ChatTemplate] = import_module(f"{__name__}.{name}").TEMPLATE
    return template


def choose_template(
    name: str, source: TemplateSource, tokenizer: Tokenizer, variant: str | None = None
) -> ChatTemplate:
    """Return the template ``name``, or for ``auto`` that of the checkpoint.

    Args:
        name: one of ``settings.definitions.TEMPLATES``.
        source: the templates of the checkpoint.
        tokenizer: the tokenizer of the model.
        variant: which of several templates of the checkpoint; None for the default.

    Raises:
        UsageError: if there is none of that name, that of the checkpoint fails or cannot be
            guessed, or the tokenizer lacks its control tokens.
    """
    if name == "auto":
        return _own_template(source, tokenizer, variant)
    if name not in TEMPLATE_NAMES:
        advice = did_you_mean(name, TEMPLATE_NAMES)
        raise UsageError(f"template {name[:40]!r}", "there is none of that name", advice)
    return template_class(name)(tokenizer)


def _own_template(
    source: TemplateSource, tokenizer: Tokenizer, variant: str | None
) -> ChatTemplate:
    """Return the template of the checkpoint."""
    text = _pick(source, variant)
    if text is not None:
        tokens = _named_tokens(source, tokenizer)
        known = find_published(text, tokens)
        return template_class(known)(tokenizer) if known else JinjaTemplate(tokenizer, text, tokens)
    guessed = guess_template(source, tokenizer)
    if guessed is None:
        raise UsageError(
            "chat template",
            "the model has none, and its tokens and name fit several",
            f"choose one with --template: {', '.join(TEMPLATE_NAMES)}",
        )
    name, reason = guessed
    template = template_class(name)(tokenizer)
    template.note = (
        f"chat template: the model has none, {name} is guessed from {reason}: "
        "--template takes another"
    )
    return template


def _pick(source: TemplateSource, variant: str | None) -> str | None:
    """Return the text ``variant`` or the default; None if the checkpoint has none at all."""
    if variant is None and (DEFAULT in source.texts or not source.texts):
        return source.texts.get(DEFAULT)
    if variant is not None and variant in source.texts:
        return source.texts[variant]
    names = ", ".join(name[:40] for name in sorted(source.texts)[:10])
    raise UsageError(
        "chat template" if variant is None else f"template of the model {variant[:40]!r}",
        "none of the model's is the default" if variant is None else "there is none of that name",
        f"choose one with --template-name: {names}" if names else "leave out --template-name",
    )


def _named_tokens(source: TemplateSource, tokenizer: Tokenizer) -> dict[str, str]:
    """Return the tokens that a template may name."""
    ids = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eos_id}
    known = {name: tokenizer.piece(i) for name, i in ids.items() if i is not None}
    return known | dict(source.tokens)


__all__ = ["TEMPLATE_NAMES", "ChatTemplate", "choose_template", "template_class"]
