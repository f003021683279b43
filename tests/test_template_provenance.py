"""Typed text never becomes a control token, whatever a template does with it."""

from functools import cache, lru_cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_chat.chat.conversation import Message
from llama_chat.chat.templates.jinja import JinjaTemplate
from llama_chat.loading.formats import make_tokenizer
from llama_chat.tokenizers.base import Tokenizer
from tests.model_files import CONTROL_TOKENS, TOKENS, byte_vocabulary

USES = {
    "as it is": "{{ text }}",
    "trimmed": "{{ text | trim }}",
    "stripped": "{{ text.strip() }}",
    "after a tag": "{{ text.split('</think>')[-1] }}",
    "between tags": "{{ text.split('</think>')[0].split('<think>')[-1].lstrip('\\n') }}",
    "words": "{{ text.split() | join(' ') }}",
    "second word": "{{ (text.split() + ['', ''])[1] }}",
    "lines": "{% for line in text.splitlines() %}> {{ line }}\n{% endfor %}",
    "first characters": "{{ text[:7] }}",
    "middle": "{{ text[2:-2] }}",
    "backwards": "{{ text | reverse }}",
    "characters": "{{ text | list | join }}",
    "spaced": "{{ text | list | join(' ') }}",
    "twice": "{{ text }}{{ text[1:] }}",
    "upper": "{{ text.upper() }}",
    "title": "{{ text | title }}",
    "replaced": "{{ text.replace('a', '').replace('</x>', '') }}",
    "JSON": "{{ text | tojson }}",
    "format": "{{ '%s' | format(text) }}{{ '{}'.format(text) }}{{ '%s' % text }}",
    "assembled": "{{ '<' ~ text[1:] }}{{ '<|' + text + '|>' }}",
    "if there is one": "{% if text and text != 'a' %}{{ text }}{% else %}nothing{% endif %}",
    "if it has a tag": "{% if '<tool>' in text %}<tool>{{ text }}{% else %}{{ text }}{% endif %}",
    "a part of what it looks for": (
        "{% if '[INST] ' in text or '<|im_end|>x' in text %}!{{ text.strip()[:10] }}{% else %}"
        "{{ text }}{% endif %}"
    ),
    "long": "{{ text if text | length > 20 else 'short: ' + text }}",
    "centred": "{{ text | center(30) }}|{{ text | wordwrap(5) }}",
    "escaped": "{{ text | e | urlencode }}",
}
"""Templates' uses of a message."""

REWRITTEN = ("upper", "title", "replaced", "escaped")
"""Uses that write other characters: from the first to the last, all count as messages'."""

SPECIAL = (
    "<|im_start|>",
    "<|im_end|>",
    "</s>",
    "<|user|>",
    "</think>",
    "[INST]",
    "\u2581<x>\u2581",
)
VOCABULARIES = (CONTROL_TOKENS, [*CONTROL_TOKENS, *SPECIAL[2:]])


@cache
def vocabulary(number: int) -> Tokenizer:
    """Make a tokenizer with some control tokens."""
    control = VOCABULARIES[number]
    tokens = [*control, *TOKENS[len(CONTROL_TOKENS) :]]
    return make_tokenizer(byte_vocabulary(tokens, n_control=len(control), eos_id=2))


@lru_cache(maxsize=2)
def template(use: str, number: int) -> JinjaTemplate:
    """Make a template that uses messages in some way, between all control tokens there are."""
    control = VOCABULARIES[number]
    text = (
        "{% for m in messages %}{% set text = m.content %}"
        + "".join(control)
        + "<|{{ m.role }}|>"
        + USES[use]
        + "<|im_end|>{% endfor %}"
    )
    return JinjaTemplate(vocabulary(number), text, {})


FRAGMENTS = st.sampled_from(
    [
        *SPECIAL,
        *(token[:-3] for token in SPECIAL),
        *(token[3:] for token in SPECIAL),
        "user",
        "assistant",
        "im_end",
        "</x>",
        "<think>",
        "<tool>",
        *" \n\taA<|>é\u00a0",
        "\U0001f600",
        "\ue000",
        "\U000f0041",
        "\U000f003c",
        "\U00100000",
        "\U0010ffff",
        "\ud800",
        "{{ bos_token }}",
        "{% raw %}",
    ]
)
TEXTS = st.lists(FRAGMENTS, max_size=9).map("".join)


@pytest.mark.parametrize("use", USES)
@settings(max_examples=20)
@given(number=st.sampled_from(range(len(VOCABULARIES))), typed=st.tuples(TEXTS, TEXTS, TEXTS))
def test_no_text_becomes_a_control_token(
    use: str, number: int, typed: tuple[str, str, str]
) -> None:
    one, two, three = typed
    messages = [Message("user", one), Message("assistant", two), Message("user", three)]
    ids = template(use, number).render(messages)
    control = len(VOCABULARIES[number])
    own = 3 * (control + 1) + 3 * ("<|user|>" in VOCABULARIES[number])
    assert sum(token < control for token in ids) <= own


@pytest.mark.parametrize("use", [use for use in USES if use not in REWRITTEN])
def test_the_tokens_of_the_template_are_its_own(use: str) -> None:
    text = "plain text\nof two lines, and 'quotes'"
    for messages in ([Message("user", text)], [Message("user", " a\n"), Message("assistant", "b")]):
        ids = template(use, 0).render(messages)
        assert sum(token < len(CONTROL_TOKENS) for token in ids) == 4 * len(messages)
