"""What runs on the ``tokenizers`` library."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from tokenizers import Tokenizer as Backend

from llama_chat.errors import ModelError
from llama_chat.tokenizers.base import DAMAGED
from llama_chat.tokenizers.pieces import PieceTokenizer


class LibraryTokenizer(PieceTokenizer):
    """A BPE of the library.

    The control tokens are kept from it, so that no text can produce one.
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
        """Take the library's tokenizer and the tables; see ``PieceTokenizer``.

        ``backend`` must know no control token. ``what`` is what errors are about. ``missing`` are
        bytes that no token writes.

        Raises:
            ModelError: if the vocabulary cannot write even U+FFFD.
        """
        super().__init__(pieces, table, control_ids)
        self._backend = backend
        self._what = what
        if not set(missing).isdisjoint("\ufffd".encode()):
            raise ModelError(what, "it lacks tokens for single bytes", DAMAGED)
        self._unwritable = re.compile(b"[" + re.escape(missing) + b"]") if missing else None
        self.dummy_prefix = b"".join(map(self.token_bytes, self._encode("a"))).startswith(b" ")

    def _writable(self, text: str) -> str:
        """``text`` with U+FFFD for characters of bytes that no token writes.

        Vocabularies lack bytes that their training text never held, and the algorithm would drop
        such characters without a word.
        """
        unwritable = self._unwritable
        if unwritable is None or not unwritable.search(text.encode()):
            return text
        return "".join("\ufffd" if unwritable.search(c.encode()) else c for c in text)

    def _encode(self, text: str) -> list[int]:
        with library_errors(self._what):
            ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        return ids


@contextmanager
def library_errors(what: str) -> Iterator[None]:
    """Turn what the library raises about ``what`` into ``ModelError``.

    For its errors it raises ``Exception`` itself, and for its panics a class of its own that
    cannot be imported and derives from ``BaseException``.
    """
    try:
        yield
    except BaseException as error:
        if type(error) is not Exception and type(error).__name__ != "PanicException":
            raise
        why = f"the tokenizers library cannot use it ({str(error)[:80]!r})"
        raise ModelError(what, why, DAMAGED) from None
