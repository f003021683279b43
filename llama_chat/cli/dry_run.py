"""``--dry-run``: the prompt that a command would give to the model, without its weights."""

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from llama_chat.chat.conversation import Conversation, Message
from llama_chat.chat.prompt_files import PromptFile
from llama_chat.chat.templates import choose_template
from llama_chat.chat.templates.base import Origin
from llama_chat.cli.loading import plan_whole
from llama_chat.cli.tokenize import spans
from llama_chat.errors import UsageError, counted
from llama_chat.settings.settings import Settings
from llama_chat.terminal import streams
from llama_chat.terminal.streams import AnswerWriter
from llama_chat.tokenizers.base import Tokenizer

if TYPE_CHECKING:
    from llama_chat.loading.load_plan import LoadPlan

_NAMES: dict[Origin, str] = {"control": "control", "template": "template", "message": "text"}


class Preview:
    """Prompts of one model, shown instead of answered."""

    def __init__(self, settings: Settings, *, as_json: bool) -> None:
        """Read the headers and the vocabulary of the model.

        Args:
            settings: the settings, which name the model.
            as_json: write a line of JSON for each prompt.
        """
        url, here = settings.server_url, settings.template_here
        if url is not None and here is None:
            why = "the server encodes the prompt"
            raise UsageError("--dry-run", why, "--template-here MODEL encodes it here")
        self._planned: LoadPlan = plan_whole(settings, None if url is None else here)
        self._as_json = as_json
        for line in self._planned.warnings:
            streams.warn(line)

    def show_text(self, settings: Settings, text: str) -> None:
        """Show the prompt that continues a raw text.

        Raises:
            PromptTooLongError: if it does not fit.
        """
        from llama_chat.llama import prompt_ids

        tokenizer = self._planned.tokenizer
        ids = prompt_ids(tokenizer, text, self._context)
        control = set(tokenizer.control_ids.values())
        self._show(settings, ids, ["control" if i in control else "message" for i in ids])

    def show_message(self, settings: Settings, prompt: PromptFile | None, text: str) -> None:
        """Show the prompt that asks for a reply to a message.

        Raises:
            PromptTooLongError: if it leaves no space for a reply.
            UsageError: if there is no template, or it refuses the message.
        """
        from llama_chat.chat.context_use import no_space

        source = self._planned.checkpoint.templates
        tokenizer, name = self._planned.tokenizer, settings.template_name
        template = choose_template(settings.template, source, tokenizer, name)
        if (note := template.take_note()) and not settings.quiet:
            streams.warn(note)
        examples = () if prompt is None else prompt.examples
        messages = Conversation(settings.system, examples).preface()
        messages += [Message("user", text), Message("assistant", "", ())]
        ids = template.render(messages, open_reply=True)
        if len(ids) >= self._context:
            raise no_space(len(ids), self._context)
        self._show(settings, ids, template.origins(messages, open_reply=True))

    @property
    def _context(self) -> int:
        return self._planned.config.context_length

    def _show(self, settings: Settings, ids: Sequence[int], origins: Sequence[Origin]) -> None:
        tokenizer, left = self._planned.tokenizer, self._context - len(ids)
        longest = min(left, settings.max_tokens)
        if self._as_json:
            report: dict[str, Any] = {
                "prompt": _text(tokenizer, ids, origins, str),
                "ids": list(ids),
                "pieces": [tokenizer.piece(token_id) for token_id in ids],
                "spans": spans(origins),
                "prompt_tokens": len(ids),
                "control_tokens": origins.count("control"),
                "context": self._context,
                "room": left,
                "max_tokens": longest,
                "model": self._planned.checkpoint.name,
            }
            streams.write_json(report)
            return
        kinds = ", ".join(f"{n} {_NAMES[kind]}" for kind in _NAMES if (n := origins.count(kind)))
        writer = AnswerWriter()
        writer.write(_text(tokenizer, ids, origins, "⟦{}⟧".format))
        writer.write(f"\n\n{' '.join(map(str, ids))}\n\n")
        writer.write(
            f"{counted(len(ids), 'token')}: {kinds}; {left} left in the context of "
            f"{self._context}, at most {longest} for the answer"
        )
        writer.finish()


def _text(
    tokenizer: Tokenizer,
    ids: Sequence[int],
    origins: Sequence[Origin],
    mark: Callable[[str], str],
) -> str:
    """Return what the tokens of a prompt spell, with control tokens ``mark``-ed."""
    parts = []
    for is_control, run in groupby(
        zip(ids, origins, strict=True), lambda each: each[1] == "control"
    ):
        if is_control:
            parts += [mark(tokenizer.piece(token_id)) for token_id, _ in run]
        else:
            spelled = b"".join(tokenizer.token_bytes(token_id) for token_id, _ in run)
            parts.append(spelled.decode("utf-8", "replace"))
    return "".join(parts)
