"""Vocabulary files of a Hugging Face folder."""

from pathlib import Path

from llama_chat.checkpoints.base import SentencePieceSource, TokenizerJsonSource
from llama_chat.checkpoints.small_files import JsonObject, read_object
from llama_chat.errors import ModelError
from llama_chat.files import read_whole
from llama_chat.tokenizers.base import MAX_TABLE_BYTES
from llama_chat.tokenizers.sentencepiece import parse_model

_FETCH = "fetch it from the same release"


def read_tokenizer_config(folder: Path) -> JsonObject:
    """Read ``tokenizer_config.json`` in ``folder``; empty if there is none.

    Raises:
        ModelError: if it is damaged.
    """
    path = folder / "tokenizer_config.json"
    return read_object(path, _FETCH) if path.exists() else JsonObject(repr(str(path)), {})


def find_tokenizer(
    folder: Path, config: JsonObject
) -> tuple[SentencePieceSource | TokenizerJsonSource, str]:
    """Choose the file that holds the vocabulary.

    A SentencePiece model is preferred as the original, unless the model has added tokens that are
    not in it.

    Returns:
        The file, and a warning, which may be empty.

    Raises:
        ModelError: if there is none, or a file that describes it is damaged.
    """
    model, tables = folder / "tokenizer.model", folder / "tokenizer.json"
    n_pieces = _count_pieces(model)
    added = [token_id for token_id in _added_ids(folder, config) if token_id >= n_pieces]
    if tables.exists() and (n_pieces == 0 or added):
        bos, eos = _token(config, "bos_token"), _token(config, "eos_token")
        return TokenizerJsonSource(tables, bos, eos, config.flag("add_bos_token")), ""
    if not model.exists():
        why = "no tokenizer.model or tokenizer.json in it"
        raise ModelError(f"model {str(folder)!r}", why, _FETCH)
    warning = ""
    if n_pieces and added:
        warning = f"{len(added)} added tokens are not in its tokenizer.model: fetch tokenizer.json"
    return SentencePieceSource(model), warning


def _count_pieces(path: Path) -> int:
    """Count the pieces of a SentencePiece model; 0 if there is none, as in Llama 3."""
    if not path.exists():
        return 0
    data = read_whole(path, f"tokenizer {str(path)!r}", _FETCH, MAX_TABLE_BYTES)
    return 0 if (model := parse_model(data)) is None else int(model.vocab_size())


def _added_ids(folder: Path, config: JsonObject) -> list[int]:
    """List the ids of tokens that were added to the vocabulary."""
    decoder = config.object("added_tokens_decoder").values
    path = folder / "added_tokens.json"
    added = read_object(path, _FETCH).values if path.exists() else {}
    ids = [*added.values(), *(int(key) for key in decoder if key.isdecimal() and len(key) < 10)]
    return sorted({token_id for token_id in ids if type(token_id) is int})


def _token(config: JsonObject, name: str) -> str | None:
    """Read a special token: a text, or an object that describes one."""
    if isinstance(config.values.get(name), dict):
        return config.object(name).text("content")
    return config.text(name)
