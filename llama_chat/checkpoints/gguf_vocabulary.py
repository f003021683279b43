"""The vocabulary in the metadata of a GGUF file."""

import reprlib

from llama_chat.checkpoints.gguf_metadata import Metadata
from llama_chat.errors import counted
from llama_chat.tokenizers.bpe import ASSUMED, PRE_TOKENIZERS
from llama_chat.tokenizers.vocabulary import (
    AddedToken,
    MergeModel,
    PieceModel,
    TokenType,
    Vocabulary,
)

_PRE = "tokenizer.ggml.pre"


def vocabulary_warnings(metadata: Metadata) -> tuple[str, ...]:
    """Return what is assumed of the vocabulary, in a line each."""
    if metadata.text("tokenizer.ggml.model") != "gpt2" or metadata.text(_PRE):
        return ()
    return (
        f"{metadata.what}: it does not name its pre-tokenizer ({_PRE}): that of {ASSUMED} is "
        "assumed, and with another one its answers get worse",
    )


def read_vocabulary(metadata: Metadata) -> Vocabulary:
    """Read the vocabulary.

    Raises:
        ModelError: if it is not supported, or its tables do not match.
    """
    kind = metadata.text("tokenizer.ggml.model")
    if kind not in ("gpt2", "llama"):
        raise metadata.error(
            f"its tokenizer is {reprlib.repr(kind)}",
            "take a model with byte-level BPE or SentencePiece",
        )
    tokens = metadata.array("tokenizer.ggml.tokens", str)
    types = metadata.array("tokenizer.ggml.token_type", int)
    if len(types) != len(tokens):
        raise metadata.error(f"it has {counted(len(tokens), 'token')} and types of {len(types)}")
    scores = metadata.values.get("tokenizer.ggml.scores", types)
    if not isinstance(scores, list) or len(scores) != len(tokens):
        raise metadata.error(f"it has {counted(len(tokens), 'token')} and scores of another number")
    pieces = kind == "llama"
    bos_id, eos_id, unknown_id = (
        metadata.token_id(f"tokenizer.ggml.{name}_token_id", len(tokens))
        for name in ("bos", "eos", "unknown")
    )
    if pieces and unknown_id is not None and TokenType.UNKNOWN not in types:
        # Some converters give it the type of a control token.
        types = [*types[:unknown_id], TokenType.UNKNOWN, *types[unknown_id + 1 :]]
    model, adds_bos = _pieces(metadata) if pieces else _merges(metadata)
    add_bos = metadata.flag("tokenizer.ggml.add_bos_token", adds_bos)
    add_eos = metadata.flag("tokenizer.ggml.add_eos_token", False)
    prefixed = metadata.flag("tokenizer.ggml.add_space_prefix", True) and pieces
    user_defined = [i for i, kind in enumerate(types) if kind == TokenType.USER_DEFINED]
    return Vocabulary(
        what=metadata.what,
        pieces=tokens,
        types=types,
        model=model,
        added={i: AddedToken(tokens[i], special=False) for i in user_defined},
        bos_id=bos_id,
        eos_id=eos_id,
        add_bos=add_bos and bos_id is not None,
        add_eos=add_eos and eos_id is not None,
        prefix="every" if prefixed else "never",
    ).checked()


def _pieces(metadata: Metadata) -> tuple[PieceModel, bool]:
    """Return the model of a SentencePiece vocabulary, and the default of ``add_bos``."""
    return PieceModel(metadata.array("tokenizer.ggml.scores", float)), True


def _merges(metadata: Metadata) -> tuple[MergeModel, bool]:
    """Return the model of a byte-level vocabulary, and the default of ``add_bos``."""
    name = metadata.text(_PRE)
    rule = PRE_TOKENIZERS.get(name or ASSUMED)
    if rule is None:
        raise metadata.error(
            f"its pre-tokenizer {reprlib.repr(name)} is not supported",
            "take the model in another format, with its tokenizer.json",
        )
    merges = metadata.array("tokenizer.ggml.merges", str)
    model = MergeModel(
        [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)],
        rule.component(),
        options={"ignore_merges": rule.whole_words},
        name=name,
    )
    return model, rule.adds_bos
