"""Writer of the tokenizer files that Hugging Face's libraries read."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend
from tokenizers import decoders, processors

from llama_chat.checkpoints.base import Checkpoint
from llama_chat.tokenizers.library import assemble, merging
from llama_chat.tokenizers.tokenizer_json import metaspace
from llama_chat.tokenizers.vocabulary import (
    SPACE,
    AddedToken,
    MergeModel,
    PieceModel,
    TokenType,
    Vocabulary,
)


def write_tokenizer(folder: Path, checkpoint: Checkpoint, vocabulary: Vocabulary) -> None:
    """Write or copy ``tokenizer.json``, copy ``tokenizer.model``, and write what they do not say.

    Raises:
        OSError: if they cannot be written.
    """
    model, added = vocabulary.model, _added_tokens(vocabulary)
    if isinstance(model, MergeModel) and vocabulary.file is not None:
        shutil.copyfile(vocabulary.file, folder / "tokenizer.json")
    else:
        text = _backend(vocabulary, added).to_str(pretty=True)
        (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    # The class of Llama follows ``legacy`` in both files, the other one what tokenizer.json says.
    follows_legacy = isinstance(model, PieceModel) and vocabulary.prefix == "first"
    if isinstance(model, PieceModel) and model.file:
        (folder / "tokenizer.model").write_bytes(model.file)
    config: dict[str, Any] = {
        "tokenizer_class": "LlamaTokenizer" if follows_legacy else "PreTrainedTokenizerFast",
        "model_max_length": checkpoint.config.context_length,
        "add_bos_token": vocabulary.add_bos,
        "add_eos_token": vocabulary.add_eos,
        "clean_up_tokenization_spaces": False,
        "added_tokens_decoder": {
            str(i): {"content": token.text, **_flags(token)} for i, token in sorted(added.items())
        },
    }
    if follows_legacy:
        config["legacy"] = False
    for name, token_id in (("bos_token", vocabulary.bos_id), ("eos_token", vocabulary.eos_id)):
        if token_id is not None:
            config[name] = vocabulary.pieces[token_id]
    if templates := checkpoint.templates.stored:
        config["chat_template"] = templates
    text = json.dumps(config, indent=2, ensure_ascii=False)
    (folder / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")


def _flags(token: AddedToken) -> dict[str, bool]:
    return {name: value for name, value in asdict(token).items() if name != "text"}


def _added_tokens(vocabulary: Vocabulary) -> dict[int, AddedToken]:
    """Return the added tokens, and those that this format has no other place for."""
    others = {
        i: AddedToken(piece, special=kind != TokenType.USER_DEFINED)
        for i, (piece, kind) in enumerate(zip(vocabulary.pieces, vocabulary.types, strict=True))
        if kind in (TokenType.CONTROL, TokenType.UNKNOWN, TokenType.USER_DEFINED)
    }
    return {**others, **vocabulary.added}


def _backend(vocabulary: Vocabulary, added: dict[int, AddedToken]) -> Backend:
    """Return the vocabulary as a tokenizer of the ``tokenizers`` library."""
    model = vocabulary.model
    if isinstance(model, PieceModel):
        model = _as_merges(vocabulary, model)
    control = vocabulary.control_ids()
    ids = {
        piece: i
        for i, (piece, kind) in enumerate(zip(vocabulary.pieces, vocabulary.types, strict=True))
        if kind != TokenType.UNUSED or piece in control
    }
    bpe = merging(vocabulary.what, ids, vocabulary.pieces, model)
    tokens = [token for _, token in sorted(added.items())]
    backend = assemble(vocabulary.what, bpe, model.normalizer, model.pre_tokenizer, tokens)
    backend.decoder = decoders.ByteLevel() if model.byte_level else _decoder(vocabulary)
    bos, eos = (
        (vocabulary.pieces[token_id], token_id) if wanted and token_id is not None else None
        for wanted, token_id in (
            (vocabulary.add_bos, vocabulary.bos_id),
            (vocabulary.add_eos, vocabulary.eos_id),
        )
    )
    ends = [end for end in (bos, eos) if end is not None]
    if ends:
        single = [*([bos[0]] if bos else []), "$A", *([eos[0]] if eos else [])]
        pair = [f"{part}:1" if part != "$A" else "$B:1" for part in single]
        backend.post_processor = processors.TemplateProcessing(
            single=single, pair=[*single, *pair], special_tokens=ends
        )
    return backend


def _decoder(vocabulary: Vocabulary) -> decoders.Decoder:
    strip = [decoders.Strip(" ", 1, 0)] if vocabulary.prefix != "never" else []
    return decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )


def _as_merges(vocabulary: Vocabulary, model: PieceModel) -> MergeModel:
    """Return BPE with the order of merges that follows from scores, and the same prefix."""
    replaced = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    prepended = [{"type": "Prepend", "prepend": SPACE}] if vocabulary.prefix == "every" else []
    normalizer = {"type": "Sequence", "normalizers": [*prepended, replaced]}
    first = vocabulary.prefix == "first"
    types = list(vocabulary.types)
    unknown = types.index(TokenType.UNKNOWN) if TokenType.UNKNOWN in types else None
    return MergeModel(
        _merges(vocabulary, model),
        metaspace("first") if first else None,
        None if first else normalizer,
        {
            "unk_token": None if unknown is None else vocabulary.pieces[unknown],
            "fuse_unk": True,
            "byte_fallback": True,
        },
        byte_level=False,
    )


def _merges(vocabulary: Vocabulary, model: PieceModel) -> list[tuple[str, str]]:
    """Return all pairs of pieces that join to a piece, that of the highest score first."""
    whole = set(vocabulary.pieces)
    scored = [
        (score, piece)
        for piece, kind, score in zip(
            vocabulary.pieces, vocabulary.types, model.scores, strict=True
        )
        if kind not in (TokenType.CONTROL, TokenType.UNKNOWN, TokenType.UNUSED)
    ]
    scored.sort(key=lambda pair: -pair[0])
    return [
        (piece[:i], piece[i:])
        for _, piece in scored
        for i in range(1, len(piece))
        if piece[:i] in whole and piece[i:] in whole
    ]
