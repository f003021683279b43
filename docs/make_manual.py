"""Write the manual pages from the command line of the program.

    python docs/make_manual.py

A page for the program, with all settings, and one for each command, in ``docs/man``; the wheel
installs them where ``man`` finds them.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from llama_chat.cli.app import build  # noqa: E402
from llama_chat.settings.definitions import SETTINGS  # noqa: E402

FOLDER = ROOT / "docs/man"

STATUSES = (
    ("0", "ok"),
    ("1", "failed while running"),
    ("2", "the command line, a setting or a prompt is not usable"),
    ("3", "a model cannot be loaded"),
    ("4", "the prompt does not fit in the context"),
    ("5", "cut off, under --fail-on-length"),
    ("6", "something could not be written"),
    ("130", "interrupted"),
)


def escaped(text: str) -> str:
    """Return text as troff has it."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq")
    text = re.sub(r"[^\x00-\x7f]", lambda found: f"\\[u{ord(found[0]):04X}]", text)
    return re.sub(r"^\.", r"\\&.", text, flags=re.M)


def heading(name: str, what: str) -> str:
    """Return the beginning of a page."""
    title = name.upper().replace(" ", "-")
    about = f"{escaped(name.replace(' ', '-'))} \\- {escaped(what)}"
    return f'.TH "{title}" "1" "" "llama-chat" "llama-chat"\n.SH NAME\n{about}\n'


def option_lines(option: Any) -> str:
    """Return an option or argument with its help."""
    names = "/".join(
        (option.secondary_opts and [*option.opts, *option.secondary_opts]) or option.opts
    )
    if option.param_type_name == "argument":
        names = (option.metavar or option.name.upper()).strip("[].")
    elif option.metavar:
        names += f" {option.metavar}"
    return f".TP\n.B {escaped(names)}\n{escaped(option.help or '')}\n"


def own_options(command: Any) -> Iterator[Any]:
    """Yield the parameters of a command that are no settings."""
    for option in command.params:
        if option.name not in SETTINGS and not getattr(option, "hidden", False):
            yield option


def page(name: str, command: Any) -> str:
    """Return the page of a command, or of a group with its commands."""
    first, _, rest = (command.help or "").partition("\n\n")
    text = heading(name, first.strip().rstrip(".").replace("\n", " "))
    takes_settings = any(option.name in SETTINGS for option in command.params)
    usage = " ".join(
        option.metavar or f"[{option.name.upper()}]"
        for option in command.params
        if option.param_type_name == "argument"
    )
    usage = f"[OPTION]... {usage}".strip()
    text += f".SH SYNOPSIS\n.B {escaped(name)}\n{escaped(usage)}\n"
    if rest:
        paragraphs = [" ".join(each.split()) for each in rest.split("\n\n")]
        text += ".SH DESCRIPTION\n" + "\n.PP\n".join(map(escaped, paragraphs)) + "\n"
    options = [option_lines(option) for option in own_options(command)]
    if options:
        text += ".SH OPTIONS\n" + "".join(options)
    for subname, sub in getattr(command, "commands", {}).items():
        text += f".SS {escaped(name)} {escaped(subname)}\n{escaped(sub.help or '')}\n"
        text += "".join(option_lines(option) for option in own_options(sub))
    if takes_settings:
        text += ".PP\nIt takes all settings as options, too: see llama\\-chat(1).\n"
    return text + ".SH SEE ALSO\nllama\\-chat(1)\n"


def main_page(app: Any) -> str:
    """Return the page of the program: commands, settings, environment and statuses."""
    text = heading("llama-chat", "talk with a Llama-2 model in the terminal")
    text += ".SH SYNOPSIS\n.B llama\\-chat\n[COMMAND] [OPTION]...\n.SH COMMANDS\n"
    for name, command in app.commands.items():
        first = (command.help or "").partition("\n\n")[0].replace("\n", " ")
        text += f".TP\n.B llama\\-chat\\-{escaped(name)}(1)\n{escaped(first)}\n"
    text += ".SH SETTINGS\n"
    text += "A flag takes precedence over the environment, and that over the settings file.\n"
    group = ""
    for setting in SETTINGS.values():
        if setting.group != group:
            group = setting.group
            text += f".SS {escaped(group)}\n"
        names = ", ".join(filter(None, [setting.short, setting.flag, setting.off_flag]))
        text += f".TP\n.B {escaped(names)}\n{escaped(setting.help)}\n"
        for value, meaning in setting.values.items():
            text += f"{escaped(value)}: {escaped(meaning)}.\n"
        text += f".br\n{escaped(setting.variable)} in the environment.\n"
    text += ".SH EXIT STATUS\n"
    text += "".join(f".TP\n.B {status}\n{escaped(meaning)}\n" for status, meaning in STATUSES)
    return text


def pages() -> dict[str, str]:
    """Return all pages by their file names."""
    app: Any = typer.main.get_command(build())
    found = {"llama-chat.1": main_page(app)}
    for name, command in app.commands.items():
        found[f"llama-chat-{name}.1"] = page(f"llama-chat {name}", command)
    return found


if __name__ == "__main__":
    for name, text in pages().items():
        (FOLDER / name).write_text(text)
