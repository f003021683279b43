"""Texts for the slots of prompt files: those of ``--var``, and stdin."""

import re
import sys
from collections.abc import Callable, Mapping, Sequence

from llama_chat.chat.prompt_files import PromptFile
from llama_chat.chat.prompt_slots import NAME, STDIN, fill, slot_names
from llama_chat.errors import UsageError, did_you_mean
from llama_chat.files import without_final_newline
from llama_chat.terminal import streams


class Slots:
    """Texts for slots, and which of them are used."""

    def __init__(
        self, variables: Sequence[str] | None, stdin: Callable[[], str] | None = None
    ) -> None:
        """Parse the values of ``--var``.

        Args:
            variables: texts ``NAME=TEXT``.
            stdin: reads stdin, when a slot needs it; None where there is none to read.

        Raises:
            UsageError: if one has no name, that of stdin, or the same as another.
        """
        self.values: dict[str, str] = {}
        self._names: set[str] = set()
        self._read = stdin
        self._stdin: str | None = None
        for variable in variables or ():
            name, equals, text = variable.partition("=")
            what = f"--var {variable[:60]!r}"
            if not equals or not re.fullmatch(NAME, name):
                raise UsageError(what, "it is not NAME=TEXT", "write --var name=text")
            if name == STDIN or name in self.values:
                why = "that slot is for stdin" if name == STDIN else "that name is given twice"
                raise UsageError(what, why, "choose another name")
            self.values[name] = text

    @property
    def takes_stdin(self) -> bool:
        """True if a slot of a file that was filled is ``{{stdin}}``."""
        return STDIN in self._names

    def fill(self, prompt: PromptFile, further: Mapping[str, str] | None = None) -> PromptFile:
        """Fill the slots of a prompt file, with ``further`` values too; see ``prompt_slots``."""
        self._names |= slot_names(prompt)
        values = self.values | dict(further or {})
        return fill(prompt, values, None if self._read is None else self._once)

    def _once(self) -> str:
        if self._stdin is None and self._read is not None:
            self._stdin = self._read()
        return self._stdin or ""

    def check_used(self, later: PromptFile | None = None) -> None:
        """Check that each ``--var`` has a slot in a file that was filled, or will be ``later``.

        Raises:
            UsageError: naming one that has none.
        """
        known = self._names | (slot_names(later) if later else set())
        for name in self.values:
            if name not in known:
                advice = did_you_mean(name, known - {STDIN}, "leave it out", prefix="--var ")
                raise UsageError(
                    f"--var {name}", f"no prompt file has the slot {{{{{name}}}}}", advice
                )


def read_piped(*, quiet: bool = False) -> str:
    """Read stdin for a slot.

    Raises:
        UsageError: if it is a terminal, is empty, or cannot be read.
    """
    if streams.is_terminal(sys.stdin):
        raise UsageError("stdin", "it is a terminal", "pipe a text to it, for {{stdin}}")
    text = streams.read_stdin(quiet=quiet)
    if not text.strip():
        raise UsageError("stdin", "it is empty", "pipe a text to it, for {{stdin}}")
    return without_final_newline(text)
