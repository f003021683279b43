"""OpenAI-compatible requests of clients, validated before anything is done."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar, cast

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from llama_chat.errors import UsageError
from llama_chat.generation.constraints import Grammar
from llama_chat.server.client import MAX_SCORED, OWN_KEY
from llama_chat.tokenizers.streaming import Leading

MAX_CHOICES = 16
"""Most continuations of one prompt that a request may ask for."""

Text = Annotated[str, Field(max_length=2**24)]
Ids = Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(max_length=2**20)]
Stop = Annotated[list[Annotated[str, Field(min_length=1, max_length=1000)]], Field(max_length=16)]


def _unsupported(why: str = "it is not supported") -> PydanticCustomError:
    return PydanticCustomError("unsupported", f"{why}: leave it out")


def _refuse(value: object) -> None:
    if value:
        raise _unsupported()


Unsupported = Annotated[None, BeforeValidator(_refuse)]
"""A field that would change the answer, unless it is empty."""


class _Body(BaseModel):
    """Base class of all bodies; unknown fields are ignored, as by other servers."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


class OwnGrammar(_Body):
    """A grammar as this program knows it."""

    what: Text
    source: Text


class Own(_Body):
    """Fields that this program's own client adds to a request."""

    grammar: OwnGrammar | None = None
    receipt: bool = False
    """True to add the receipt and the log-probabilities of each choice to the last chunk."""
    tokens: bool = False
    """True for a chunk per token, with its id, log-probability and likely alternatives."""
    end_ids: Ids = []
    """End tokens in addition to those of the model, for a raw prompt."""
    n_begun: int = Field(default=0, ge=0, le=10**9)
    """Number of tokens at the end of a raw prompt that begin the text to continue."""
    choices: Annotated[list[Text], Field(max_length=MAX_SCORED)] = []
    """Replies to score, in place of generating one; with their pieces in the last chunk."""
    leading: Leading | None = None
    """Treatment of leading white space after a raw prompt."""


class _Schema(_Body):
    """A JSON schema with a name."""

    schema_: dict[str, Any] = Field(alias="schema")


class ResponseFormat(_Body):
    """Format that the answer must have."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: _Schema | None = None

    def grammar(self) -> Grammar | None:
        """Return what the text must meet; None for any text.

        Raises:
            UsageError: if the schema is missing, or not a valid one.
        """
        if self.type == "text":
            return None
        if self.type == "json_object":
            return Grammar.json_schema({"type": "object"})
        if self.json_schema is None:
            raise UsageError("response_format", "it has no json_schema", "add it")
        return Grammar.json_schema(self.json_schema.schema_)


_WHOLE_NUMBERS = (
    *("max_tokens", "max_completion_tokens", "top_k", "seed", "n"),
    *("top_logprobs", "logprobs", "best_of"),
)
"""Fields in which clients may write 2.0 for 2, which is the same in JSON."""


class _Generation(_Body):
    """Limits and sampling of a generation; the defaults are the server's settings."""

    model: str | None = None
    max_tokens: int | None = Field(None, ge=1, le=10**9)
    temperature: float | None = Field(None, ge=0, le=10, strict=False)
    top_p: float | None = Field(None, gt=0, le=1, strict=False)
    top_k: int | None = Field(None, ge=0, le=10**6)
    min_p: float | None = Field(None, ge=0, le=1, strict=False)
    repeat_penalty: float | None = Field(None, gt=0, le=10, strict=False)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: Stop | None = None
    n: int = Field(1, ge=1, le=MAX_CHOICES)
    stream: bool = False
    stream_options: dict[str, Any] | None = None
    frequency_penalty: Literal[0] | None = None
    presence_penalty: Literal[0] | None = None
    logit_bias: Unsupported = None
    response_format: ResponseFormat | None = None
    own: Own = Field(Own(), validation_alias=OWN_KEY)

    @field_validator("n", "stream", "echo", mode="before", check_fields=False)
    @classmethod
    def _null_is_default(cls, value: object, info: ValidationInfo) -> object:
        return cls.model_fields[str(info.field_name)].default if value is None else value

    @field_validator(*_WHOLE_NUMBERS, mode="before", check_fields=False)
    @classmethod
    def _as_int(cls, value: object) -> object:
        return int(value) if isinstance(value, float) and value.is_integer() else value

    @field_validator("stop", mode="before")
    @classmethod
    def _as_list(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value

    @field_validator("frequency_penalty", "presence_penalty", mode="before")
    @classmethod
    def _as_zero(cls, value: object) -> object:
        return 0 if value == 0.0 else value

    @property
    def includes_usage(self) -> bool:
        """True if a stream ends with the counts of tokens."""
        return bool((self.stream_options or {}).get("include_usage"))

    @property
    def limit(self) -> int | None:
        """Most tokens to generate, if that is given."""
        return self.max_tokens

    def grammar(self) -> Grammar | None:
        """Return what the text must meet; None for any text.

        Raises:
            UsageError: if it is not a valid grammar.
        """
        if self.response_format is not None:
            return self.response_format.grammar()
        found = self.own.grammar
        return None if found is None else Grammar(found.what, found.source).checked()


class TextPart(_Body):
    """A part of a message."""

    type: Literal["text"]
    text: Text


class ChatMessage(_Body):
    """A message of a dialog."""

    @model_validator(mode="before")
    @classmethod
    def _is_no_call(cls, value: object) -> object:
        if isinstance(value, dict) and (
            value.get("role") in ("tool", "function")
            or value.get("tool_calls")
            or value.get("function_call")
        ):
            raise _unsupported("tools are not supported, nor messages that call them or answer")
        return value

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        Annotated[Text, Tag("text")] | Annotated[list[TextPart], Tag("parts")],
        Discriminator(lambda value: "parts" if isinstance(value, list) else "text"),
    ]

    @property
    def text(self) -> str:
        """Text of all parts."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)


class ChatRequest(_Generation):
    """Body of ``/v1/chat/completions``."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=10_000)
    max_completion_tokens: int | None = Field(None, ge=1, le=10**9)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)

    @field_validator("top_logprobs")
    @classmethod
    def _beside_logprobs(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value and not info.data.get("logprobs"):
            raise PydanticCustomError("alone", "only allowed where logprobs is true")
        return value

    modalities: list[Literal["text"]] | None = None
    tool_choice: Literal["auto", "none"] | None = None
    """Values with which the model need not call a tool; it never does."""
    function_call: Literal["auto", "none"] | None = None
    """The older name of ``tool_choice``."""

    @property
    def limit(self) -> int | None:
        """Most tokens to generate, if that is given."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def n_logprobs(self) -> int | None:
        """Number of alternatives for each token; None for no log-probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None


_Item = TypeVar("_Item")
_Several = Annotated[list[_Item], Field(min_length=1, max_length=MAX_CHOICES)]


def _form(prompt: object) -> str:
    """Return the form of a prompt, so that a validation error names only that form."""
    if not isinstance(prompt, list):
        return "text"
    first = prompt[0] if prompt else None
    return "texts" if isinstance(first, str) else "lists" if isinstance(first, list) else "ids"


class CompletionRequest(_Generation):
    """Body of ``/v1/completions``."""

    prompt: Annotated[
        Annotated[Text, Tag("text")]
        | Annotated[_Several[Text], Tag("texts")]
        | Annotated[Ids, Tag("ids")]
        | Annotated[_Several[Ids], Tag("lists")],
        Discriminator(_form),
    ]
    echo: bool = False
    logprobs: int | None = Field(None, ge=0, le=20)
    best_of: int | None = None
    suffix: Unsupported = None

    @field_validator("logprobs")
    @classmethod
    def _not_of_prompts(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and info.data.get("echo"):
            raise _unsupported("log-probabilities of a prompt, as with echo, are not supported")
        return value

    @field_validator("best_of")
    @classmethod
    def _at_most_n(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and value > info.data.get("n", value):
            raise _unsupported("more than n are not supported")
        return value

    @property
    def n_logprobs(self) -> int | None:
        """Number of alternatives for each token; None for no log-probabilities."""
        return self.logprobs

    @property
    def prompts(self) -> Sequence[str | list[int]]:
        """Texts to continue, or the token ids of such."""
        given = self.prompt
        if isinstance(given, str):
            return [given]
        if all(isinstance(each, int) for each in given):
            return [cast("list[int]", given)]
        return cast("list[str | list[int]]", given)


class TokenizeRequest(_Body):
    """Body of ``/v1/tokenize``."""

    text: Text
    add_special: bool = True
