"""The vocabulary in the metadata of a GGUF file."""

import reprlib

from llama_chat.checkpoints.base import BytePairSource, SentencePieceTables
from llama_chat.checkpoints.gguf_metadata import Metadata
from llama_chat.tokenizers.base import TokenType


def read_vocabulary(metadata: Metadata, vocab_size: int) -> BytePairSource | SentencePieceTables:
    """Read the vocabulary of a model with embeddings of ``vocab_size`` tokens.

    Raises:
        ModelError: if it is not supported, or its tables do not match.
    """
    model = metadata.text("tokenizer.ggml.model")
    if model not in ("gpt2", "llama"):
        raise metadata.error(
            f"its tokenizer is {reprlib.repr(model)}",
            "take a model with byte-level BPE or SentencePiece",
        )
    tokens = metadata.array("tokenizer.ggml.tokens", str)
    types = metadata.array("tokenizer.ggml.token_type", int)
    if len(types) != len(tokens):
        raise metadata.error(f"it has {len(tokens)} tokens and types of {len(types)}")
    scores = metadata.values.get("tokenizer.ggml.scores", types)
    if not isinstance(scores, list) or len(scores) != len(tokens):
        raise metadata.error(f"its {len(tokens)} tokens have scores of another number")
    if len(tokens) > vocab_size:
        raise metadata.error(f"it has {len(tokens)} tokens and embeddings of {vocab_size}")
    read = _sentencepiece if model == "llama" else _byte_pairs
    return read(metadata, tokens, types)


def _sentencepiece(metadata: Metadata, tokens: list[str], types: list[int]) -> SentencePieceTables:
    """Read a SentencePiece vocabulary; missing values default to those of Llama 2.

    Some converters give its unknown token the type of a control token.
    """
    unknown = metadata.token_id("tokenizer.ggml.unknown_token_id", len(tokens))
    if unknown is not None and TokenType.UNKNOWN not in types:
        types = [*types[:unknown], TokenType.UNKNOWN, *types[unknown + 1 :]]
    return SentencePieceTables(
        tokens=tokens,
        scores=metadata.array("tokenizer.ggml.scores", float),
        types=types,
        bos_id=metadata.token_id("tokenizer.ggml.bos_token_id", len(tokens)),
        eos_id=metadata.token_id("tokenizer.ggml.eos_token_id", len(tokens)),
        add_bos=metadata.flag("tokenizer.ggml.add_bos_token", True),
        add_dummy_prefix=metadata.flag("tokenizer.ggml.add_space_prefix", True),
    )


def _byte_pairs(metadata: Metadata, tokens: list[str], types: list[int]) -> BytePairSource:
    add_bos = "tokenizer.ggml.add_bos_token"
    return BytePairSource(
        tokens=tokens,
        merges=metadata.array("tokenizer.ggml.merges", str),
        control_ids=_of_types(types, TokenType.CONTROL, TokenType.UNKNOWN),
        added_ids=_of_types(types, TokenType.USER_DEFINED),
        pre_tokenizer=metadata.text("tokenizer.ggml.pre") or "default",
        bos_id=metadata.token_id("tokenizer.ggml.bos_token_id", len(tokens)),
        eos_id=metadata.token_id("tokenizer.ggml.eos_token_id", len(tokens)),
        add_bos=metadata.flag(add_bos, False) if add_bos in metadata.values else None,
    )


def _of_types(types: list[int], *wanted: int) -> frozenset[int]:
    return frozenset(i for i, kind in enumerate(types) if kind in wanted)
