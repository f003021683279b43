"""Reader of the ``tokenizer.json`` files of the ``tokenizers`` library.

Encoding uses only the model, the normalizer, the pre-tokenizer and the added tokens. The library
itself reads them, after the control tokens were removed.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend

from llama_chat.errors import ModelError
from llama_chat.tokenizers.base import (
    DAMAGED,
    MAX_BYTES,
    SPACE,
    is_marker,
    read_file,
    without_surrogates,
)
from llama_chat.tokenizers.bpe import byte_level_bytes, missing_bytes
from llama_chat.tokenizers.library import LibraryTokenizer, library_errors

_MAX_TOKENS = 2**20
_MAX_VALUES = 2**21
"""Limit on the values of a file, of which each takes up to 150 bytes in memory; 262,144 tokens with
twice as many merges, each a list, are 1.8 million."""

_NORMALIZERS = {"Sequence", "Prepend", "Replace", "NFC", "NFD", "NFKC", "NFKD"}
_PRE_TOKENIZERS = {"Sequence", "ByteLevel", "Metaspace", "Split", "Digits"}
"""Components in the files of Llama models; malicious values in some others make the library
panic."""

_BYTE = re.compile("<0x([0-9A-F]{2})>")
"""Byte token in the pieces of SentencePiece."""


class JsonTokenizer(LibraryTokenizer):
    """BPE tokenizer of a ``tokenizer.json``, byte-level or of SentencePiece pieces."""

    def __init__(
        self,
        path: Path,
        *,
        bos_token: str | None = None,
        eos_token: str | None = None,
        add_bos: bool | None = None,
    ) -> None:
        """Read ``path``; for the other arguments see ``TokenizerJsonSource``.

        Without ``bos_token``, BOS is the token that the file's post-processor prepends.

        Raises:
            ModelError: if the file is invalid, or not of a BPE tokenizer.
        """
        file = _File(path)
        first = file.first_token()
        bos_token = bos_token or first
        self.bos_id, self.eos_id = file.id_of(bos_token), file.id_of(eos_token)
        wanted = first == bos_token if add_bos is None else add_bos
        self.add_bos = wanted and self.bos_id is not None
        self.kind = "byte-level BPE" if file.byte_level else "SentencePiece BPE"
        control = file.control_ids(bos_token, eos_token)
        size = max(file.ids.values(), default=-1) + 1
        pieces = [f"<{i}>" for i in range(size)]
        table = [b""] * size
        for text, i in file.ids.items():
            pieces[i] = text
            if text not in control:
                table[i] = file.bytes_of(text)
            elif text == file.unknown:
                table[i] = "\ufffd".encode()
        super().__init__(
            file.backend(control),
            file.what,
            pieces=pieces,
            table=table,
            control_ids=control,
            missing=missing_bytes(file.ids) if file.byte_level else b"",
        )


class _File:
    """Content of a ``tokenizer.json``, with the checks that the library does not make."""

    def __init__(self, path: Path) -> None:
        self.what = f"tokenizer {str(path)!r}"
        self._document = self._table(read_document(path, self.what), "the whole")
        self._model = self._table(self._document.get("model"), "model")
        kind = self._model.get("type", "BPE")
        if kind != "BPE":
            raise self.error(f"its model is {str(kind)[:40]!r}, not BPE")
        for key in ("continuing_subword_prefix", "end_of_word_suffix"):
            if self._model.get(key):
                raise self.error(f"its BPE has a {key}")
        normalizers = self._kinds("normalizer", _NORMALIZERS)
        divisions = self._kinds("pre_tokenizer", _PRE_TOKENIZERS)
        self.byte_level = "ByteLevel" in divisions
        if not (self.byte_level or "Metaspace" in divisions or "Replace" in normalizers):
            raise self.error("it is neither byte-level nor of SentencePiece's kind")
        self._vocab = self._table(self._model.get("vocab"), "vocab")
        self._added = {token["content"]: token for token in self._added_tokens()}
        self.ids = self._all_ids()
        # Byte-level vocabularies encode every character, so none is unknown.
        self.unknown = None if self.byte_level else self._model.get("unk_token")
        self._byte_fallback = self._model.get("byte_fallback") is True
        self._check_coverage()

    def error(self, why: str) -> ModelError:
        return ModelError(self.what, why, DAMAGED)

    def id_of(self, text: str | None) -> int | None:
        """Return the id of a token that another file names."""
        if text is None:
            return None
        if text not in self.ids:
            raise self.error(f"it has no token {text[:40]!r}")
        return self.ids[text]

    def control_ids(self, *named: str | None) -> dict[str, int]:
        """Return the tokens that text must never produce, in the order of their ids."""
        texts = {
            text for text, token in self._added.items() if token.get("special") or is_marker(text)
        }
        texts |= {text for text in (*named, self.unknown) if text is not None}
        return {text: self.ids[text] for text in sorted(texts, key=self.ids.__getitem__)}

    def first_token(self) -> str | None:
        """Return the control token that the post-processor prepends to a text, if any."""
        for part in self._parts(self._document.get("post_processor")):
            single = part.get("single")
            if part["type"] == "TemplateProcessing" and isinstance(single, list) and single:
                token = self._table(single[0], "template").get("SpecialToken")
                name = token.get("id") if isinstance(token, dict) else None
                return name if isinstance(name, str) else None
        return None

    def bytes_of(self, text: str) -> bytes:
        """Return the bytes of a token that is no control token."""
        if text in self._added:
            return text.encode()
        if self.byte_level:
            return byte_level_bytes(text)
        found = _BYTE.fullmatch(text) if self._byte_fallback else None
        return bytes.fromhex(found[1]) if found else text.replace(SPACE, " ").encode()

    def backend(self, control: Mapping[str, int]) -> Backend:
        """Return the library's tokenizer, without ``control`` and all that adds to or cuts a text.

        The other added tokens are put into the vocabulary, which keeps their ids.
        """
        vocab = {
            text: i for text, i in self.ids.items() if text not in control or text == self.unknown
        }
        model = {**self._model, "vocab": vocab, "dropout": None, "unk_token": self.unknown}
        added = [token for text, token in self._added.items() if text not in control]
        document = {
            "version": "1.0",
            "normalizer": self._document.get("normalizer"),
            "pre_tokenizer": self._document.get("pre_tokenizer"),
            "added_tokens": added,
            "model": {**model, "type": "BPE"},
        }
        with library_errors(self.what):
            return Backend.from_str(json.dumps(document))

    def _table(self, value: object, name: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self.error(f"{name} is not a table")
        return value

    def _parts(self, node: object) -> Iterator[dict[str, Any]]:
        """Yield the components of a normalizer, pre-tokenizer or post-processor, also nested."""
        if node is None:
            return
        part = self._table(node, "a part")
        if not isinstance(part.get("type"), str):
            raise self.error("a part of it is of no type")
        yield part
        if part["type"] == "Sequence":
            for key in ("normalizers", "pretokenizers", "processors"):
                inner = part.get(key, [])
                if not isinstance(inner, list):
                    raise self.error(f"{key} is not a list")
                for one in inner:
                    yield from self._parts(one)

    def _kinds(self, name: str, known: set[str]) -> set[str]:
        found = {part["type"] for part in self._parts(self._document.get(name))}
        if unknown := sorted(found - known):
            raise self.error(f"its {name} is {unknown[0][:40]!r}, which no Llama model has")
        return found

    def _added_tokens(self) -> list[dict[str, Any]]:
        added = self._document.get("added_tokens") or []
        if not isinstance(added, list):
            raise self.error("added_tokens is not a list")
        for token in added:
            text = self._table(token, "an added token").get("content")
            if not isinstance(text, str) or text != without_surrogates(text):
                raise self.error("an added token has no text")
        return added

    def _all_ids(self) -> dict[str, int]:
        """Return the ids of all tokens by their text."""
        ids = dict(self._vocab)
        for text, token in self._added.items():
            if ids.setdefault(text, token.get("id")) != token.get("id"):
                raise self.error(f"token {text[:40]!r} has two ids")
        if not all(type(i) is int and 0 <= i < _MAX_TOKENS for i in ids.values()):
            raise self.error(f"an id is no whole number from 0 to {_MAX_TOKENS - 1}")
        if len(set(ids.values())) != len(ids):
            raise self.error("two tokens have the same id")
        return ids

    def _check_coverage(self) -> None:
        """Refuse a vocabulary that would silently drop characters."""
        if self.byte_level:
            return
        if self.unknown is not None:
            if not isinstance(self.unknown, str) or self.unknown not in self.ids:
                raise self.error("its unknown token is not in the vocabulary")
            return
        if not self._byte_fallback or not all(f"<0x{i:02X}>" in self.ids for i in range(256)):
            raise self.error("it has neither an unknown token nor tokens for all bytes")


def read_document(path: Path, what: str) -> object:
    """Read the JSON document in a file.

    Raises:
        ModelError: about ``what``, if it is not JSON, or has too many values.
    """
    data = read_file(path, what, MAX_BYTES)
    if sum(map(data.count, (b"[", b"{", b","))) > _MAX_VALUES:
        raise ModelError(what, "it has more values than that of any model", DAMAGED)
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise ModelError(what, "it is not JSON", DAMAGED) from None
