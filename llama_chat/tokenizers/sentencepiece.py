"""SentencePiece vocabularies, such as that of Llama 2."""

from functools import cached_property
from itertools import compress, islice
from pathlib import Path

import sentencepiece

from llama_chat.errors import ModelError
from llama_chat.gates import gate
from llama_chat.tokenizers.added_tokens import AddedTokenFinder
from llama_chat.tokenizers.base import Tokenizer, piece_bytes, read_file
from llama_chat.tokenizers.sentencepiece_file import (
    make_file,
    read_pieces,
    user_defined_ids,
    with_types,
    without_prefix,
)
from llama_chat.tokenizers.vocabulary import (
    DAMAGED,
    SPACE,
    PieceModel,
    TokenType,
    Vocabulary,
    odd_piece,
)

_MAX_PIECES = 2**18
"""Limit on the pieces that are searched for an invalid one: as many as any vocabulary has."""

_ADVICE = "take the tokenizer.model that came with the model"


def read_model(path: Path) -> Vocabulary:
    """Read a ``tokenizer.model`` file.

    Raises:
        ModelError: if it is not a SentencePiece model.
    """
    what = f"tokenizer {str(path)!r}"
    data = read_file(path, what)
    if data.lstrip()[:1] == b"<":
        raise ModelError(what, "it is a web page, not a tokenizer", "download the file itself")
    with gate(what, _ADVICE, why="it is not a SentencePiece model, or damaged"):
        return _read(data, path, what)


def _read(data: bytes, path: Path, what: str) -> Vocabulary:
    try:
        library = _load(data)
        ids = list(range(library.vocab_size()))
        pieces = library.id_to_piece(ids)
    except UnicodeDecodeError:
        raise ModelError(what, "a piece of it is not UTF-8", DAMAGED) from None
    except (RuntimeError, ValueError):
        if why := odd_piece(enumerate(islice(read_pieces(data, what), _MAX_PIECES))):
            raise ModelError(what, why, _ADVICE) from None
        raise
    bos_id, eos_id = (i if i >= 0 else None for i in (library.bos_id(), library.eos_id()))
    probe = library.encode("a", out_type=str)
    return Vocabulary(
        what=what,
        pieces=pieces,
        types=_types(library, data, ids, what),
        model=PieceModel(library.get_score(ids), data),
        bos_id=bos_id,
        eos_id=eos_id,
        add_bos=bos_id is not None,
        prefix="every" if probe and probe[0].startswith(SPACE) else "never",
        file=path,
    )


def _types(
    library: sentencepiece.SentencePieceProcessor, data: bytes, ids: list[int], what: str
) -> list[int]:
    types: list[int] = [TokenType.NORMAL] * len(ids)
    found = {
        TokenType.USER_DEFINED: user_defined_ids(data, what),
        TokenType.UNUSED: compress(ids, library.is_unused(ids)),
        TokenType.BYTE: compress(ids, library.is_byte(ids)),
        TokenType.CONTROL: compress(ids, library.is_control(ids)),
        TokenType.UNKNOWN: compress(ids, library.is_unknown(ids)),
    }
    for kind, of_kind in found.items():
        for i in of_kind:
            types[i] = kind
    return types


class SentencePieceTokenizer(Tokenizer):
    """Tokenizer that runs SentencePiece, on a model file or on tables."""

    kind = "SentencePiece"

    def __init__(self, vocabulary: Vocabulary, model: PieceModel) -> None:
        """Load the library's tokenizer.

        Raises:
            ModelError: if the tables make no SentencePiece vocabulary.
        """
        super().__init__(vocabulary)
        control = set(self.control_ids.values())
        self._file = model.file or make_file(vocabulary, model, control)
        self._library = self._loaded(self._file)
        if model.file:
            self._forbid(control)
        words = {i: token for i, token in vocabulary.added.items() if i not in control}
        self._words = AddedTokenFinder(words) if words else None

    def _forbid(self, control: set[int]) -> None:
        """Mark control tokens that the file has as text, and tokens without a row, as control."""
        library = self._library
        forbidden = [*control, *range(self.vocab_size, library.vocab_size())]
        types = {
            i: TokenType.CONTROL
            for i in forbidden
            if i < library.vocab_size() and not (library.is_control(i) or library.is_unknown(i))
        }
        if types:
            self._file = with_types(self._file, types, self._what)
            self._library = self._loaded(self._file)

    def _encode(self, text: str, prefixed: bool) -> list[int]:
        ids: list[int] = []
        for part in [text] if self._words is None else self._words.split(text):
            if isinstance(part, int):
                ids.append(part)
                prefixed = self.prefix == "every"
            else:
                plain = not prefixed or self.prefix == "never"
                ids += (self._unprefixed if plain else self._library).encode(part)
        return ids

    def _piece_bytes(self, token_id: int) -> bytes:
        return piece_bytes(self._pieces[token_id], self._types[token_id])

    @cached_property
    def _unprefixed(self) -> sentencepiece.SentencePieceProcessor:
        """The library's tokenizer that puts no space in front of a text."""
        return self._loaded(without_prefix(self._file))

    def _loaded(self, file: bytes) -> sentencepiece.SentencePieceProcessor:
        with gate(self._what, DAMAGED, why="its pieces make no SentencePiece vocabulary"):
            return _load(file)


def _load(file: bytes) -> sentencepiece.SentencePieceProcessor:
    """Return the library's tokenizer.

    Raises:
        RuntimeError, ValueError: if ``file`` is not a usable model.
    """
    library = sentencepiece.SentencePieceProcessor()
    library.LoadFromSerializedProto(file)
    if library.vocab_size() < 1 or library.unk_id() < 0:
        raise ValueError("it has no pieces, or no unknown one")
    return library
