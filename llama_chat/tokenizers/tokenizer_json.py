"""Reader of the ``tokenizer.json`` files of the ``tokenizers`` library.

Of their parts, the model, the normalizer, the pre-tokenizer and the added tokens encode a text, and
the post-processor says what a prompt begins and ends with.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from llama_chat.errors import ModelError
from llama_chat.gates import gate
from llama_chat.tokenizers.base import MAX_BYTES, read_file, without_surrogates
from llama_chat.tokenizers.vocabulary import (
    DAMAGED,
    MAX_TOKENS,
    SPACE,
    AddedToken,
    MergeModel,
    Prefix,
    TokenType,
    Vocabulary,
    check_gaps,
)

_KNOWN = {
    "normalizer": {"Sequence", "Prepend", "Replace", "NFC", "NFD", "NFKC", "NFKD"},
    "pre_tokenizer": {"Sequence", "ByteLevel", "Metaspace", "Split", "Digits"},
}
"""Components in the files of Llama models; malicious values in some others make the library
panic."""

_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
"""Byte tokens in the pieces of SentencePiece."""


_MAX_VALUES = 2**21
"""Limit on the values of a file, of which each takes up to 150 bytes in memory; 262,144 tokens with
twice as many merges, each a list, are 1.8 million."""

_OTHER = "take a model with byte-level BPE or SentencePiece"

_DEPTH = 8
"""Limit on components within components."""


class TokenizerJson:
    """Content of a ``tokenizer.json``, with the checks that the library does not make."""

    def __init__(self, path: Path) -> None:
        """Read ``path``.

        Raises:
            ModelError: if it is damaged.
        """
        self.path, self.what = path, f"tokenizer {str(path)!r}"
        self._document = self._table(read_document(path, self.what), "the whole")
        self._model = self._table(self._document.get("model"), "model")
        self.is_bpe = self._model.get("type", "BPE") == "BPE"
        vocab = self._model.get("vocab")
        self._ids: dict[str, Any] = vocab if isinstance(vocab, dict) else {}
        self._components = [
            (name, part)
            for name in ("normalizer", "pre_tokenizer")
            for part in self._parts(self._document.get(name))
        ]
        by_type = {part["type"]: part for _, part in self._components}
        self.byte_level = "ByteLevel" in by_type
        self.is_metaspace = "Metaspace" in by_type
        self.prefix = _prefix(by_type)
        self.added = self._added_tokens()
        """Added tokens by their ids."""
        self.n_ids = max([len(self._ids) - 1, *self.added]) + 1
        """Number of ids; some may be of no token."""
        self.first, self.last = self._ends()
        """Tokens that the post-processor puts before and after a prompt, or None."""

    def error(self, why: str, advice: str = DAMAGED) -> ModelError:
        """Make the error about this file."""
        return ModelError(self.what, why, advice)

    def vocabulary(self) -> Vocabulary:
        """Return the vocabulary, without what other files say about it.

        Raises:
            ModelError: if it is not of BPE, or its tables contradict each other.
        """
        unknown = self._check()
        last = max(self._ids.values(), default=-1)
        check_gaps(self.what, last + 1, len(self._ids) + len(self.added))
        pieces = [f"<{i}>" for i in range(last + 1)]
        types: list[int] = [TokenType.UNUSED] * len(pieces)
        normal = TokenType.NORMAL
        for text, i in self._ids.items():
            pieces[i], types[i] = text, normal
        byte_fallback = self._model.get("byte_fallback") is True
        for text in _BYTES if byte_fallback else ():
            if text in self._ids:
                types[self._ids[text]] = TokenType.BYTE
        options = {key: self._model.get(key) is True for key in ("fuse_unk", "ignore_merges")}
        model = MergeModel(
            self._merges(),
            self._document.get("pre_tokenizer"),
            self._document.get("normalizer"),
            {**options, "byte_fallback": byte_fallback, "unk_token": unknown},
            self.byte_level,
        )
        found = Vocabulary(
            what=self.what,
            pieces=pieces,
            types=types,
            model=model,
            prefix=self.prefix,
            file=self.path,
        ).with_added(self.added)
        if unknown is None:
            return found
        at = found.pieces.index(unknown)
        return replace(found, types=[*found.types[:at], TokenType.UNKNOWN, *found.types[at + 1 :]])

    def _check(self) -> str | None:
        """Check the model, and return its unknown token, if it has one."""
        if not self.is_bpe:
            raise self.error(f"its model is {str(self._model['type'])[:40]!r}, not BPE", _OTHER)
        for key in ("continuing_subword_prefix", "end_of_word_suffix"):
            if self._model.get(key):
                raise self.error(f"its BPE has a {key}", _OTHER)
        for name, part in self._components:
            if part["type"] not in _KNOWN[name]:
                why = f"its {name} is {part['type'][:40]!r}, which no Llama model has"
                raise self.error(why, _OTHER)
        replaced = any(part["type"] == "Replace" for _, part in self._components)
        if not (self.byte_level or self.is_metaspace or replaced):
            raise self.error("it is neither byte-level nor of SentencePiece's kind", _OTHER)
        self._table(self._model.get("vocab"), "vocab")
        self._check_ids()
        # Byte-level vocabularies encode every character, so none is unknown.
        unknown = None if self.byte_level else self._model.get("unk_token")
        if unknown is not None and not self._is_token(unknown):
            raise self.error("its unknown token is not in the vocabulary")
        if unknown is None and not self.byte_level:
            byte_fallback = self._model.get("byte_fallback") is True
            if not byte_fallback or not all(text in self._ids for text in _BYTES):
                raise self.error("it has neither an unknown token nor tokens for all bytes")
        return unknown

    def _merges(self) -> list[tuple[str, str]]:
        """Return the merges; older files hold "left right", newer ones pairs."""
        merges = self._model.get("merges")
        if not isinstance(merges, list):
            raise self.error("merges is not a list")
        pairs: list[Any] = [
            tuple(merge.split(" ") if type(merge) is str else merge)
            for merge in merges
            if type(merge) in (str, list)
        ]
        halves = {*map(type, chain.from_iterable(pairs))}
        if len(pairs) < len(merges) or not {*map(len, pairs)} <= {2} or not halves <= {str}:
            raise self.error("a merge is not of two tokens")
        return pairs

    def _table(self, value: object, name: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self.error(f"{name} is not a table")
        return value

    def _parts(self, node: object, depth: int = 0) -> Iterator[dict[str, Any]]:
        """Yield the components of a normalizer, pre-tokenizer or post-processor, also nested."""
        if node is None:
            return
        part = self._table(node, "a part")
        if not isinstance(part.get("type"), str):
            raise self.error("a part of it is of no type")
        if depth > _DEPTH:
            raise self.error("its parts are nested too deeply")
        yield part
        if part["type"] == "Sequence":
            for key in ("normalizers", "pretokenizers", "processors"):
                inner = part.get(key, [])
                if not isinstance(inner, list):
                    raise self.error(f"{key} is not a list")
                for one in inner:
                    yield from self._parts(one, depth + 1)

    def _added_tokens(self) -> dict[int, AddedToken]:
        entries = self._document.get("added_tokens") or []
        if not isinstance(entries, list):
            raise self.error("added_tokens is not a list")
        found: dict[int, AddedToken] = {}
        for entry in entries:
            token, i = added_token(self._table(entry, "an added token")), entry.get("id")
            if token is None:
                raise self.error("an added token has no text")
            if not _is_id(i):
                raise self._id_error()
            if self._ids.get(token.text, i) != i:
                raise self.error(f"token {token.text[:40]!r} has two ids")
            if i in found:
                raise self.error("two tokens have the same id")
            found[i] = token
        return found

    def _check_ids(self) -> None:
        ids = self._ids.values()
        if not all(map(_is_id, ids)):
            raise self._id_error()
        more = [i for i, token in self.added.items() if token.text not in self._ids]
        if len({*ids, *more}) != len(ids) + len(more):
            raise self.error("two tokens have the same id")

    def _id_error(self) -> ModelError:
        return self.error(f"an id is no whole number from 0 to {MAX_TOKENS - 1}")

    def _is_token(self, text: object) -> bool:
        known = (token.text for token in self.added.values())
        return isinstance(text, str) and (text in self._ids or text in known)

    def _ends(self) -> tuple[str | None, str | None]:
        """Return the tokens that the post-processor puts before and after a prompt."""
        for part in self._parts(self._document.get("post_processor")):
            single = part.get("single")
            if part["type"] == "TemplateProcessing" and isinstance(single, list) and single:
                first, last = (self._special(end) for end in (single[0], single[-1]))
                return first, last if len(single) > 1 else None
        return None, None

    def _special(self, end: object) -> str | None:
        """Return the special token at an end of a template, if it is one."""
        special = self._table(end, "a template").get("SpecialToken")
        name = special.get("id") if isinstance(special, dict) else None
        return name if self._is_token(name) else None


def _is_id(value: object) -> bool:
    return type(value) is int and 0 <= value < MAX_TOKENS


def read_json(path: Path) -> Vocabulary:
    """Read a ``tokenizer.json`` by itself; its post-processor says which token is BOS.

    Raises:
        ModelError: if it is damaged, or not of BPE.
    """
    document = TokenizerJson(path)
    found = document.vocabulary()
    if document.first is None:
        return found
    return replace(found, bos_id=found.pieces.index(document.first), add_bos=True)


def added_token(entry: Mapping[str, Any]) -> AddedToken | None:
    """Read an entry that describes an added token; None if it has no text."""
    text = entry.get("content")
    if not isinstance(text, str) or text != without_surrogates(text):
        return None
    flags = ("special", "lstrip", "rstrip", "single_word", "normalized")
    return AddedToken(text, **{flag: entry.get(flag) is True for flag in flags})


def metaspace(prefix: Prefix) -> dict[str, Any]:
    """Return the pre-tokenizer of SentencePiece's kind that puts a space in front of texts."""
    scheme = "always" if prefix == "every" else prefix
    return {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": scheme, "split": False}


def _prefix(components: Mapping[str, Mapping[str, Any]]) -> Prefix:
    """Return the texts that components put a space in front of."""
    if "Prepend" in components or components.get("ByteLevel", {}).get("add_prefix_space") is True:
        return "every"
    metaspace = components.get("Metaspace")
    if metaspace is None:
        return "never"
    # Older files have a flag.
    older = "never" if metaspace.get("add_prefix_space") is False else "always"
    scheme = metaspace.get("prepend_scheme") or older
    return "first" if scheme == "first" else "never" if scheme == "never" else "every"


def read_document(path: Path, what: str) -> object:
    """Read a JSON file of a vocabulary.

    Raises:
        ModelError: about ``what``, if it is not JSON, or too large.
    """
    data = read_file(path, what, MAX_BYTES)
    if sum(map(data.count, (b"[", b"{", b","))) > _MAX_VALUES:
        raise ModelError(what, "it has more values than that of any model", DAMAGED)
    with gate(what, DAMAGED, why="it is not JSON"):
        return json.loads(data)
