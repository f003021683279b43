"""``--choices``: the likeliest of given replies, in place of a generated one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from llama_chat.cli.answering import AnswerOptions
from llama_chat.errors import UsageError
from llama_chat.files import MAX_PROMPT_BYTES, expand_user, read_text
from llama_chat.generation.events import Hooks
from llama_chat.settings.settings import Settings
from llama_chat.terminal import streams
from llama_chat.terminal.progress import PREFILL_DELAY_S, progress
from llama_chat.terminal.streams import AnswerWriter

if TYPE_CHECKING:
    from llama_chat.chat.choices import ReplyScorer

Normalize = Literal["none", "length"]
"""Scores to compare: log-probabilities, or those divided by the number of tokens."""

_CHOICES = "Choices"

Choices = Annotated[
    str | None,
    typer.Option(
        "--choices",
        metavar="A,B,…",
        help="Answer with the likeliest of these replies.",
        rich_help_panel=_CHOICES,
    ),
]
ChoicesFile = Annotated[
    str | None,
    typer.Option(
        "--choices-file",
        metavar="FILE",
        help="Like --choices, with a reply in each line.",
        rich_help_panel=_CHOICES,
    ),
]
NormalizeBy = Annotated[
    Normalize,
    typer.Option(
        "--normalize",
        metavar="none|length",
        help="Compare log-probabilities as they are, or divided by the number of tokens.",
        rich_help_panel=_CHOICES,
    ),
]


@dataclass(frozen=True, slots=True)
class ReplyChoices:
    """Replies to choose from."""

    texts: Sequence[str]
    normalize: Normalize


def read_choices(
    choices: str | None, file: str | None, normalize: Normalize, *, has_grammar: bool
) -> ReplyChoices | None:
    """Return the replies to choose from; None if a reply is to be generated.

    Raises:
        UsageError: if they are given twice, with a grammar, or cannot be read.
    """
    if choices is None and file is None:
        if normalize != "none":
            raise UsageError("--normalize", "there are no choices", "add --choices")
        return None
    flag = "--choices-file" if choices is None else "--choices"
    if has_grammar or (choices is not None and file is not None):
        other = "a grammar" if has_grammar else "--choices-file"
        raise UsageError(flag, f"{other} is given too", "give one of them")
    if choices is not None:
        texts = [text.strip() for text in choices.split(",")]
    else:
        path = expand_user(file or "")
        text = read_text(path, f"choices {str(path)!r}", "name a file of lines", MAX_PROMPT_BYTES)
        texts = [line.strip() for line in text.splitlines() if line.strip()]
    from llama_chat.chat.choices import check_choices

    check_choices(texts)
    return ReplyChoices(texts, normalize)


def choice_json(
    session: "ReplyScorer",
    message: str,
    reply_choices: ReplyChoices,
    model: str,
    hooks: Hooks | None = None,
) -> dict[str, Any]:
    """Score replies to a message; returns what ``--json`` writes."""
    from llama_chat.chat.choices import choose

    by_length = reply_choices.normalize == "length"
    found = choose(session, message, reply_choices.texts, hooks, by_length=by_length)
    piece = session.piece
    return {
        "text": found[0].text,
        "choices": [
            {
                "text": choice.text,
                "probability": round(choice.probability, 6),
                "logprob": round(choice.scored.logprob, 6),
                "tokens": [
                    {"id": token_id, "piece": piece(token_id), "logprob": round(logprob, 6)}
                    for token_id, logprob in zip(
                        choice.scored.ids, choice.scored.logprobs, strict=True
                    )
                ],
            }
            for choice in found
        ],
        "cached_tokens": session.n_reused,
        "model": model,
    }


def write_choice(
    session: "ReplyScorer",
    message: str,
    reply_choices: ReplyChoices,
    settings: Settings,
    options: AnswerOptions,
    *,
    model: str,
) -> None:
    """Write the likeliest of the replies."""
    writer = AnswerWriter(raw=options.raw or options.as_json)
    with progress(
        "Reading the prompt", PREFILL_DELAY_S, hidden=settings.hides_progress
    ) as on_progress:
        hooks = Hooks(on_progress=on_progress)
        found = choice_json(session, message, reply_choices, model, hooks)
    if options.as_json:
        streams.write_json(found)
    else:
        writer.write(found["text"])
        writer.finish()
