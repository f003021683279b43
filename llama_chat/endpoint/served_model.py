"""A model on a server: requests to it, and the events of its answers."""

from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from llama_chat.endpoint.answers import Answer, Hidden, RefusedInStream, SeenTokens
from llama_chat.endpoint.client import Client, RefusedRequest, no_notice
from llama_chat.endpoint.refusals import Refusal, plain
from llama_chat.endpoint.stepping import Stepper, run
from llama_chat.errors import CutOffError, LlamaChatError, UsageError
from llama_chat.generation.events import Event, Finish, Hooks, Token
from llama_chat.settings.definitions import SETTINGS
from llama_chat.settings.sampling import Sampling

if TYPE_CHECKING:
    import httpx2

Key = TypeVar("Key")
Asked = TypeVar("Asked", contravariant=True)

N_ALTERNATIVES = 5
"""Number of likely tokens that are asked for at each position."""

CHAT_ROUTE = "/chat/completions"
TEXT_ROUTE = "/completions"

IDS = "ids"
"""Name for prompts of ids, among the fields that a server may refuse."""

_OTHER_NAMES = {"repeat_penalty": "repetition_penalty"}
"""Names that some servers have for fields."""

_NO_ROUTE = (404, 405, 501)


@dataclass(frozen=True, slots=True)
class Call:
    """A request for one answer."""

    route: str
    body: Mapping[str, Any]
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Fields that not every server knows; one that a refusal names is left out."""
    in_text: str | None = None
    """The prompt as text, for a server that refuses the ids in ``body``."""

    def simpler(self, refusal: Refusal) -> "Call | None":
        """Return the request without the refused fields; None if the refusal has another cause."""
        if refusal.status not in (400, 422, 500, 501) or refusal.is_about_length:
            return None
        said = refusal.message
        left = {
            name: value
            for name, value in self.extra.items()
            if name not in said and name.removesuffix("s") not in said
        }
        if len(left) < len(self.extra):
            return replace(self, extra=left)
        if self.in_text is None or refusal.status not in (400, 422):
            return None
        return Call(self.route, {**self.body, "prompt": self.in_text}, self.extra)

    def beside(self, simpler: "Call") -> set[str]:
        """Return the names of the fields that a simpler request lacks."""
        ids = set() if self.in_text == simpler.in_text else {IDS}
        return ids | (set(self.extra) - set(simpler.extra))


def sampling_fields(sampling: Sampling) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return sampling settings as fields: those of OpenAI, and those of other servers only."""
    usual: dict[str, Any] = {"temperature": sampling.temperature, "top_p": sampling.top_p}
    if sampling.seed is not None:
        usual["seed"] = sampling.seed
    extra: dict[str, Any] = {}
    for name in ("top_k", "min_p", "repeat_penalty"):
        value = getattr(sampling, name)
        if value != SETTINGS[name].default:
            extra[name] = value
            if name in _OTHER_NAMES:
                extra[_OTHER_NAMES[name]] = value
    return usual, extra


@dataclass
class ServedModel:
    """A model of a server."""

    client: Client
    name: str = ""
    """Its name there."""
    context: int | None = None
    """Context length in tokens; None if the server does not say."""
    n_logprobs: int = N_ALTERNATIVES
    """Likely tokens to ask for at each position; 0 for none."""
    seen: SeenTokens = field(default_factory=SeenTokens)
    """Tokens that the server has named."""
    refused: set[str] = field(default_factory=set)
    """Fields that the server has refused."""

    def find(self, should_stop: Callable[[], bool] | None = None) -> None:
        """Ask the server for the name of the model, unless it is given, and for its context.

        Raises:
            UsageError: if the server has several models, and none was named.
            LlamaChatError: if it cannot be reached, or refuses.
        """
        found: list[Any] = []
        try:
            found = list(run(_once(self.client.get("/models")), should_stop))
        except RefusedRequest as refused:
            if refused.refusal.status not in _NO_ROUTE:
                raise refused.refusal.error(self.client.address.what) from None
        except ConnectionError as error:
            raise LlamaChatError(self.client.address.what, str(error), "try again") from None
        hide = self.client.hide
        models = {hide(name): n for name, n in _models(found[0] if found else None).items()}
        if not self.name:
            self.name = self._only(list(models))
        self.context = models.get(self.name)

    def _only(self, names: list[str]) -> str:
        what = self.client.address.what
        if len(names) == 1:
            return names[0]
        if not names:
            raise UsageError(what, "it does not say what models it has", "give --endpoint-model")
        known = plain(", ".join(names), 120)
        raise UsageError(what, "it has several models", f"give --endpoint-model, one of {known}")

    def call(
        self,
        route: str,
        prompt: Mapping[str, Any],
        sampling: Sampling,
        *,
        max_tokens: int | None,
        stop: tuple[str, ...],
        n_logprobs: int,
        extra: Mapping[str, Any] | None = None,
        in_text: str | None = None,
    ) -> Call:
        """Return the request to continue a prompt.

        Args:
            route: ``CHAT_ROUTE`` or ``TEXT_ROUTE``.
            prompt: the fields with the prompt.
            sampling: the sampling settings.
            max_tokens: length limit in tokens.
            stop: stop strings.
            n_logprobs: likely tokens at each position; 0 for no log-probabilities.
            extra: more fields that not every server knows.
            in_text: the prompt as text, if that in ``prompt`` is one of ids.
        """
        usual, rare = sampling_fields(sampling)
        body: dict[str, Any] = {"model": self.name, **prompt, **usual, "stream": True}
        if max_tokens is not None:
            body["max_tokens"] = max_tokens
        if stop:
            body["stop"] = list(stop)
        rare |= {"stream_options": {"include_usage": True}, **(extra or {})}
        if n_logprobs and route == CHAT_ROUTE:
            rare |= {"logprobs": True, "top_logprobs": n_logprobs}
        elif n_logprobs:
            rare["logprobs"] = n_logprobs
        known = {name: value for name, value in rare.items() if name not in self.refused}
        return Call(route, body, known, in_text)

    def generate(
        self,
        call: Call,
        hooks: Hooks | None = None,
        notify: Callable[[str], None] | None = None,
    ) -> Iterator[Event]:
        """Yield the events of an answer; an interrupt closes the connection.

        Raises:
            PromptTooLongError: if the prompt exceeds the context there.
            CutOffError: if the server goes away within the answer.
            LlamaChatError: if it cannot be reached, refuses, or sends what is no answer.
        """
        answer = Answer(self.seen, Hidden(self.client.key))
        last: Event | None = None
        source = self._alone(call, answer, notify or no_notice)
        for event in run(source, None if hooks is None else hooks.should_stop):
            last = event
            yield event
        if not isinstance(last, Finish):
            yield answer.finish("interrupted")

    async def _alone(
        self, call: Call, answer: Answer, notify: Callable[[str], None]
    ) -> AsyncIterator[Event]:
        async with self.client.open() as connections:
            async for event in self.events(connections, call, answer, notify):
                yield event

    def answer(
        self,
        connections: "httpx2.AsyncClient",
        call: Call,
        notify: Callable[[str], None],
    ) -> AsyncIterator[Event]:
        """Return the events of an answer, one of several at a time."""
        return self.events(connections, call, Answer(self.seen, Hidden(self.client.key)), notify)

    async def events(
        self,
        connections: "httpx2.AsyncClient",
        call: Call,
        answer: Answer,
        notify: Callable[[str], None],
    ) -> AsyncIterator[Event]:
        """Yield the events of an answer, asking again without fields that are refused."""
        what, has_begun = self.client.address.what, False
        failure: LlamaChatError | None = None
        while True:
            body = {**call.body, **call.extra}
            try:
                async with aclosing(
                    self.client.stream(
                        connections, call.route, body, notify, lambda: answer.is_complete
                    )
                ) as stream:
                    async for found in stream:
                        for token in answer.take(found):
                            has_begun = True
                            yield token
            except (RefusedRequest, RefusedInStream) as error:
                simpler = None if has_begun else call.simpler(error.refusal)
                if simpler is not None:
                    self._note(call.beside(simpler), notify)
                    call = simpler
                    continue
                failure = error.refusal.error(what)
            except (ConnectionError, ValueError, LlamaChatError) as error:
                if not answer.is_complete:  # what comes after its end does not matter
                    failure = _reported(what, error)
            break
        if failure is not None:
            if held := answer.flush():
                has_begun = True
                yield Token(-1, held, 0.0)
            raise _failure(failure, has_begun=has_begun)
        yield self._finished(answer, notify)

    def _finished(self, answer: Answer, notify: Callable[[str], None]) -> Finish:
        """Return the last event of an answer whose stream has ended in order."""
        if answer.is_filtered:
            notify("a filter of the server ended the answer")
        if answer.calls_tool and not answer.n_parts:
            why = "it calls a tool in place of an answer"
            raise LlamaChatError(self.client.address.what, why, "take a model without tools there")
        if answer.calls_tool:
            notify("the server called a tool, which is left out")
        if answer.is_complete:
            return answer.finish()
        if answer.n_parts:
            notify("the server ended the answer without saying why")
            return answer.finish("interrupted")
        advice = "try again; of many at a time ask fewer with --parallel"
        what = self.client.address.what
        raise LlamaChatError(what, "its answer has nothing in it", advice)

    def _note(self, names: set[str], notify: Callable[[str], None]) -> None:
        """Remember fields that the server refuses, and warn which settings it ignores."""
        new = names - self.refused
        self.refused |= names
        for name in sorted(new & set(SETTINGS)):
            notify(f"the server refuses {name}: it is left out")


class Answering(Protocol[Asked]):
    """A model on a server that answers many requests at a time."""

    @property
    def client(self) -> Client:
        """Sender of the requests."""

    def answer(
        self,
        connections: "httpx2.AsyncClient",
        call: Asked,
        notify: Callable[[str], None],
        /,
    ) -> AsyncIterator[Event]:
        """Return the events of the answer to a request."""


class ConcurrentRequests(Stepper[int, Event], Generic[Key]):
    """Requests that a server answers at the same time."""

    n_waiting = 0
    """Number of requests that are not sent yet."""

    def __init__(self, max_parallel: int, notify: Callable[[str], None] | None = None) -> None:
        """Begin with none.

        Args:
            max_parallel: most answers at a time.
            notify: called with one-line notices for the user.
        """
        super().__init__()
        self._max_parallel = max_parallel
        self._notify = notify or no_notice

    def generate(
        self, model: Answering[Asked], calls: Iterator[tuple[Key, Asked] | None]
    ) -> Generator[tuple[Key, Event | LlamaChatError]]:
        """Yield the events of all answers, each with the key of its request."""
        connections, is_open = model.client.open(), True
        keys: list[Key] = []
        try:
            while is_open or self.n_running:
                while is_open and self.n_running < self._max_parallel:
                    try:
                        arrived = next(calls)
                    except StopIteration:
                        is_open = False
                        break
                    if arrived is None:
                        break
                    key, call = arrived
                    self.start(len(keys), model.answer(connections, call, self._notify))
                    keys.append(key)
                if self.n_running:
                    for number, event in self.step():
                        yield keys[number], event
                for number, error in self.ended():
                    if isinstance(error, LlamaChatError):
                        yield keys[number], error
                    elif error is not None:
                        raise error
        finally:
            self.close(connections.aclose())


def _reported(what: str, error: Exception) -> LlamaChatError:
    """Convert an error of reading an answer to one about the server ``what``."""
    if isinstance(error, LlamaChatError):
        return error
    if isinstance(error, ConnectionError):
        return LlamaChatError(what, str(error), "try again")
    why = f"its answer cannot be read ({error})"
    return LlamaChatError(what, why, "check the URL, and the log of the server")


def _failure(error: LlamaChatError, *, has_begun: bool) -> LlamaChatError:
    """Return the error of an answer; if it has begun, one that says it is cut off."""
    if not has_begun:
        return error
    return CutOffError(error.what, f"{error.why}, in the middle of the answer", "try again")


async def _once(awaited: Any) -> AsyncIterator[Any]:
    yield await awaited


def _models(found: Any) -> dict[str, int | None]:
    """Return the names of models in a list, with their context lengths where these are known."""
    data = found.get("data") if isinstance(found, dict) else None
    models: dict[str, int | None] = {}
    for each in data if isinstance(data, list) else ():
        if not isinstance(each, dict) or not isinstance(each.get("id"), str):
            continue
        length = each.get("max_model_len", each.get("context_length"))
        is_possible = type(length) is int and 0 < length < 2**31
        models[each["id"]] = length if is_possible else None
    return models
