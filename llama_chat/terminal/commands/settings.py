"""Commands that show and change settings: one for each, and some that do more."""

import shlex
from collections.abc import Callable, Iterable

from llama_chat.chat.prompt_files import list_prompts, load_prompt
from llama_chat.chat.prompt_slots import fill
from llama_chat.errors import UsageError, did_you_mean
from llama_chat.files import readable_size
from llama_chat.library import installed_models
from llama_chat.settings.definitions import SETTINGS
from llama_chat.settings.setting import Setting, parse, unescape
from llama_chat.settings.settings import DEFAULT_SOURCE, ENDPOINT
from llama_chat.terminal.chat import Chat
from llama_chat.terminal.commands.command import ALIASES, Command, Value
from llama_chat.terminal.streams import one_line

DEFAULT = "default"
"""Argument that restores the default value, or that of the model."""


def set_value(chat: Chat, setting: Setting, typed: str, source: str) -> None:
    """Change a setting to a typed value.

    Raises:
        UsageError: if the value is invalid; nothing is changed then.
    """
    if typed == DEFAULT:
        chat.change(setting.name, setting.default, DEFAULT_SOURCE)
    else:
        chat.change(setting.name, parse(setting, typed, source), source)


def show_value(chat: Chat, setting: Setting) -> None:
    """Write the value of a setting, and its source."""
    source = chat.settings.source(setting.name)
    chat.renderer.note(f"{setting.command[1:]} is {_value_text(chat, setting)} ({source})")


def _value_text(chat: Chat, setting: Setting) -> str:
    value = chat.settings.value(setting.name)
    if setting.name == "seed" and value is None and chat.session is not None:
        return "not set" if chat.session.seed is None else f"{chat.session.seed}, drawn"
    if value is None or value in ("", ()):
        return "not set"
    if isinstance(value, tuple):
        return " ".join(map(repr, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _runner(name: str) -> Callable[[Chat, str], None]:
    setting = SETTINGS[name]

    def run(chat: Chat, argument: str) -> None:
        if argument:
            set_value(chat, setting, argument, setting.command)
        show_value(chat, setting)

    return run


def _values_of(setting: Setting) -> list[Value]:
    switch = {"true": "on", "false": "off"} if setting.kind == "switch" else {}
    return [*(setting.values or switch).items(), (DEFAULT, _default(setting))]


def _default(setting: Setting) -> str:
    return "not set" if setting.default in (None, "", ()) else f"{setting.default}"


def _set(chat: Chat, argument: str) -> None:
    name, _, typed = argument.partition(" ")
    setting = SETTINGS.get(ALIASES.get(name, name).replace("-", "_"))
    if not name:
        raise UsageError("/set", "no setting is named", "write /set top-p 0.9")
    if setting is None:
        names = [known.replace("_", "-") for known in SETTINGS]
        raise UsageError(
            "/set", f"no setting {name[:40]!r}", did_you_mean(name, names, "/settings lists all")
        )
    if typed.strip():
        # Some settings have a command that does more.
        command = next((c for c in COMMANDS if c.name == setting.command[1:]), None)
        if command is not None:
            command.run(chat, typed.strip())
            return
        set_value(chat, setting, typed.strip(), "/set")
    show_value(chat, setting)


def _set_values(chat: Chat, argument: str) -> Iterable[Value]:
    name, space, _ = argument.partition(" ")
    setting = SETTINGS.get(name.replace("-", "_"))
    if space and setting is not None:
        return [(f"{name} {value}", meaning) for value, meaning in _values_of(setting)]
    return [(setting.command[1:] + " ", setting.help) for setting in SETTINGS.values()]


def _settings(chat: Chat, argument: str) -> None:
    chat.renderer.table(
        ("setting", "value", "from"),
        (
            (setting.command[1:], one_line(_value_text(chat, setting)), source)
            for setting in SETTINGS.values()
            for source in [chat.settings.source(setting.name)]
        ),
        long={"from": 9, "value": 12},
    )


def _stop(chat: Chat, argument: str) -> None:
    if argument:
        chat.change("stop", () if argument in ("off", DEFAULT) else _texts(argument), "/stop")
    show_value(chat, SETTINGS["stop"])


def _texts(argument: str) -> tuple[str, ...]:
    r"""Split an argument into texts as a shell does; ``\n`` is a new line, ``\t`` a tab."""
    words = shlex.shlex(argument, posix=True)
    words.whitespace_split, words.commenters, words.escape = True, "", ""
    try:
        return tuple(unescape(word) for word in words if word)
    except ValueError:
        raise UsageError("/stop", "a quote is not closed", r'write /stop "\n\n" END') from None


def _system(chat: Chat, argument: str) -> None:
    if argument:
        chat.change("system", "" if argument in ("off", DEFAULT) else argument, "/system")
    system = chat.settings.system
    chat.renderer.note(f"system: {system}" if system else "no system message")


def _prompt(chat: Chat, argument: str) -> None:
    if not argument:
        chat.renderer.table(
            ("prompt", "does"), ((entry.name, entry.description) for entry in list_prompts())
        )
        return
    if argument in ("off", DEFAULT):
        chat.end_prompt()
        chat.change("prompt", None, "/prompt")
        chat.renderer.note("no prompt file")
        return
    prompt = fill(load_prompt(argument, pipes=False), chat.variables)
    for line in prompt.warnings:
        chat.renderer.note(line)
    if prompt.text is not None:
        chat.renderer.note("this file is raw text: sent as a message")
        chat.renderer.echo_user(prompt.text)
        chat.stop_editing()
        chat.send(prompt.text)
        return
    chat.use_prompt(prompt)
    chat.change("prompt", argument, "/prompt")
    if system := chat.settings.system:
        chat.renderer.note(f"system: {system}")
    for example in prompt.examples:
        chat.renderer.note(f"  {example.user} → {example.assistant}")
    for query in prompt.queries:
        chat.renderer.note(f"  {query} → ?")
    for name in prompt.settings:
        show_value(chat, SETTINGS[name])


def _prompt_values(chat: Chat, argument: str) -> Iterable[Value]:
    return [("off", "no prompt file"), *((p.name, p.description) for p in list_prompts())]


def _template(chat: Chat, argument: str) -> None:
    setting = SETTINGS["template"]
    if argument:
        set_value(chat, setting, argument, setting.command)
    chat.renderer.note(f"template is {chat.wait_for_session().template_name}")


def _model(chat: Chat, argument: str) -> None:
    if argument.startswith(ENDPOINT):
        endpoint = SETTINGS["endpoint"]
        set_value(chat, endpoint, argument.removeprefix(ENDPOINT), endpoint.command)
        return
    if argument:
        set_value(chat, SETTINGS["model"], argument, "/model")
        return
    chat.renderer.note(f"model is {chat.model_name}")
    if models := installed_models(chat.settings.model_paths):
        chat.renderer.table(
            ("on this machine", "size", "format", "from"),
            (
                (model.name, readable_size(model.n_bytes), model.kind, model.source)
                for model in models
            ),
        )


def _model_values(chat: Chat, argument: str) -> Iterable[Value]:
    models = installed_models(chat.settings.model_paths)
    return [(model.name, model.summary) for model in models]


_ARGUMENTS = {
    "integer": "[n]",
    "number": "[x]",
    "switch": "[true|false]",
    "size": "[size]",
    "time": "[time]",
}


def _setting_command(setting: Setting) -> Command:
    again = "; loads the model again" if setting.scope == "load" else ""
    return Command(
        setting.command[1:],
        _ARGUMENTS.get(setting.kind) or f"[{'|'.join(setting.values) or 'text'}]",
        f"{setting.help.rstrip('.')} ({setting.range}{again}).",
        f"{setting.command} {setting.example}",
        _runner(setting.name),
        lambda chat, argument: _values_of(setting),
        rare=setting.group != "Sampling" and setting.name != "max_tokens",
    )


_SPECIAL = (
    Command("set", "KEY VALUE", "Change any setting.", "/set top-p 0.9", _set, _set_values),
    Command("settings", "", "All settings, and where each comes from.", "/settings", _settings),
    Command(
        "prompt",
        "[name|path|off]",
        "List prompt files, or begin with the examples of one.",
        "/prompt few_shot/translate_to_french",
        _prompt,
        _prompt_values,
        paths=True,
    ),
    Command(
        "system", "[text|off]", "Show or set the system message.", "/system Be brief.", _system
    ),
    Command("stop", "[text…|off]", "End replies before these texts.", r'/stop "\n\n" END', _stop),
    Command(
        "template",
        f"[{'|'.join(SETTINGS['template'].values)}]",
        "Show or choose the chat template.",
        "/template llama2",
        _template,
        lambda chat, argument: _values_of(SETTINGS["template"]),
    ),
    Command(
        "model",
        "[name|path]",
        "Show the models here, or load another.",
        "/model smollm2-135m",
        _model,
        _model_values,
        paths=True,
    ),
)

_ELSEWHERE = ("context",)
"""Settings whose command is defined in another module."""

COMMANDS: tuple[Command, ...] = (
    *_SPECIAL,
    *(
        _setting_command(setting)
        for setting in SETTINGS.values()
        if setting.name not in {*(command.name for command in _SPECIAL), *_ELSEWHERE}
    ),
)


def _groups() -> dict[str, tuple[Command, ...]]:
    """Group the commands: those of no setting, and each setting under its heading."""
    found: dict[str, list[Command]] = {"Settings": []}
    found |= {setting.group: [] for setting in SETTINGS.values()}
    for command in COMMANDS:
        setting = SETTINGS.get(command.name.replace("-", "_"))
        found[setting.group if setting else "Settings"].append(command)
    return {heading: tuple(commands) for heading, commands in found.items()}


GROUPS = _groups()
"""Commands by the heading under which ``/help`` lists them."""
