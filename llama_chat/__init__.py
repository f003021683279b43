"""llama-chat: chat with a Llama-2 model in the terminal.

The Python API. Its parts are imported at first use, since importing torch takes a second.
"""

from importlib import import_module

# That of ``typing`` takes longer to import than all that precedes the handler of Ctrl-C.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from llama_chat.chat.session import ChatSession
    from llama_chat.errors import LlamaChatError
    from llama_chat.generation.constraints import Grammar
    from llama_chat.generation.events import Finish, Token
    from llama_chat.llama import Llama
    from llama_chat.loading.plan import load
    from llama_chat.settings.sampling import Sampling

__version__ = "0.1.0"

__all__ = [
    "ChatSession",
    "Finish",
    "Grammar",
    "Llama",
    "LlamaChatError",
    "Sampling",
    "Token",
    "__version__",
    "load",
]

_MODULES = {
    "ChatSession": "llama_chat.chat.session",
    "Finish": "llama_chat.generation.events",
    "Grammar": "llama_chat.generation.constraints",
    "Llama": "llama_chat.llama",
    "LlamaChatError": "llama_chat.errors",
    "Sampling": "llama_chat.settings.sampling",
    "Token": "llama_chat.generation.events",
    "load": "llama_chat.loading.plan",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(_MODULES[name]), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
