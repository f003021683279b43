"""Settings of a server to use in place of a local model."""

from dataclasses import dataclass

from llama_chat.settings.setting import define


@dataclass(frozen=True)
class EndpointSettings:
    """An OpenAI-compatible server, to use in place of a local model."""

    endpoint: str | None = define(
        "text",
        None,
        "OpenAI-compatible server to use in place of a local model.",
        scope="load",
        example="http://localhost:8000",
    )
    endpoint_model: str | None = define(
        "text",
        None,
        "Name of the model on the server; by default its only one.",
        scope="load",
        example="llama-3.1-8b",
    )
    endpoint_timeout: float = define(
        "number",
        300.0,
        "Read timeout in seconds.",
        scope="load",
        low=0,
        high=86400,
        above=True,
        example="60",
    )
    endpoint_connect_timeout: float = define(
        "number",
        10.0,
        "Connect timeout in seconds.",
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
        "Model whose template and tokenizer encode the messages locally; exact counts.",
        scope="load",
        example="smollm2-135m",
    )
