"""Base class of tokenizers that run on the ``tokenizers`` library."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from tokenizers import Tokenizer as Backend

from llama_chat.errors import ModelError
from llama_chat.tokenizers.base import DAMAGED
from llama_chat.tokenizers.pieces import PieceTokenizer


class LibraryTokenizer(PieceTokenizer):
    """BPE tokenizer of the library.

    The library is not given the control tokens, so that no text can produce one.
    """

    def __init__(
        self,
        backend: Backend,
        what: str,
        *,
        pieces: Sequence[str],
        table: Sequence[bytes],
        control_ids: Mapping[str, int],
        missing: bytes = b"",
    ) -> None:
        """Store the library's tokenizer and the tables; see ``PieceTokenizer``.

        ``backend`` must have no control tokens. ``what`` names the tokenizer in errors.
        ``missing`` are bytes that no token encodes.

        Raises:
            ModelError: if the vocabulary cannot encode even U+FFFD.
        """
        super().__init__(pieces, table, control_ids)
        self._backend = backend
        self._what = what
        if not set(missing).isdisjoint("\ufffd".encode()):
            raise ModelError(what, "it lacks tokens for single bytes", DAMAGED)
        self._unencodable = re.compile(b"[" + re.escape(missing) + b"]") if missing else None
        self.dummy_prefix = b"".join(map(self.token_bytes, self._encode("a"))).startswith(b" ")

    def _encodable(self, text: str) -> str:
        """Replace characters with bytes that no token encodes by U+FFFD.

        Vocabularies lack bytes that do not occur in their training text, and the algorithm would
        silently drop such characters.
        """
        unencodable = self._unencodable
        if unencodable is None or not unencodable.search(text.encode()):
            return text
        characters = [c for c in set(text) if unencodable.search(c.encode())]
        return text.translate(dict.fromkeys(map(ord, characters), "\ufffd"))

    def _encode(self, text: str) -> list[int]:
        with library_errors(self._what):
            ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        return ids


@contextmanager
def library_errors(what: str) -> Iterator[None]:
    """Convert exceptions of the library to ``ModelError`` about ``what``.

    For errors it raises ``Exception`` itself, and for panics a subclass of ``BaseException`` that
    cannot be imported.
    """
    try:
        yield
    except BaseException as error:
        if type(error) is not Exception and type(error).__name__ != "PanicException":
            raise
        why = f"the tokenizers library cannot use it ({str(error)[:80]!r})"
        raise ModelError(what, why, DAMAGED) from None
