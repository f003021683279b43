"""BPE tokenizers, byte-level or of SentencePiece pieces, on the ``tokenizers`` library."""

import json
import re
from collections.abc import Collection, Iterable, Mapping
from functools import cached_property
from typing import Any

from tokenizers import Encoding
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE

from llama_chat.errors import ModelError
from llama_chat.gates import gate
from llama_chat.tokenizers.added_tokens import library_token
from llama_chat.tokenizers.base import Tokenizer, piece_bytes
from llama_chat.tokenizers.bpe import byte_level_bytes, missing_bytes
from llama_chat.tokenizers.vocabulary import (
    DAMAGED,
    AddedToken,
    MergeModel,
    TokenType,
    Vocabulary,
)

Component = Mapping[str, Any] | None
"""Normalizer or pre-tokenizer in the JSON of the library."""


class LibraryTokenizer(Tokenizer):
    """BPE tokenizer of the library.

    The library is not given the control tokens, so that no text can produce one.
    """

    def __init__(self, vocabulary: Vocabulary, model: MergeModel) -> None:
        """Make the library's tokenizer.

        Raises:
            ModelError: if the library cannot use the vocabulary, or it cannot encode even U+FFFD.
        """
        super().__init__(vocabulary)
        self.kind = "byte-level BPE" if model.byte_level else "SentencePiece BPE"
        self._byte_level = model.byte_level
        self._normalizer, self._pre_tokenizer = model.normalizer, model.pre_tokenizer
        control = set(self.control_ids.values())
        self._words = {i: token for i, token in self.added.items() if i not in control}
        ids = self._text_ids(model)
        self._bpe = merging(self._what, ids, self._pieces, model)
        self._backend = self._assemble(self._normalizer, self._pre_tokenizer)
        missing = missing_bytes(ids) if model.byte_level else b""
        if not set(missing).isdisjoint("\ufffd".encode()):
            raise ModelError(self._what, "it lacks tokens for single bytes", DAMAGED)
        self._missing = missing
        self._unencodable = re.compile(b"[" + re.escape(missing) + b"]") if missing else None

    def _text_ids(self, model: MergeModel) -> dict[str, int]:
        """Return the ids that text may become, and the unknown one, by their pieces."""
        unused = TokenType.UNUSED
        ids = {
            piece: i
            for i, (piece, kind) in enumerate(zip(self._pieces, self._types, strict=True))
            if kind != unused
        }
        for text, i in self.control_ids.items():
            if ids.get(text) == i and text != model.options.get("unk_token"):
                del ids[text]
        return ids

    def _assemble(self, normalizer: Component, pre_tokenizer: Component) -> Backend:
        return assemble(self._what, self._bpe, normalizer, pre_tokenizer, self._words.values())

    @cached_property
    def _unprefixed(self) -> Backend:
        """The library's tokenizer that puts no space in front of a text."""
        return self._assemble(
            _without_prefix(self._normalizer), _without_prefix(self._pre_tokenizer)
        )

    def _encodable(self, text: str) -> str:
        """Replace characters with bytes that no token encodes by U+FFFD.

        Vocabularies lack bytes that do not occur in their training text, and the algorithm would
        silently drop such characters.
        """
        unencodable = self._unencodable
        if unencodable is None or self._is_encodable(text.encode()):
            return text
        characters = [c for c in set(text) if unencodable.search(c.encode())]
        return text.translate(dict.fromkeys(map(ord, characters), "\ufffd"))

    def _is_encodable(self, data: bytes) -> bool:
        """True if there is a token for each byte; faster than a search for those without."""
        return len(data.translate(None, self._missing)) == len(data)

    def _encode(self, text: str, prefixed: bool) -> list[int]:
        if prefixed or self.prefix == "never":
            return self._run(self._backend, text).ids
        rest: list[int] = []
        if self._words and self.prefix == "every":
            # The texts after an added token begin with the space again.
            found = self._run(self._backend, text)
            first = next((at for at, i in enumerate(found.ids) if i in self._words), None)
            if first is not None:
                text, rest = text[: found.offsets[first][0]], found.ids[first:]
        return [*self._run(self._unprefixed, text).ids, *rest]

    def _run(self, backend: Backend, text: str) -> Encoding:
        with gate(self._what, DAMAGED, library="tokenizers"):
            return backend.encode(text, add_special_tokens=False)

    def _piece_bytes(self, token_id: int) -> bytes:
        piece = self._pieces[token_id]
        if self._byte_level and token_id not in self.added:
            return byte_level_bytes(piece)
        if self._byte_level:
            return piece.encode("utf-8", "replace")
        return piece_bytes(piece, self._types[token_id])


def assemble(
    what: str,
    bpe: BPE,
    normalizer: Component,
    pre_tokenizer: Component,
    added: Iterable[AddedToken],
) -> Backend:
    """Return a tokenizer of the library, whose added tokens must be in the vocabulary of ``bpe``.

    Raises:
        ModelError: if the library cannot use a part.
    """
    document: dict[str, Any] = {
        "version": "1.0",
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "added_tokens": [],
        "model": {"type": "BPE", "vocab": {}, "merges": []},
    }
    with gate(what, DAMAGED, library="tokenizers"):
        backend = Backend.from_str(json.dumps(document))
        backend.model = bpe
        backend.add_tokens(list(map(library_token, added)))
    return backend


def merging(what: str, ids: dict[str, int], pieces: Collection[str], model: MergeModel) -> BPE:
    """Return the library's algorithm on ``ids``, without the merges that need other tokens.

    They are checked here, since the library panics on some.

    Raises:
        ModelError: if a merge is not of the vocabulary's tokens, or the library cannot use it.
    """
    merges = [
        pair
        for pair in model.merges
        if pair[0] in ids and pair[1] in ids and pair[0] + pair[1] in ids
    ]
    if len(merges) < len(model.merges):
        known = set(pieces)
        for left, right in model.merges:
            if not {left, right, left + right} <= known:
                why = f"merge {f'{left} {right}'[:60]!r} is not of its tokens"
                raise ModelError(what, why, DAMAGED)
    with gate(what, DAMAGED, library="tokenizers"):
        return BPE(ids, merges, **model.options)


def _without_prefix(component: Component) -> Component:
    """Return a component that puts no space in front of a text, and else does the same."""
    if component is None or component["type"] == "Prepend":
        return None
    if component["type"] == "Metaspace":
        return {**component, "prepend_scheme": "never", "add_prefix_space": False}
    if component["type"] == "ByteLevel":
        return {**component, "add_prefix_space": False}
    parts = {
        key: [part for part in map(_without_prefix, component[key]) if part is not None]
        for key in ("normalizers", "pretokenizers")
        if key in component
    }
    return {**component, **parts}
