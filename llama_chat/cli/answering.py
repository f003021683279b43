"""Writing of one answer to stdout, shared by ``ask``, ``complete`` and piped stdin."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from llama_chat.chat.receipts import Describe, GenerationInputs, describe, logprob_json
from llama_chat.errors import CutOffError, LengthLimitError, LlamaChatError, UsageError, counted
from llama_chat.generation.events import Event, Finish, Hooks, Token
from llama_chat.settings.settings import Settings
from llama_chat.terminal import streams
from llama_chat.terminal.progress import PREFILL_DELAY_S, progress
from llama_chat.terminal.streams import AnswerWriter

if TYPE_CHECKING:
    from llama_chat.chat.local_session import LocalSession
    from llama_chat.chat.remote_session import RemoteSession
    from llama_chat.llama import Llama
    from llama_chat.remote import RemoteModel


@dataclass(frozen=True, slots=True)
class AnswerOptions:
    """Flags of ``ask`` and ``complete`` about the answer that is written."""

    as_json: bool = False
    """Write one line of JSON at the end, instead of the text as it is generated."""
    raw: bool = False
    """Write every character unchanged."""
    fail_on_length: bool = False
    """Make an answer that is cut off by a limit an error."""
    n_logprobs: int = 0
    """Likely tokens at each position to put in the JSON."""

    def check(self) -> None:
        """Refuse ``--logprobs`` without ``--json``.

        Raises:
            UsageError: saying so.
        """
        if self.n_logprobs and not self.as_json:
            raise UsageError("--logprobs", "only JSON has a place for them", "add --json")


def describe_answer(
    model: "Llama | RemoteModel",
    loaded: Settings,
    asked: Callable[[], GenerationInputs],
    n_logprobs: int,
) -> Describe:
    """Return the function that describes an answer; see ``receipts.describe``.

    Answers of a model on a server have no receipt, since nothing can reproduce them.
    """
    from llama_chat.remote import RemoteModel

    if isinstance(model, RemoteModel):
        return partial(_describe_remote, model, n_logprobs)
    return describe(model, loaded, asked, n_logprobs)


def _describe_remote(
    model: "RemoteModel", n_logprobs: int, tokens: Sequence[Token], finish: Finish
) -> dict[str, Any]:
    """Return the log-probabilities that a server gave; ids are local numbers of its tokens."""
    if not n_logprobs:
        return {}
    if any(token.id < 0 for token in tokens):
        streams.warn("--logprobs: the server gives none: use a local model")
        return {"logprobs": None}
    return {"logprobs": [logprob_json(model.piece, each, n_logprobs) for each in tokens]}


def asked_of(session: "LocalSession | RemoteSession") -> GenerationInputs:
    """Return the inputs of the last reply of a session with a local model."""
    return GenerationInputs.of_session(cast("LocalSession", session))


def write_answer(
    generate: Callable[[Hooks], Iterator[Event]],
    settings: Settings,
    options: AnswerOptions,
    *,
    model: str,
    describe: Describe,
    through_template: bool = True,
    echo: str = "",
) -> None:
    """Generate and write one answer.

    Args:
        generate: starts the generation.
        settings: the settings, for ``plain``, ``quiet`` and ``verbose``.
        options: flags about the answer.
        model: the name for the JSON.
        describe: returns more of that JSON.
        through_template: whether it answers a message, or continues a raw text.
        echo: text to write first.

    Raises:
        LengthLimitError: if the answer is cut off, and ``fail_on_length`` is set.
    """
    as_json, hidden = options.as_json, settings.hides_progress
    writer = AnswerWriter(raw=options.raw or as_json)
    with progress("Reading the prompt", PREFILL_DELAY_S, hidden=hidden) as on_progress:
        events = generate(Hooks(on_progress=on_progress))
        first = next(events)
    text, tokens = echo, []
    if not as_json:
        writer.write(echo)
    try:
        for event in itertools.chain([first], events):
            text += event.text
            if isinstance(event, Token):
                tokens.append(event)
            if not as_json:
                writer.write(event.text)
    except CutOffError as error:
        if as_json:
            streams.write_json(cut_json(text, error))
        raise
    finally:
        if not as_json:
            writer.finish()
    if isinstance(event, Finish):  # as the last one always is
        if as_json:
            streams.write_json(answer_json(text, event, model) | describe(tokens, event))
        if not (event.usage.completion_tokens or settings.quiet):
            advice = "try another --seed" if settings.temperature else "raise --temperature"
            advice += "" if through_template else ", or try complete --chat"
            streams.warn(f"answer: the model ended it at once: {advice}")
        _report_end(event, settings, options.fail_on_length)


def cut_json(text: str, error: LlamaChatError) -> dict[str, Any]:
    """Return the JSON of an answer that an error ended, with the text so far."""
    came = {"text": text} if text else {}
    return {**came, "error": str(error), "status": error.status}


def answer_json(text: str, finish: Finish, model: str) -> dict[str, Any]:
    """Return an answer as the object that ``--json`` writes."""
    usage = finish.usage
    more: dict[str, Any] = {}
    if finish.meets_grammar is not None:
        more["meets_grammar"] = finish.meets_grammar
    if usage.counted_by != "engine":
        more["token_counts"] = usage.counted_by
    is_counted = usage.counted_by != "chunks"
    return {
        "text": text,
        "finish_reason": finish.reason,
        "prompt_tokens": usage.prompt_tokens if is_counted else None,
        "cached_tokens": usage.cached_tokens if is_counted else None,
        "completion_tokens": usage.completion_tokens,
        "ttft_s": round(finish.timings.ttft_s, 4),
        "prefill_tok_s": round(finish.prefill_tok_s, 2),
        "decode_tok_s": round(finish.decode_tok_s, 2),
        "seed": finish.seed,
        "model": model,
        **more,
    }


def _report_end(finish: Finish, settings: Settings, fail_on_length: bool) -> None:
    """Report on stderr what the text does not show: a cut-off answer, and the speed."""
    if settings.verbose:
        streams.say(finish.summary())
    n = finish.usage.completion_tokens
    unmet = ", before it meets the grammar" if finish.meets_grammar is False else ""
    cut = f"cut off after {counted(n, 'token')}{unmet}"
    limits = {
        "length": (cut, "raise --max-tokens"),
        "context": (f"{cut}, where the context is full", "shorten the prompt"),
    }
    if finish.reason not in limits:
        if finish.stopped_at is not None and unmet and not settings.quiet:
            streams.warn(f"answer: ended by --stop{unmet}: leave that out")
        return
    why, advice = limits[finish.reason]
    if fail_on_length:
        raise LengthLimitError("answer", why, advice)
    is_wanted = finish.reason == "length" and limit_is_given(settings) and not unmet
    if not settings.quiet and (settings.verbose or not is_wanted):
        streams.warn(f"answer: {why}: {advice}")


def limit_is_given(settings: Settings) -> bool:
    """True if the length limit is from the command line, so that reaching it is no surprise."""
    return settings.is_given_by_flag("max_tokens")
