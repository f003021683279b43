"""The slash commands of the chat."""

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from llama_chat.chat.prompt_files import list_prompts, load_prompt
from llama_chat.errors import UsageError
from llama_chat.generation.events import Event, Finish
from llama_chat.settings import SAMPLING_NAMES, SETTINGS, parse
from llama_chat.terminal.renderer import Renderer

if TYPE_CHECKING:
    from llama_chat.chat.session import ChatSession
    from llama_chat.generation.events import Watch
    from llama_chat.generation.sampling import Sampling


class Chat(Protocol):
    """What a command may work on."""

    session: "ChatSession"
    renderer: Renderer
    last: Finish | None
    before_prompt: "Head | None"
    """To what ``/prompt off`` goes back; None while no prompt file is in use."""

    def reply(self, generate: "Callable[[Watch], Iterator[Event]]") -> None:
        """Show a reply as it comes."""

    def prefill(self) -> None:
        """Read ahead what the next message will stand behind."""

    def leave(self) -> None:
        """End the chat after this command."""


Value = tuple[str, str]
"""A value that an argument may take, and what it means."""


@dataclass(frozen=True, slots=True)
class Command:
    """One slash command."""

    name: str
    argument: str
    """How its argument is written; empty if it takes none."""
    help: str
    example: str
    run: Callable[[Chat, str], None]
    values: Callable[[], Iterable[Value]] = field(default=tuple)
    """The values to complete."""

    @property
    def usage(self) -> str:
        """How it is typed."""
        return f"/{self.name} {self.argument}".rstrip()


def parse_command(line: str) -> tuple[str, str] | None:
    """Split a line into the name of a command and its argument; None if it is a message.

    ``//`` in front escapes; a path such as ``/etc/hosts`` is a message.
    """
    if not line.startswith("/") or line.startswith("//"):
        return None
    name, _, argument = line[1:].partition(" ")
    name, _, below = name.partition("\n")
    return None if "/" in name or below else (name, argument.strip())


def find_command(name: str) -> Command:
    """The command called ``name``, or the only one that begins so.

    Raises:
        UsageError: if there is none or more than one; with a suggestion.
    """
    name = name.lower()
    if name in COMMANDS:
        return COMMANDS[name]
    fitting = [command for known, command in COMMANDS.items() if name and known.startswith(name)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        names = ", ".join("/" + command.name for command in fitting)
        raise UsageError(f"/{name}", "more than one command begins so", names)
    near = difflib.get_close_matches(name, COMMANDS, n=1)
    advice = f"did you mean /{near[0]}?" if near else "/help lists the commands"
    raise UsageError(f"/{name}", "no such command", advice)


def _help(chat: Chat, argument: str) -> None:
    if argument:
        command = find_command(argument.removeprefix("/"))
        chat.renderer.note(f"{command.usage}\n  {command.help}\n  for example: {command.example}")
        return
    chat.renderer.table(
        ("command", "does"), ((command.usage, command.help) for command in COMMANDS.values())
    )
    chat.renderer.note(
        "Enter sends · Alt-Enter or Ctrl-J begins a new line · // in front sends a line that "
        "begins with /"
    )


def _set_sampling(name: str) -> Callable[[Chat, str], None]:
    setting = SETTINGS[name]

    def run(chat: Chat, argument: str) -> None:
        sampler = chat.session.sampler
        if argument:
            value = parse(setting, argument, f"/{name.replace('_', '-')}")
            _change_sampling(chat, {name: value})
        value = sampler.seed if name == "seed" else getattr(sampler.sampling, name)
        chat.renderer.note(f"{name.replace('_', '-')} is {value}")

    return run


def _change_sampling(chat: Chat, values: Mapping[str, Any]) -> None:
    sampler = chat.session.sampler
    ours = {name: value for name, value in values.items() if name in SAMPLING_NAMES}
    sampler.sampling = replace(sampler.sampling, **ours)


def _max_tokens(chat: Chat, argument: str) -> None:
    if argument:
        value = parse(SETTINGS["max_tokens"], argument, "/max-tokens")
        chat.session.max_tokens = value if isinstance(value, int) else None
    chat.renderer.note(f"max-tokens is {chat.session.max_tokens}")


def _system(chat: Chat, argument: str) -> None:
    conversation = chat.session.conversation
    if argument:
        conversation.system = "" if argument == "off" else argument
        chat.prefill()
    chat.renderer.note(
        f"system: {conversation.system}" if conversation.system else "no system message"
    )


def _prompt(chat: Chat, argument: str) -> None:
    conversation = chat.session.conversation
    if not argument:
        chat.renderer.table(
            ("prompt", "does"), ((entry.name, entry.description) for entry in list_prompts())
        )
        return
    if argument == "off":
        _end_prompt(chat)
        chat.renderer.note("no prompt file")
        return
    prompt = load_prompt(argument)
    if (text := prompt.text) is not None:
        chat.renderer.note("this file is raw text: sent as a message")
        chat.reply(lambda watch: chat.session.send(text, watch))
        return
    _end_prompt(chat)
    before = chat.before_prompt = head_of(chat.session)
    conversation.system = prompt.system or before.system
    conversation.examples = prompt.examples
    chat.session.stop = prompt.stop or before.stop
    _change_sampling(chat, prompt.settings)
    if isinstance(limit := prompt.settings.get("max_tokens"), int):
        chat.session.max_tokens = limit
    if conversation.system:
        chat.renderer.note(f"system: {conversation.system}")
    for example in prompt.examples:
        chat.renderer.note(f"  {example.user} → {example.assistant}")
    chat.prefill()


@dataclass(frozen=True, slots=True)
class Head:
    """What a prompt file changes of a session."""

    system: str
    stop: tuple[str, ...]
    max_tokens: int | None
    sampling: "Sampling"


def head_of(session: "ChatSession") -> Head:
    """The present state of what a prompt file would change."""
    return Head(
        session.conversation.system, session.stop, session.max_tokens, session.sampler.sampling
    )


def _end_prompt(chat: Chat) -> None:
    """Undo what the prompt file in use has changed."""
    if (before := chat.before_prompt) is None:
        return
    session, chat.before_prompt = chat.session, None
    session.conversation.system, session.conversation.examples = before.system, ()
    session.stop, session.max_tokens = before.stop, before.max_tokens
    session.sampler.sampling = before.sampling


def _retry(chat: Chat, argument: str) -> None:
    chat.reply(chat.session.retry)
    versions = len(chat.session.conversation.versions())
    chat.renderer.note(f"version {versions}; the earlier ones are kept")


def _undo(chat: Chat, argument: str) -> None:
    if argument and not re.fullmatch(r"[1-9]\d{0,5}", argument):
        raise UsageError("/undo", f"{argument[:40]!r} is not a number of turns", "give 1 or more")
    turns = int(argument or 1)
    undone = chat.session.conversation.undo(turns)
    if not undone:
        raise UsageError("/undo", "nothing was said yet", "type a message first")
    for message in undone:
        chat.renderer.note(f"undone: {_first_line(message.content)}")


def _stats(chat: Chat, argument: str) -> None:
    if chat.last is None:
        raise UsageError("/stats", "no reply yet", "type a message first")
    usage, timings = chat.last.usage, chat.last.timings
    chat.renderer.table(
        ("last reply", ""),
        (
            ("ended by", chat.last.reason),
            ("prompt_tokens", str(usage.prompt_tokens)),
            ("cached_tokens", str(usage.cached_tokens)),
            ("completion_tokens", str(usage.completion_tokens)),
            ("ttft_s", f"{timings.ttft_s:.3f}"),
            ("prefill_tok_s", f"{chat.last.prefill_tok_s:.1f}"),
            ("decode_tok_s", f"{chat.last.decode_tok_s:.1f}"),
            ("seed", str(chat.last.seed)),
        ),
    )


def _context(chat: Chat, argument: str) -> None:
    session = chat.session
    rows = session.context_rows()
    chat.renderer.table(
        ("role", "tokens", "cached", "text"),
        (
            (row.message.role, str(len(row.ids)), str(row.cached), row.message.preview)
            for row in rows
        ),
        right=("tokens", "cached"),
    )
    used, total = sum(len(row.ids) for row in rows), session.engine.context
    chat.renderer.note(f"{used} of {total} tokens, {total - used} free")


def _clear(chat: Chat, argument: str) -> None:
    chat.session.conversation.clear()
    chat.renderer.note("a new conversation; the system message and the examples stay")


def _exit(chat: Chat, argument: str) -> None:
    chat.leave()


def _first_line(text: str) -> str:
    line = text.strip().partition("\n")[0]
    return line if len(line) <= 60 else line[:59] + "…"


def _prompt_values() -> Iterable[Value]:
    return [("off", "no prompt file"), *((p.name, p.description) for p in list_prompts())]


def _command_names() -> Iterable[Value]:
    return [(command.name, command.help) for command in COMMANDS.values()]


def _setting_command(name: str, example: str, run: Callable[[Chat, str], None]) -> Command:
    setting = SETTINGS[name]
    argument = "[n]" if setting.kind == "integer" else "[x]"
    spelled = name.replace("_", "-")
    return Command(spelled, argument, f"{setting.help} ({setting.range})", example, run)


COMMANDS: dict[str, Command] = {
    command.name: command
    for command in (
        Command(
            "help", "[command]", "This list, or one command.", "/help undo", _help, _command_names
        ),
        *(
            _setting_command(name, example, _set_sampling(name))
            for name, example in (
                ("temperature", "/temperature 0.2"),
                ("top_p", "/top-p 0.95"),
                ("top_k", "/top-k 40"),
                ("min_p", "/min-p 0.05"),
                ("repeat_penalty", "/repeat-penalty 1.1"),
                ("seed", "/seed 42"),
            )
        ),
        _setting_command("max_tokens", "/max-tokens 200", _max_tokens),
        Command(
            "system", "[text|off]", "Show or set the system message.", "/system Be brief.", _system
        ),
        Command(
            "prompt",
            "[name|path|off]",
            "List prompt files, or begin with the examples of one.",
            "/prompt few_shot/translate_to_french",
            _prompt,
            _prompt_values,
        ),
        Command("retry", "", "Answer the last message once more.", "/retry", _retry),
        Command("undo", "[n]", "Take back the last turn, or the last n.", "/undo 2", _undo),
        Command("stats", "", "Counts and speeds of the last reply.", "/stats", _stats),
        Command("context", "", "Tokens of each message, and what is cached.", "/context", _context),
        Command("clear", "", "Begin a new conversation.", "/clear", _clear),
        Command("exit", "", "Leave; so does Ctrl-D.", "/exit", _exit),
    )
}
