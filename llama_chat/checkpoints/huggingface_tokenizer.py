"""Vocabulary files of a Hugging Face folder."""

import reprlib
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

from llama_chat.checkpoints.base import label
from llama_chat.checkpoints.small_files import JsonObject, read_optional
from llama_chat.errors import ModelError
from llama_chat.tokenizers.ranked import read_model_file
from llama_chat.tokenizers.sentencepiece import read_model
from llama_chat.tokenizers.tokenizer_json import TokenizerJson, added_token, metaspace
from llama_chat.tokenizers.vocabulary import (
    AddedToken,
    MergeModel,
    PieceModel,
    Prefix,
    TokenType,
    Vocabulary,
    is_marker,
)

_FETCH = "download it from the same release"

_NAMES = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
_LISTS = ("additional_special_tokens", "extra_special_tokens")
"""Keys of special tokens, in the order in which transformers gives ids to new ones."""

_LLAMA_CLASSES = ("LlamaTokenizer", "CodeLlamaTokenizer")
"""Classes of transformers that put spaces in front of texts as ``legacy`` says, whatever
``tokenizer.json`` says."""


def read_tokenizer_config(folder: Path) -> JsonObject:
    """Read ``tokenizer_config.json`` in ``folder``; empty if there is none.

    Raises:
        ModelError: if it is damaged.
    """
    return read_optional(folder / "tokenizer_config.json", _FETCH)


def read_vocabulary(folder: Path) -> Vocabulary:
    """Read the vocabulary of ``tokenizer.model``, of ``tokenizer.json``, or what both say together.

    The small files beside them add tokens, say which ones are special, and what a prompt begins and
    ends with.

    Raises:
        ModelError: if there is neither, or a file is damaged.
    """
    config = read_tokenizer_config(folder)
    special = _special_tokens(config, read_optional(folder / "special_tokens_map.json", _FETCH))
    model, tables = folder / "tokenizer.model", folder / "tokenizer.json"
    document = TokenizerJson(tables) if tables.exists() else None
    if document is not None:
        base = _joined(document, _read_beside(model), config)
    elif model.exists():
        base = read_model_file(model)
        if isinstance(base.model, PieceModel):
            base = _with_legacy(base, config)
    else:
        why = "no tokenizer.model or tokenizer.json in it"
        raise ModelError(label(folder), why, _FETCH)
    declared = _declared_tokens(folder, config, set(special.values()))
    if document is not None:
        declared = document.added | declared
    found = base.with_added(_with_ids(base, declared, special))
    return _with_flags(found, config, special, document)


def _read_beside(path: Path) -> Vocabulary | None:
    """Read the SentencePiece model beside another file; None for another kind, as of Llama 3."""
    try:
        return read_model(path) if path.exists() else None
    except ModelError:
        return None


def _joined(document: TokenizerJson, pieces: Vocabulary | None, config: JsonObject) -> Vocabulary:
    """Return the vocabulary that encodes text, with the prefix that the files say.

    It is SentencePiece's, as the original, unless ``tokenizer.json`` has more tokens or puts spaces
    before texts in its own way.
    """
    of_llama = (config.text("tokenizer_class") or "").removesuffix("Fast") in _LLAMA_CLASSES
    by_legacy = of_llama and not document.byte_level and config.flag("legacy") is not None
    own_way = document.is_metaspace and not by_legacy
    if pieces is None:
        found = document.vocabulary()
    elif not document.is_bpe or (document.n_ids <= len(pieces.pieces) and not own_way):
        found = pieces if by_legacy else replace(pieces, prefix=document.prefix)
    else:
        found = _with_control(document.vocabulary(), pieces)
    return _with_legacy(found, config) if by_legacy else found


def _with_control(base: Vocabulary, pieces: Vocabulary) -> Vocabulary:
    """Return a copy of ``base`` in which the control tokens of ``pieces`` are such, too."""
    types = list(base.types)
    shared = zip(base.pieces, pieces.pieces, pieces.types, strict=False)
    for i, (piece, other, kind) in enumerate(shared):
        if kind == TokenType.CONTROL and piece == other:
            types[i] = kind
    return replace(base, types=types)


def _with_legacy(base: Vocabulary, config: JsonObject) -> Vocabulary:
    """Return a copy with the prefix that ``legacy`` and ``add_prefix_space`` say."""
    prefix: Prefix = base.prefix
    legacy = config.flag("legacy")
    if legacy is not None and prefix != "never":
        prefix = "every" if legacy else "first"
    if config.flag("add_prefix_space") is False:
        prefix = "never"
    if isinstance(base.model, MergeModel):
        model = replace(base.model, normalizer=None, pre_tokenizer=metaspace(prefix))
        return replace(base, prefix=prefix, model=model, file=None)
    return replace(base, prefix=prefix)


def _special_tokens(*sources: JsonObject) -> dict[str, str]:
    """Return the texts of special tokens by their names, each from the first file that gives it."""
    found: dict[str, str] = {}
    for source in sources:
        for name in _NAMES:
            text = _text_of(source, name)
            if text is not None:
                found.setdefault(name, text)
    for source in sources:
        for name in _LISTS:
            more = source.values.get(name)
            entries = list(more.values()) if isinstance(more, dict) else more
            for entry in entries if isinstance(entries, list) else ():
                token = added_token(entry if isinstance(entry, dict) else {"content": entry})
                if token is not None:
                    found.setdefault(f"{name} {token.text}", token.text)
    return found


def _text_of(source: JsonObject, name: str) -> str | None:
    """Read a special token: a text, or an object that describes one."""
    if isinstance(source.values.get(name), dict):
        return source.object(name).text("content")
    return source.text(name)


def _declared_tokens(
    folder: Path, config: JsonObject, special: Collection[str]
) -> dict[int, AddedToken]:
    """Read the added tokens of the small files; the newer one takes precedence."""
    decoder = config.object("added_tokens_decoder")
    if decoder.values:
        return {_number(decoder, key): _token(decoder, key) for key in decoder.values}
    older = read_optional(folder / "added_tokens.json", _FETCH)
    found: dict[int, AddedToken] = {}
    for text, token_id in older.values.items():
        token = added_token({"content": text, "special": text in special})
        if token is None or type(token_id) is not int:
            raise older.error(f"{reprlib.repr(text)} has no id")
        found[token_id] = replace(token, normalized=not token.special)
    return found


def _number(decoder: JsonObject, key: str) -> int:
    if not (key.isdecimal() and len(key) < 10):
        raise decoder.error(f"{reprlib.repr(key)} is no id of an added token")
    return int(key)


def _token(decoder: JsonObject, key: str) -> AddedToken:
    token = added_token(decoder.object(key).values)
    if token is None:
        raise decoder.error(f"added token {reprlib.repr(key)} has no text")
    return token


def _with_ids(
    base: Vocabulary, declared: Mapping[int, AddedToken], special: Mapping[str, str]
) -> dict[int, AddedToken]:
    """Return the added tokens by their ids; those without one get the next, as in transformers.

    A token that is there already keeps its id.
    """
    wanted = {*(token.text for token in declared.values()), *special.values()}
    ids = {piece: i for i, piece in enumerate(base.pieces) if piece in wanted}
    found = {
        ids.setdefault(token.text, token_id): token for token_id, token in sorted(declared.items())
    }
    size = max([len(base.pieces) - 1, *found]) + 1
    for text in special.values():
        if text not in ids:
            ids[text], size = size, size + 1
        token = found.get(ids[text]) or base.added.get(ids[text])
        # Ordinary words that serve as padding stay words.
        if token is not None or is_marker(text) or ids[text] >= len(base.pieces):
            found[ids[text]] = replace(token or AddedToken(text), special=True)
    return found


def _with_flags(
    base: Vocabulary,
    config: JsonObject,
    special: Mapping[str, str],
    document: TokenizerJson | None,
) -> Vocabulary:
    """Return a copy with BOS and EOS: the small files come before the post-processor."""
    first, last = (document.first, document.last) if document else (None, None)
    bos, eos = special.get("bos_token") or first, special.get("eos_token")
    bos_id = base.pieces.index(bos) if bos in base.pieces else base.bos_id
    eos_id = base.pieces.index(eos) if eos in base.pieces else base.eos_id
    add_bos, add_eos = config.flag("add_bos_token"), config.flag("add_eos_token")
    if add_bos is None:
        add_bos = first == bos if first is not None else base.add_bos
    if add_eos is None:
        add_eos = last is not None and last == eos
    return replace(
        base,
        bos_id=bos_id,
        eos_id=eos_id,
        add_bos=add_bos and bos_id is not None,
        add_eos=add_eos and eos_id is not None,
    )
