"""Errors of the parser of command lines, in the form of all others."""

from typing import Any, get_args

from typer import BadParameter
from typer.exceptions import TyperException

from llama_chat.errors import UsageError, did_you_mean

_SIMILARITY = 0.75
"""Least similarity of an option to propose; see ``difflib``."""


def usage_error(error: TyperException) -> UsageError:
    """Return an error that Typer has found as one of ours."""
    context: Any = getattr(error, "ctx", None)
    path = "llama-chat" if context is None else context.command_path
    advice = f"see {path} --help"
    option = getattr(error, "option_name", None)
    cause: Any = error.__cause__
    if option and hasattr(error, "possibilities") and context is not None:
        known = [name for each in context.command.params for name in each.opts]
        advice = did_you_mean(option, known, advice, cutoff=_SIMILARITY)
        return UsageError(option, f"{path} has no such option", advice)
    if isinstance(error, BadParameter) and hasattr(cause, "errors"):  # of pydantic
        value = cause.errors()[0]["input"]
        advice = f"give {_range(error.param)}"
        return UsageError(_name(error.param), f"{value!r} does not fit", advice)
    return UsageError("command line", error.format_message().rstrip("."), advice)


def _name(parameter: Any) -> str:
    """Return the name of a parameter as it is typed or shown."""
    name: str = parameter.opts[0]
    return name if name.startswith("-") else (parameter.metavar or name.upper()).strip("[].")


def _range(parameter: Any) -> str:
    """Return the possible values of a parameter in words."""
    kind = parameter.type_descriptor.annotation
    if choices := get_args(kind):
        return f"one of {', '.join(map(str, choices))}"
    low, high = parameter.min, parameter.max
    ends = [f"from {low}"] if low is not None else []
    ends += [f"to {high}"] if high is not None else []
    return " ".join(["a whole number" if kind is int else "a number", *ends])
