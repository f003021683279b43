"""Errors of a hub, as one line with a next step."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

from llama_chat.errors import LlamaChatError, UsageError, counted, reason

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"


@contextmanager
def explained(what: str, repository: str) -> Iterator[None]:
    """Convert exceptions of ``huggingface_hub`` and the network to ``LlamaChatError``."""
    import httpx2
    from huggingface_hub import constants, errors

    try:
        yield
    except errors.GatedRepoError:
        page = f"{constants.ENDPOINT}/{repository}"
        advice = f"accept its licence at {page}, then {_LOG_IN}"
        raise LlamaChatError(what, "its licence must be accepted first", advice) from None
    except errors.RevisionNotFoundError:
        raise UsageError(what, "there is no such revision", "check --revision") from None
    except errors.RepositoryNotFoundError:
        why = "there is no such repository, or it is not open to all"
        raise UsageError(what, why, f"check the name, or {_LOG_IN}") from None
    except errors.HfHubHTTPError as error:
        raise _refusal(what, error) from None
    except UnicodeEncodeError:
        why = "a character of it cannot be sent"
        raise UsageError("access token", why, "check HF_TOKEN") from None
    except errors.HFValidationError:
        raise UsageError(what, "not a possible name", "give ORGANISATION/NAME") from None
    except httpx2.TransportError as error:
        found = str(error) or type(error).__name__
        why = f"{constants.ENDPOINT} cannot be reached ({found[:100]})"
        advice = "check the network and HF_ENDPOINT; the same command then goes on"
        raise LlamaChatError(what, why, advice) from None
    except (httpx2.RequestError, httpx2.InvalidURL) as error:
        raise LlamaChatError(what, f"no answer ({error})", "check HF_ENDPOINT") from None


def access_token() -> str | Literal[False]:
    """Return the token to send with requests; False if there is none.

    Raises:
        LlamaChatError: if the file with it cannot be read.
    """
    from huggingface_hub import constants, get_token

    try:
        token = None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()
        return token or False
    except OSError as error:
        why = reason(error)
    except UnicodeDecodeError:
        why = "it is not a text"
    what = f"access token {constants.HF_TOKEN_PATH!r}"
    raise LlamaChatError(what, why, f"check it, or {_LOG_IN}")


def _refusal(what: str, error: "HfHubHTTPError") -> LlamaChatError:
    """Return the error for an HTTP status that ``huggingface_hub`` does not explain."""
    status = error.response.status_code
    match status:
        case 401:
            why, advice = "it requires a login", _LOG_IN
        case 403:
            why, advice = "the access token may not read it", f"{_LOG_IN} to one that may"
        case 429:
            wait = error.response.headers.get("Retry-After", "")
            why = "the hub was asked too often"
            advice = f"wait {counted(int(wait), 'second')}" if wait.isdecimal() else "wait a while"
            advice += ", then give the same command"
        case _:
            why, advice = f"the hub answered with status {status}", "try again later"
    return LlamaChatError(what, why, advice)


def unreadable(what: str) -> LlamaChatError:
    """Return the error for a malformed answer of a hub."""
    why = "the hub gave an answer that cannot be read"
    return LlamaChatError(what, why, "check HF_ENDPOINT")
