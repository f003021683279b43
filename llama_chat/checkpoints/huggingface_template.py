"""Chat templates in a Hugging Face folder."""

from pathlib import Path

from llama_chat.checkpoints.small_files import JsonObject, read_bytes, read_object
from llama_chat.checkpoints.template_source import DEFAULT, TemplateSource

_FETCH = "download it from the same release"

_MORE = "additional_chat_templates"


def find_templates(folder: Path, config: JsonObject, names: tuple[str, ...]) -> TemplateSource:
    """Find the chat templates; as in transformers a file of their own takes precedence.

    Args:
        folder: the model.
        config: its ``tokenizer_config.json``.
        names: names of the model.

    Raises:
        ModelError: if a file is damaged or too large.
    """
    texts, where = _texts(config), "tokenizer_config.json"
    processor = folder / "chat_template.json"
    if processor.exists() and (found := _texts(read_object(processor, _FETCH))):
        texts, where = texts | found, processor.name
    for path in sorted((folder / _MORE).glob("*.jinja")):
        texts[path.stem] = _read(path)
        where = where if DEFAULT in texts else _MORE
    own = folder / "chat_template.jinja"
    if own.exists():
        texts[DEFAULT], where = _read(own), own.name
    return TemplateSource(texts, where if texts else "", _named_tokens(folder, config), names)


def _read(path: Path) -> str:
    return read_bytes(path, _FETCH).decode("utf-8", "replace")


def _texts(config: JsonObject) -> dict[str, str]:
    """Return the templates of a JSON file: one, a list of named ones, or named in an object."""
    value = config.values.get("chat_template")
    if isinstance(value, list):
        named = [JsonObject(config.what, item) for item in value if isinstance(item, dict)]
        pairs = [(item.text("name"), item.text("template")) for item in named]
        return {name: text for name, text in pairs if name is not None and text is not None}
    if isinstance(value, dict):
        return {name: text for name, text in value.items() if isinstance(text, str)}
    text = config.text("chat_template")
    return {} if text is None else {DEFAULT: text}


def _named_tokens(folder: Path, config: JsonObject) -> dict[str, str]:
    """Return all values whose name ends in ``_token``: a text, or an object that describes one."""
    older = folder / "special_tokens_map.json"
    files = [read_object(older, _FETCH)] if older.exists() else []
    found = {}
    for values in (file.values for file in (*files, config)):
        for name, value in values.items():
            text = value.get("content") if isinstance(value, dict) else value
            if name.endswith("_token") and isinstance(text, str):
                found[name] = text
    return found
