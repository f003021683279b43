"""Settings of a server in place of a model here."""

from dataclasses import dataclass

from llama_chat.settings.setting import define


@dataclass(frozen=True)
class EndpointSettings:
    """A server in the style of OpenAI, to use in place of a model here."""

    endpoint: str | None = define(
        "text",
        None,
        "Server in the style of OpenAI to ask, in place of a model here.",
        scope="load",
        example="http://localhost:8000",
    )
    endpoint_model: str | None = define(
        "text",
        None,
        "Name of the model there; by default the only one.",
        scope="load",
        example="llama-3.1-8b",
    )
    endpoint_timeout: float = define(
        "number",
        300.0,
        "Longest silence of the server, in seconds.",
        scope="load",
        low=0,
        high=86400,
        above=True,
        example="60",
    )
    endpoint_connect_timeout: float = define(
        "number",
        10.0,
        "Longest wait for a connection, in seconds.",
        scope="load",
        low=0,
        high=3600,
        above=True,
        example="3",
    )
    api_key_file: str | None = define(
        "path",
        None,
        "File with the key for the server; LLAMA_CHAT_API_KEY takes precedence.",
        scope="load",
        example="~/.config/llama-chat/key",
    )
    template_here: str | None = define(
        "path",
        None,
        "Model whose template and tokenizer encode the messages here; exact counts.",
        scope="load",
        example="smollm2-135m",
    )
