"""The gate through which all data of unknown origin is parsed.

Readers validate what a file states before they rely on it. Whatever they and their libraries still
raise for malformed bytes, of any type, becomes an error of one line here. ``tests/test_gates.py``
checks that no reader bypasses the gate.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from llama_chat.errors import LlamaChatError, ModelError, is_out_of_memory, reason

FETCH_AGAIN = "download the file again"


@contextmanager
def gate(
    what: str,
    advice: str = FETCH_AGAIN,
    *,
    why: str = "it is cut off or damaged",
    library: str = "",
    refusal: type[LlamaChatError] = ModelError,
) -> Iterator[None]:
    """Convert any exception of a parser in the block to an error about ``what``.

    Args:
        what: the data in errors.
        advice: what to do if it is damaged.
        why: the reason, unless memory or the operating system is.
        library: name of the library that parses it, if its own words say more than ``why``.
        refusal: class of the error.
    """
    try:
        yield
    except LlamaChatError:
        raise
    except Exception as error:
        raise _refused(what, advice, why, library, refusal, error) from error
    except BaseException as error:
        # Libraries in Rust panic with an exception that cannot be imported.
        if type(error).__name__ != "PanicException":
            raise
        raise _refused(what, advice, why, library, refusal, RuntimeError(str(error))) from error


def _refused(
    what: str,
    advice: str,
    why: str,
    library: str,
    refusal: type[LlamaChatError],
    error: Exception,
) -> LlamaChatError:
    if is_out_of_memory(error):
        return refusal(what, "not enough memory to read it", "free some memory")
    if isinstance(error, OSError):
        return refusal(what, reason(error), "check it")
    if library:
        why = f"the {library} library cannot use it ({str(error)[:80]!r})"
    return refusal(what, why, advice)
