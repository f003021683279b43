"""Exceptions, one class per exit status.

Every error that a user can cause is reported as one line on stderr,
``llama-chat: error: WHAT: WHY: WHAT TO DO``, so each exception has these three parts.
"""

import difflib
import errno
import re
from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import Any


class LlamaChatError(Exception):
    """A failure with a next step; base class of all others. Exit status 1."""

    status = 1

    def __init__(self, what: str, why: str, advice: str) -> None:
        super().__init__(f"{what}: {why}: {advice}")
        self.what = what
        self.why = why
        self.advice = advice


class CutOffError(LlamaChatError):
    """A server went away within an answer, of which the beginning is there. Exit status 1."""


class UsageError(LlamaChatError):
    """The command line, a setting or a prompt is not usable. Exit status 2."""

    status = 2


class NothingYetError(UsageError):
    """A command is right, but what it acts on is not there yet."""

    def __init__(self, command: str, missing: str = "message") -> None:
        super().__init__(command, f"there is no {missing} yet", "type a message first")


class ModelError(LlamaChatError):
    """A model or its tokenizer cannot be loaded. Exit status 3."""

    status = 3


class PromptTooLongError(LlamaChatError):
    """The prompt does not fit in the context. Exit status 4."""

    status = 4


class LengthLimitError(LlamaChatError):
    """A completion ended at its length limit under ``--fail-on-length``. Exit status 5."""

    status = 5


class SaveError(LlamaChatError):
    """Something could not be written. Exit status 6."""

    status = 6

    @classmethod
    def at(
        cls,
        path: PurePath,
        cause: Exception | str,
        advice: str = "choose another place",
    ) -> "SaveError":
        """Return the error for a path that cannot be written.

        Args:
            path: the path.
            cause: what failed; a text if it is that space is lacking.
            advice: what to do, besides freeing space where that is lacking.
        """
        why = cause if isinstance(cause, str) else reason(cause)
        lacking = isinstance(cause, str) or is_full_disk(cause)
        return cls(repr(str(path)), why, f"free space there, or {advice}" if lacking else advice)


class LostRankError(Exception):
    """One of several ranks has gone, which ends all. Exit status 1.

    Nothing below the command line reports it: it passes through all of the program, whose end is
    often that of a signal, too.
    """

    status = 1

    def __init__(self, what: str, why: str = "it has ended") -> None:
        super().__init__(f"{what}: {why}: start all of them again with torchrun")


class ClosedPipe(Exception):
    """The reader of stdout has closed the pipe, which is no error. Exit status 141."""

    status = 141


def error_facts(error: LlamaChatError) -> dict[str, Any]:
    """Return the parts of an error as JSON."""
    parts = {"what": error.what, "why": error.why, "advice": error.advice}
    return {**parts, "status": error.status}


def error_of_facts(facts: Mapping[str, Any]) -> LlamaChatError:
    """Return the error that ``error_facts`` described, as one of the same status.

    Raises:
        KeyError: if it is another object.
    """
    kinds = (UsageError, ModelError, PromptTooLongError, LengthLimitError, SaveError)
    kind = next((kind for kind in kinds if kind.status == facts["status"]), LlamaChatError)
    return kind(str(facts["what"]), str(facts["why"]), str(facts["advice"]))


INTERRUPTED_STATUS = 130
"""Exit status after Ctrl-C."""


def reason(error: Exception, unnamed: str = "it cannot be used") -> str:
    """Return the reason of an operating system error, for an error line.

    Args:
        error: an OSError; or a ValueError, which ``open`` raises for a path with a NUL.
        unnamed: reason of an OSError that has none.
    """
    if not isinstance(error, OSError):
        return "not a possible name"
    return (error.strerror or unnamed).lower()


def is_full_disk(error: Exception) -> bool:
    """True if freeing space helps."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def unexpected(error: Exception) -> str:
    """Return the line about memory that ran out, or else a bug, with advice on reporting it."""
    if is_out_of_memory(error):
        return "this process: not enough memory: free some, or use a smaller model or --context"
    return f"unexpected: {error}: report it with LLAMA_CHAT_TRACEBACK=1 set"


class ContextMemoryError(LlamaChatError):
    """The tokens of a forward pass do not fit in memory."""


def is_out_of_memory(error: Exception) -> bool:
    """True for all out-of-memory errors of Python, the operating system and torch."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    # On a CPU torch raises a plain RuntimeError.
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError)
        and re.search("out of memory|not enough memory|allocate memory|bad_alloc", str(error))
        is not None
    )


def counted(number: int, noun: str, spec: str = "") -> str:
    """Return a number with a noun, which gets an s unless it is 1: ``1 token``, ``2 tokens``.

    Args:
        number: how many.
        noun: one of them.
        spec: format of the number, as ``format`` takes it.
    """
    return f"{number:{spec}} {noun}" if number == 1 else f"{number:{spec}} {noun}s"


def did_you_mean(
    wrong: str,
    known: Iterable[str],
    otherwise: str | None = None,
    *,
    prefix: str = "",
    cutoff: float = 0.6,
) -> str:
    """Return advice that names the known word most similar to ``wrong``.

    Args:
        wrong: the word that is not known.
        known: all known words.
        otherwise: advice if none is similar; None for a list of all known words.
        prefix: written before the word.
        cutoff: minimum similarity, from 0 to 1; see ``difflib``.
    """
    known = sorted(known)
    if near := difflib.get_close_matches(wrong, known, n=1, cutoff=cutoff):
        return f"did you mean {prefix}{near[0]}?"
    return "known are " + ", ".join(known) if otherwise is None else otherwise
