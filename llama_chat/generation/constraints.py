"""Grammars that the text of a generation must meet.

The library llguidance (https://github.com/guidance-ai/llguidance) parses the bytes of the tokens so
far, and says which tokens may follow. Where the grammar leaves no choice, the model need not be
asked: the bytes that must follow become tokens at once.
"""

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

from llama_chat.documents import parse_json
from llama_chat.errors import UsageError
from llama_chat.generation.schema_checks import check_schema

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer
    from llguidance._lib import JsonCompileOptions

    from llama_chat.tokenizers.base import Tokenizer

_JSON_STYLE: "JsonCompileOptions" = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
}
"""White space of JSON unless ``x-guidance`` in the schema says otherwise: models that may choose it
can go on with it for ever."""

_ALLOWED = 200
"""Byte of an allowed token in the masks of the library; that of any other is 0."""


class Constraint:
    """Constraint on the next tokens of one generation; this base class allows all."""

    @property
    def is_complete(self) -> bool:
        """True if the text so far meets the grammar."""
        return True

    @property
    def is_finished(self) -> bool:
        """True if nothing more may follow."""
        return False

    def mask(self) -> bytearray | None:
        """Return a byte for each token, 0 for those that may not follow; None if all may."""
        return None

    def forced(self) -> Sequence[int]:
        """Return the tokens that must follow, as far as there is no choice."""
        return ()

    def accept(self, token_id: int) -> None:
        """Add a token to the text."""


@dataclass(frozen=True, slots=True)
class Grammar:
    """Grammar of a whole text, made by one of its class methods."""

    what: str
    """Its kind, for errors."""
    source: str
    """The grammar as the library takes it."""

    @classmethod
    def json_schema(cls, schema: str | Mapping[str, Any]) -> "Grammar":
        """Texts that are JSON and valid under a schema, given as JSON or as what that means.

        Raises:
            UsageError: if it is no JSON schema, or has keywords that cannot be enforced.
        """
        what = "JSON schema"
        try:
            parsed = parse_json(schema) if isinstance(schema, str) else dict(schema)
            if not isinstance(parsed, dict):
                raise ValueError('it is no object, as {"type": "string"} is')
            check_schema(parsed)
            text = json.dumps(parsed, allow_nan=False)
            source = _library().grammar_from_json_schema(text, _JSON_STYLE)
        except (ValueError, TypeError, RecursionError) as error:
            why = _reason(str(error)) if isinstance(error, ValueError) else "it is not JSON"
            raise UsageError(what, why, "correct it") from None
        return cls(what, source).checked()

    @classmethod
    def regex(cls, pattern: str) -> "Grammar":
        """Texts that match a regular expression of Rust from end to end.

        Raises:
            UsageError: if it is not a valid one.
        """
        return cls("regular expression", _library().grammar_from_regex(pattern)).checked()

    @classmethod
    def lark(cls, grammar: str) -> "Grammar":
        """Texts of a Lark grammar, in the variant of llguidance.

        Raises:
            UsageError: if it is not a valid one.
        """
        return cls("grammar", _library().grammar_from_lark(grammar)).checked()

    def checked(self) -> "Grammar":
        """Return the grammar itself.

        Raises:
            UsageError: if it is not valid, is too complex, or no text meets it.
        """
        is_error, messages = _library().validate_grammar_with_warnings(self.source)
        if is_error:
            raise UsageError(self.what, _reason(messages[0]), "correct it")
        self._begin(_byte_tokenizer(), 257, (256,)).mask()  # the bytes, and an end token
        return self

    def start(self, tokenizer: "Tokenizer", end_ids: Collection[int]) -> Constraint:
        """Begin a text.

        Args:
            tokenizer: the tokenizer of the model.
            end_ids: tokens that end the text, and may follow where the grammar is met.
        """
        return self._begin(_library_tokenizer(tokenizer), tokenizer.vocab_size, end_ids)

    def _begin(
        self, tokenizer: "LLTokenizer", vocab_size: int, end_ids: Collection[int]
    ) -> "_GrammarConstraint":
        matcher = _library()(tokenizer, self.source, log_level=0)
        return _GrammarConstraint(self.what, matcher, vocab_size, end_ids)


class _GrammarConstraint(Constraint):
    """The state of a grammar's parser."""

    def __init__(
        self, what: str, matcher: "LLMatcher", vocab_size: int, end_ids: Collection[int]
    ) -> None:
        self._what, self._matcher, self._vocab_size = what, matcher, vocab_size
        self._end_ids = [token_id for token_id in end_ids if token_id < vocab_size]
        self._forced: list[int] | None = None
        """Tokens that must follow; None where that is not known yet."""
        self._check()

    @property
    def is_complete(self) -> bool:
        """See ``Constraint``."""
        return self._matcher.is_accepting()

    @property
    def is_finished(self) -> bool:
        """See ``Constraint``."""
        return self._matcher.is_stopped()

    def mask(self) -> bytearray:
        """See ``Constraint``.

        Raises:
            UsageError: if nothing may follow, or the grammar is too complex.
        """
        mask = bytearray(self._matcher.compute_logit_bias()[: self._vocab_size])
        self._check()
        for token_id in self._end_ids:
            mask[token_id] = _ALLOWED if self.is_complete else 0
        if _ALLOWED not in mask:
            raise self._unmeetable()
        return mask

    def forced(self) -> Sequence[int]:
        """See ``Constraint``."""
        if self._forced is None:
            ids = [] if self.is_finished else self._matcher.compute_ff_tokens()
            self._forced = ids[: self._matcher.validate_tokens(ids)]
        return self._forced

    def accept(self, token_id: int) -> None:
        """See ``Constraint``."""
        self._forced = (self._forced or [])[1:] or None
        self._matcher.consume_token(token_id)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            why = _reason(self._matcher.get_error())
            if "NoExtension" in why:
                raise self._unmeetable()
            raise UsageError(self._what, why, "write a simpler one")

    def _unmeetable(self) -> UsageError:
        return UsageError(self._what, "no text can meet it", "correct it")


class _Spelling:
    """A vocabulary as the library wants it."""

    def __init__(self, tokens: Sequence[bytes], encode: Callable[[str], list[int]]) -> None:
        """Describe a vocabulary.

        Args:
            tokens: the bytes of each token, empty for one that no text may become.
            encode: encodes a text.
        """
        self._spelled, self._encode = tokens, encode
        # The library asks for one end token; ours are several, or none: this stands for them.
        self.eos_token_id, self.bos_token_id = len(tokens), None
        spelled = [*tokens, b""]
        self.special_token_ids = [i for i, data in enumerate(spelled) if not data]
        self.tokens = [data or b"<%d>" % i for i, data in enumerate(spelled)]

    def __call__(self, text: bytes) -> list[int]:
        """Encode a text that must follow; return nothing if that would change it."""
        ids = self._encode(text.decode("utf-8", "replace"))
        return ids if b"".join(self._spelled[i] for i in ids) == text else []


@lru_cache(maxsize=8)
def _library_tokenizer(tokenizer: "Tokenizer") -> "LLTokenizer":
    """Return the library's form of a vocabulary, which takes a tenth of a second to make."""
    control = set(tokenizer.control_ids.values())
    spelled = map(tokenizer.token_bytes, range(tokenizer.vocab_size))
    tokens = [b"" if i in control else data for i, data in enumerate(spelled)]
    return _wrapped(_Spelling(tokens, partial(tokenizer.encode, prefixed=False)))


@lru_cache(maxsize=1)
def _byte_tokenizer() -> "LLTokenizer":
    """Return a vocabulary of single bytes, to try a grammar before a model is loaded."""
    tokens = [bytes([byte]) for byte in range(256)]
    return _wrapped(_Spelling(tokens, lambda text: list(text.encode())))


def _wrapped(spelling: _Spelling) -> "LLTokenizer":
    from llguidance import LLTokenizer, TokenizerWrapper

    return LLTokenizer(TokenizerWrapper(spelling))


def _library() -> "type[LLMatcher]":
    """Return the library's matcher, which is imported only where there is a grammar."""
    from llguidance import LLMatcher

    return LLMatcher


def _reason(message: str) -> str:
    """Return the reason in an error of the library, as one short line."""
    found = re.search(r"(?:Parser E|e)rror: (.*)", message)
    line = found[1] if found else message.strip().partition("\n")[0]
    return " ".join(line.split())[:160] or "it cannot be used"
