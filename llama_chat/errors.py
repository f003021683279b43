"""What can go wrong, one exception class per exit status.

Every error a person can cause ends as one line on stderr,
``llama-chat: error: WHAT: WHY: WHAT TO DO``, so each exception is made of these three parts.
"""


class LlamaChatError(Exception):
    """A failure with a next step; the base of all others. Exit status 1."""

    status = 1

    def __init__(self, what: str, why: str, advice: str) -> None:
        super().__init__(f"{what}: {why}: {advice}")
        self.what = what
        self.why = why
        self.advice = advice


class UsageError(LlamaChatError):
    """The command line, a setting or a prompt is not usable. Exit status 2."""

    status = 2


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


class ClosedPipe(Exception):
    """The reader of stdout has gone: nothing is wrong, and nothing is left to do."""

    status = 141


INTERRUPTED_STATUS = 130
"""Exit status after Ctrl-C."""
