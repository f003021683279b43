"""Guess of the chat template of a checkpoint that has no template text.

Control tokens identify it, since most of them are in a vocabulary only for its template. If there
are only those of every vocabulary like Llama 2's, the layout or the names of the model may.
"""

import re
from collections.abc import Iterator

from llama_chat.checkpoints.template_source import TemplateSource
from llama_chat.tokenizers.base import Tokenizer

_COMMON = {"<unk>", "<s>", "</s>", "<pad>"}
"""Control tokens that indicate no template."""

_BY_TOKENS = {
    "llama3": {"<|start_header_id|>", "<|eot_id|>"},
    "chatml": {"<|im_start|>", "<|im_end|>"},
    "mistral": {"[INST]", "[/INST]"},
}
_OF_OTHERS = {"<|im_sep|>", "[SYSTEM_PROMPT]", "<\uff5cUser\uff5c>"}
"""Control tokens of templates that share some with these, and are not implemented here."""

_BY_NAME = {
    "llama2": re.compile(r"llama[-_ ]?2.*chat"),
    "mistral": re.compile(r"mistral.*instruct[-_ ]?v0\.[12]"),
    "zephyr": re.compile(r"zephyr|tiny[-_ ]?llama.*chat"),
}


def guess_template(source: TemplateSource, tokenizer: Tokenizer) -> tuple[str, str] | None:
    """Guess the template of a model.

    Returns:
        Its name, and what it is guessed from; None if that is ambiguous.
    """
    return next(_guesses(source, tokenizer), None)


def _guesses(source: TemplateSource, tokenizer: Tokenizer) -> Iterator[tuple[str, str]]:
    controls = tokenizer.control_ids.keys()
    if not controls & _OF_OTHERS:
        for name, tokens in _BY_TOKENS.items():
            # Tekken, a byte-level vocabulary, has the tokens of Mistral and other blanks.
            if tokens <= controls and not (name == "mistral" and tokenizer.kind.startswith("byte")):
                yield name, f"its control tokens, such as {min(tokens)}"
    if not controls <= _COMMON:
        return
    for name, pattern in _BY_NAME.items():
        if any(pattern.search(each.lower()) for each in source.names):
            yield name, "its name"
    if source.is_meta:
        yield "llama2", "the layout of its files, which is Meta's"
