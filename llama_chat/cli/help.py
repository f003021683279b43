"""Text of ``--help``: options by group, arguments in the notation of Unix, whole summaries."""

from collections.abc import Iterator
from typing import Any

from typer.core import TyperCommand, TyperGroup

_OPTIONS = "Options"
"""Heading of the options that belong to no group."""


class _Help:
    """Help of a command or of a group of commands."""

    help: str | None

    def get_short_help_str(self, limit: int = 0) -> str:
        """Return the first paragraph of the help, whole: Typer cuts it at ``limit``."""
        return " ".join((self.help or "").partition("\n\n")[0].split())

    def write_sections(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments, and the options under the heading of each group."""
        command: Any = self
        for heading, params in _sections(command.get_params(ctx)):
            rows = [_row(param, ctx) for param in params if not param.hidden]
            if rows:
                with formatter.section(heading):
                    formatter.write_dl(rows)


class Command(_Help, TyperCommand):
    """A command with such help."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return what follows the name in the usage: each argument as its metavar writes it."""
        arguments = [param for param in self.get_params(ctx) if _is_argument(param)]
        return ["[OPTIONS]", *(param.metavar or param.name.upper() for param in arguments)]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write arguments and options."""
        self.write_sections(ctx, formatter)


class Group(_Help, TyperGroup):
    """A group of commands with such help."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write options and commands."""
        self.write_sections(ctx, formatter)
        self.format_commands(ctx, formatter)


def _is_argument(param: Any) -> bool:
    return bool(param.param_type_name == "argument")


def _heading(param: Any) -> str:
    return "Arguments" if _is_argument(param) else param.rich_help_panel or _OPTIONS


def _sections(params: list[Any]) -> Iterator[tuple[str, list[Any]]]:
    """Yield headings with their parameters: arguments, options of no group, then the groups."""
    headings = dict.fromkeys(["Arguments", _OPTIONS, *map(_heading, params)])
    for heading in headings:
        yield heading, [param for param in params if _heading(param) == heading]


def _row(param: Any, ctx: Any) -> tuple[str, str]:
    """Return the name of a parameter, and its help."""
    name, text = param.get_help_record(ctx)
    return (param.metavar or param.name.upper()).strip("[].") if _is_argument(param) else name, text
