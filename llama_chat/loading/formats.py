"""Checkpoints and tokenizers, opened by path with the reader of their format."""

from importlib import import_module
from pathlib import Path

from llama_chat.checkpoints.base import Checkpoint
from llama_chat.checkpoints.huggingface_tokenizer import (
    find_chat_template,
    read_tokenizer_config,
    read_vocabulary,
)
from llama_chat.errors import ModelError
from llama_chat.library.layouts import identify, identify_folder
from llama_chat.tokenizers.base import Tokenizer
from llama_chat.tokenizers.library import LibraryTokenizer
from llama_chat.tokenizers.sentencepiece import SentencePieceTokenizer, read_model
from llama_chat.tokenizers.tokenizer_json import read_json
from llama_chat.tokenizers.vocabulary import MergeModel, PieceModel, Vocabulary


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a checkpoint of any known format, reading its headers only.

    Raises:
        ModelError: if it is missing, of no known format, or damaged.
    """
    what = f"model {str(path)!r}"
    try:
        exists, found = path.exists(), identify(path)
    except (OSError, ValueError) as error:
        raise ModelError(what, f"cannot be opened ({error})", "check the path") from None
    if not exists:
        raise ModelError(what, "no such file or folder", "check --model")
    if found is None:
        raise ModelError(
            what,
            "not a model of a known format",
            "give a folder of Meta or the Hugging Face Hub, a .gguf file, or a .bin of llama2.c",
        )
    reader = import_module(f"llama_chat.checkpoints.{found.reader}")
    checkpoint: Checkpoint = reader.open_checkpoint(path)
    return checkpoint


def open_tokenizer(path: Path) -> tuple[Tokenizer, str | None]:
    """Open the tokenizer at ``path``, and the chat template text of the model that it belongs to.

    ``path`` is a model, a ``tokenizer.model`` or ``tokenizer.json``, or a folder that holds one.

    Raises:
        ModelError: if there is no tokenizer or it cannot be read.
    """
    if path.is_file() and path.suffix == ".model":
        return make_tokenizer(read_model(path)), None
    if path.is_file() and path.suffix == ".json":
        return make_tokenizer(read_json(path)), None
    names = [entry.name for entry in path.iterdir()] if path.is_dir() else []
    is_model = identify_folder(names) is not None
    if not is_model and not {"tokenizer.model", "tokenizer.json"}.isdisjoint(names):
        template = find_chat_template(path, read_tokenizer_config(path))
        return make_tokenizer(read_vocabulary(path)), template
    checkpoint = open_checkpoint(path)
    return load_tokenizer(checkpoint), checkpoint.chat_template


def load_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """Make the tokenizer of a checkpoint.

    Raises:
        ModelError: if it cannot be read, or has more text tokens than the model.
    """
    return make_tokenizer(checkpoint.read_vocabulary().limited(checkpoint.config.vocab_size))


def make_tokenizer(vocabulary: Vocabulary) -> Tokenizer:
    """Make the tokenizer of a vocabulary.

    Raises:
        ModelError: if its tables contradict each other, or lack tokens for single bytes.
    """
    match vocabulary.model:
        case PieceModel() as model:
            return SentencePieceTokenizer(vocabulary, model)
        case MergeModel() as model:
            return LibraryTokenizer(vocabulary, model)
