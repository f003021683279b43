"""From settings to a session: what the next reply is made by."""

from llama_chat.chat.session import ChatSession
from llama_chat.generation.sampling import Sampling
from llama_chat.settings import SAMPLING_NAMES, Settings


def sampling(settings: Settings) -> Sampling:
    """The sampling that the settings describe."""
    return Sampling(**{name: settings[name] for name in SAMPLING_NAMES})  # type: ignore[arg-type] # checked by SETTINGS


def configure(session: ChatSession, settings: Settings) -> None:
    """Let a session follow the settings; what has been said stays as it is."""
    session.sampler.sampling = sampling(settings)
    session.max_tokens = settings.integer("max_tokens")
    session.stop = settings.texts("stop")
    session.drop_oldest = settings.text("overflow") == "drop-oldest"
    session.lookup = settings["lookup"] is True
    session.conversation.system = settings.text("system")
