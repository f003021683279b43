"""Writer of the tokenizer files that Hugging Face's libraries read."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, decoders, normalizers, processors
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE

from llama_chat.checkpoints.base import Checkpoint, SentencePieceSource, TokenizerJsonSource
from llama_chat.conversion.vocabulary import Vocabulary, vocabulary_of
from llama_chat.tokenizers.base import SPACE, Tokenizer, TokenType
from llama_chat.tokenizers.bpe import divide, takes_whole_words


def write_tokenizer(folder: Path, checkpoint: Checkpoint, tokenizer: Tokenizer) -> None:
    """Write ``tokenizer.json`` and ``tokenizer_config.json``, and copy a ``tokenizer.model``.

    Raises:
        OSError: if they cannot be written.
    """
    source = checkpoint.tokenizer_source
    if isinstance(source, TokenizerJsonSource):
        shutil.copyfile(source.path, folder / "tokenizer.json")
    else:
        backend = _backend(vocabulary_of(source), tokenizer)
        (folder / "tokenizer.json").write_text(backend.to_str(pretty=True), encoding="utf-8")
    if isinstance(source, SentencePieceSource):
        shutil.copyfile(source.path, folder / "tokenizer.model")
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": checkpoint.config.context_length,
        "add_bos_token": tokenizer.add_bos,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
    }
    for name, token_id in (("bos_token", tokenizer.bos_id), ("eos_token", tokenizer.eos_id)):
        if token_id is not None:
            config[name] = tokenizer.piece(token_id)
    if templates := checkpoint.templates.stored:
        config["chat_template"] = templates
    text = json.dumps(config, indent=2, ensure_ascii=False)
    (folder / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")


def _backend(vocabulary: Vocabulary, tokenizer: Tokenizer) -> Backend:
    """Return the vocabulary as a tokenizer of the ``tokenizers`` library."""
    backend = (
        _byte_level(vocabulary) if vocabulary.scores is None else _pieces(vocabulary, tokenizer)
    )
    backend.add_tokens(
        [
            AddedToken(token, normalized=False, special=kind != TokenType.USER_DEFINED)
            for token, kind in zip(vocabulary.tokens, vocabulary.types, strict=True)
            if kind in (TokenType.CONTROL, TokenType.UNKNOWN, TokenType.USER_DEFINED)
        ]
    )
    if tokenizer.add_bos and tokenizer.bos_id is not None:
        bos = tokenizer.piece(tokenizer.bos_id)
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A",
            pair=f"{bos} $A {bos}:1 $B:1",
            special_tokens=[(bos, tokenizer.bos_id)],
        )
    return backend


def _ids(tokens: Sequence[str]) -> dict[str, int]:
    return {token: i for i, token in enumerate(tokens)}


def _byte_level(vocabulary: Vocabulary) -> Backend:
    rule = vocabulary.pre_tokenizer or "default"
    pairs = (merge.partition(" ") for merge in vocabulary.merges or [])
    merges = [(left, right) for left, _, right in pairs]
    whole_words = takes_whole_words(rule)
    backend = Backend(BPE(_ids(vocabulary.tokens), merges, ignore_merges=whole_words))
    backend.pre_tokenizer = divide(rule)
    backend.decoder = decoders.ByteLevel()
    return backend


def _pieces(vocabulary: Vocabulary, tokenizer: Tokenizer) -> Backend:
    """Return a BPE tokenizer of a vocabulary with scores: a merge ranks by that of its result."""
    unknown = [
        t
        for t, kind in zip(vocabulary.tokens, vocabulary.types, strict=True)
        if kind == TokenType.UNKNOWN
    ]
    backend = Backend(
        BPE(
            _ids(vocabulary.tokens),
            _merges(vocabulary),
            unk_token=unknown[0] if unknown else None,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    prefix = [normalizers.Prepend(SPACE)] if tokenizer.dummy_prefix else []
    backend.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", SPACE)])
    strip = [decoders.Strip(" ", 1, 0)] if tokenizer.dummy_prefix else []
    backend.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return backend


def _merges(vocabulary: Vocabulary) -> list[tuple[str, str]]:
    """Return all pairs of pieces that join to a piece, that of the highest score first."""
    whole = set(vocabulary.tokens)
    scored = [
        (score, token)
        for token, kind, score in zip(
            vocabulary.tokens, vocabulary.types, vocabulary.scores or [], strict=True
        )
        if kind not in (TokenType.CONTROL, TokenType.UNKNOWN, TokenType.UNUSED)
    ]
    scored.sort(key=lambda pair: -pair[0])
    return [
        (token[:i], token[i:])
        for _, token in scored
        for i in range(1, len(token))
        if token[:i] in whole and token[i:] in whole
    ]
