"""From settings to a session: what the next reply is made by."""

from llama_chat.chat.session import ChatSession
from llama_chat.settings.definitions import Settings


def configure(session: ChatSession, settings: Settings) -> None:
    """Let a session follow the settings; what has been said stays as it is."""
    session.sampler.sampling = settings.sampling
    session.max_tokens = settings.max_tokens
    session.stop = settings.stop
    session.drop_oldest = settings.overflow == "drop-oldest"
    session.lookup = settings.lookup
    session.conversation.system = settings.system
