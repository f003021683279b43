"""Small tokenizers, ours and the same for transformers; published templates; dialogs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import sentencepiece
from tokenizers import AddedToken, Regex, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE

from llama_chat.chat.conversation import Message
from llama_chat.loading.formats import make_tokenizer
from llama_chat.tokenizers.base import Tokenizer
from llama_chat.tokenizers.bpe import PRE_TOKENIZERS
from llama_chat.tokenizers.tokenizer_json import read_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_FOLDER = Path(__file__).parent / "data" / "templates"

Kind = Literal["bytes", "every", "first"]
"""Vocabularies: byte-level as that of Llama 3; pieces as that of Llama 2, with a space in front of
every text between control tokens, or of the first one only."""


@dataclass(frozen=True, slots=True)
class Model:
    """Tokens of the model that a template was published with."""

    special: tuple[str, ...] = ()
    bos: str | None = "<s>"
    eos: str | None = "</s>"
    kind: Kind = "every"


_CHATML = ("<|im_start|>", "<|im_end|>")
_LLAMA_3 = (
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|python_tag|>",
)
_INST = ("[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]")
_SENTENCE = ("<\uff5cbegin\u2581of\u2581sentence\uff5c>", "<\uff5cend\u2581of\u2581sentence\uff5c>")
_THINKING = ("<\uff5cUser\uff5c>", "<\uff5cAssistant\uff5c>", "<think>", "</think>")
_ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
_LLAMA_3_BYTES = Model(_LLAMA_3, "<|begin_of_text|>", "<|eot_id|>", "bytes")
_TEXT_BYTES = ("<|endoftext|>",)
MODELS = {
    "alpaca": Model(),
    "chatml": Model(_CHATML, "<s>", "<|im_end|>"),
    "codellama-70b": Model(("<step>",), kind="every"),
    "deepseek-coder": Model((*_SENTENCE, "<|EOT|>"), _SENTENCE[0], "<|EOT|>", "bytes"),
    "deepseek-llm": Model(_SENTENCE, *_SENTENCE, "bytes"),
    "dolphin": Model(_CHATML, "<|begin_of_text|>", "<|im_end|>", "bytes"),
    "generation-blocks": Model(_CHATML, None, "<|im_end|>", "bytes"),
    "granite-3.0": Model(
        ("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>", "<|tool_call|>"),
        "<|end_of_text|>",
        "<|end_of_text|>",
        "bytes",
    ),
    "hermes-2-pro": Model(_CHATML, "<|begin_of_text|>", "<|im_end|>", "bytes"),
    "llama-2": Model(),
    "llama-2-default": Model(kind="first"),
    "llama-2-indexed": Model(),
    "llama-3": _LLAMA_3_BYTES,
    "llama-3-asking": _LLAMA_3_BYTES,
    "llama-3.1": _LLAMA_3_BYTES,
    "llama-3.2": _LLAMA_3_BYTES,
    "minicpm": Model(),
    "mistral-large": Model((*_INST, "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"), kind="first"),
    "mistral-nemo": Model(_INST, kind="bytes"),
    "mistral-v0.1": Model(kind="first"),
    "mistral-v0.2": Model(kind="first"),
    "mistral-v0.3": Model(_INST, kind="first"),
    "mistral-v1": Model(kind="first"),
    "monarch": Model(kind="first"),
    "olmo": Model(_TEXT_BYTES, "<|endoftext|>", "<|endoftext|>", "bytes"),
    "openchat": Model(("<|end_of_turn|>",), eos="<|end_of_turn|>", kind="first"),
    "orca-vicuna": Model(),
    "orion": Model(),
    "phi-3": Model(_ROLES, eos="<|end|>"),
    "phi-3-small": Model((*_TEXT_BYTES, *_ROLES), "<|endoftext|>", "<|endoftext|>", "bytes"),
    "phi-4": Model((*_CHATML, "<|im_sep|>"), "<|endoftext|>", "<|im_end|>", "bytes"),
    "r1-distill": Model((*_SENTENCE, *_THINKING), *_SENTENCE, "bytes"),
    "smollm2": Model(_CHATML, *_CHATML, "bytes"),
    "solar": Model(kind="first"),
    "stablebeluga": Model(),
    "stablelm-zephyr": Model((*_TEXT_BYTES, *_ROLES[1:3]), None, "<|endoftext|>", "bytes"),
    "tulu-3": Model(_LLAMA_3[:1], "<|begin_of_text|>", "<|end_of_text|>", "bytes"),
    "vicuna": Model(),
    "vigogne": Model(kind="first"),
    "yandexgpt": Model(("[SEP]",)),
    "yi": Model(_CHATML, "<|startoftext|>", "<|im_end|>"),
    "zephyr": Model(kind="every"),
}
"""Models by the name of their template in ``tests/data/templates``."""


def template_text(name: str) -> str:
    """Return a template as it was published with a model."""
    return (_FOLDER / f"{name}.jinja").read_text(encoding="utf-8").removesuffix("\n")


def special_tokens(name: str) -> list[str]:
    """Return the special tokens of a model."""
    model = MODELS[name]
    named = [token for token in (model.bos, model.eos) if token is not None]
    return list(dict.fromkeys([*model.special, *named]))


def twins(name: str, folder: Path) -> "tuple[Tokenizer, PreTrainedTokenizerFast]":
    """Make our tokenizer and that of transformers for a model, both of one ``tokenizer.json``."""
    from transformers import PreTrainedTokenizerFast

    model = MODELS[name]
    backend = Backend.from_str(_vocabulary(model.kind))
    known = [t for t in special_tokens(name) if backend.token_to_id(t) is None or t[0] == "<"]
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in known])
    path = folder / f"{name}.json"
    backend.save(str(path))
    vocabulary = read_json(path)
    bos_id, eos_id = (
        None if token is None else vocabulary.pieces.index(token)
        for token in (model.bos, model.eos)
    )
    ours = make_tokenizer(replace(vocabulary, bos_id=bos_id, eos_id=eos_id, add_bos=False))
    named = {"bos_token": model.bos, "eos_token": model.eos}
    return ours, PreTrainedTokenizerFast(tokenizer_object=backend, **named)


@cache
def _vocabulary(kind: Kind) -> str:
    """Train a small vocabulary, as the text of a ``tokenizer.json``."""
    if kind != "bytes":
        from tests.model_files import sentencepiece_model

        return fast_pieces(sentencepiece_model(), legacy=kind == "every").to_str()
    backend = Backend(BPE())
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    split = pre_tokenizers.Split(Regex(PRE_TOKENIZERS["llama3"].splits[0]), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [template_text(name) for name in sorted(MODELS)] + CONTENTS
    backend.train_from_iterator(texts, trainer)
    return backend.to_str()


def fast_pieces(path: Path | bytes, *, legacy: bool) -> Backend:
    """Make a SentencePiece vocabulary for transformers, as a published ``tokenizer.json`` has it.

    A ``legacy`` one puts a space in front of every text between control tokens; the others only at
    the start.
    """
    from transformers.tokenization_utils_base import generate_merges

    data = path.read_bytes() if isinstance(path, Path) else path
    model = sentencepiece.SentencePieceProcessor(model_proto=data)
    n_pieces = model.vocab_size()
    vocabulary = {model.id_to_piece(i): i for i in range(n_pieces)}
    scores = {model.id_to_piece(i): model.get_score(i) for i in range(n_pieces)}
    control = [
        model.id_to_piece(i) for i in range(n_pieces) if model.is_control(i) or model.is_unknown(i)
    ]
    merges = generate_merges(vocabulary, scores, control)
    backend = Backend(
        BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    if legacy:
        backend.normalizer = normalizers.Sequence(
            [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
        )
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.add_special_tokens([AddedToken(name, normalized=False) for name in control])
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", model.bos_id())]
    )
    return backend


SYSTEMS = ["You are terse.", "Répondez « oui ».\n", "Two\nlines, 日本語", " padded "]
CONTENTS = [
    "Hello",
    "What is the capital of France?",
    "  padded on both sides \t",
    "naïve 日本語 😀👩‍👩‍👧‍👦 é",
    "\nfirst line\n\n  second line\n",
    "",
    " ",
    "1234 + 5678 = ?",
    "x = [1, 2]\nfor i in x:\n\tprint(i)",
    "I like the theatre. It's in the inn, isn't it?",
    ".",
]


def dialogs(contents: Sequence[str] = CONTENTS) -> list[list[Message]]:
    """Make dialogs of 1 to 7 messages, with and without a system message."""
    found: list[list[Message]] = []
    for round_number in range(3):
        for with_system in (False, True):
            for length in range(1 + with_system, 8):
                start = 5 * len(found) + round_number
                messages = [Message("system", SYSTEMS[len(found) % 4])] if with_system else []
                messages += [
                    Message(("user", "assistant")[i % 2], contents[(start + i) % len(contents)])
                    for i in range(length - with_system)
                ]
                found.append(messages)
    return [*found, [Message("user", "\u00a0Hello\r\n\u3000")]]
