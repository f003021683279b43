"""Grammars that answers must meet, from the command line."""

from llama_chat.errors import UsageError
from llama_chat.files import expand_user, read_text
from llama_chat.generation.constraints import Grammar

_MAX_BYTES = 2**20


def read_grammar(json_schema: str | None, regex: str | None, file: str | None) -> Grammar | None:
    """Read the grammar that one of the options gives; return None without one.

    Raises:
        UsageError: if there are several, or it cannot be read, or is not a valid grammar.
    """
    given = {"--json-schema": json_schema, "--regex": regex, "--grammar": file}
    names = [name for name, value in given.items() if value is not None]
    if len(names) > 1:
        raise UsageError(names[0], f"{names[1]} is given too", "give one of them")
    if json_schema is not None:
        text = json_schema.strip()
        is_json = text.startswith("{") or text in ("", "true", "false")
        return Grammar.json_schema(json_schema if is_json else _read(json_schema, "schema"))
    if regex is not None:
        return Grammar.regex(regex)
    return None if file is None else Grammar.lark(_read(file, "grammar"))


def _read(name: str, kind: str) -> str:
    return read_text(expand_user(name), f"{kind} {name[:80]!r}", "check the path", _MAX_BYTES)
