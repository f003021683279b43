"""Search of added tokens in a text, as the ``tokenizers`` library does it."""

from collections.abc import Iterator, Mapping

from tokenizers import AddedToken as LibraryToken
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE

from llama_chat.tokenizers.vocabulary import AddedToken


def library_token(token: AddedToken) -> LibraryToken:
    """Return the token in the library's type."""
    return LibraryToken(
        token.text,
        special=token.special,
        lstrip=token.lstrip,
        rstrip=token.rstrip,
        single_word=token.single_word,
        normalized=token.normalized,
    )


class AddedTokenFinder:
    """Division of texts at added tokens: the longest of the leftmost."""

    def __init__(self, tokens: Mapping[int, AddedToken]) -> None:
        by_text = {token.text: i for i, token in tokens.items() if token.text}
        self._ids = list(by_text.values())
        self._backend = Backend(BPE())  # of no tokens, so that only added ones are found
        self._backend.add_tokens([library_token(tokens[i]) for i in self._ids])

    def split(self, text: str) -> Iterator[str | int]:
        """Yield the ids of the added tokens in ``text``, and the texts between them."""
        found = self._backend.encode(text, add_special_tokens=False)
        done = 0
        for index, (start, end) in zip(found.ids, found.offsets, strict=True):
            if done < start:
                yield text[done:start]
            yield self._ids[index]
            done = end
        if done < len(text):
            yield text[done:]
