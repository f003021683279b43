"""Checkpoints and tokenizers, opened by path with the reader of their format."""

from contextlib import suppress
from dataclasses import replace
from importlib import import_module
from pathlib import Path

from llama_chat.checkpoints.base import Checkpoint, label
from llama_chat.checkpoints.foreign import foreign_at
from llama_chat.checkpoints.huggingface_template import find_templates
from llama_chat.checkpoints.huggingface_tokenizer import read_tokenizer_config, read_vocabulary
from llama_chat.checkpoints.template_source import DEFAULT, TemplateSource
from llama_chat.errors import ModelError, reason
from llama_chat.gates import gate
from llama_chat.library import starter
from llama_chat.library.layouts import TEKKEN, identify, identify_folder
from llama_chat.tokenizers.base import Tokenizer
from llama_chat.tokenizers.library import LibraryTokenizer
from llama_chat.tokenizers.ranked import read_model_file
from llama_chat.tokenizers.sentencepiece import SentencePieceTokenizer
from llama_chat.tokenizers.tekken import read_tekken
from llama_chat.tokenizers.tokenizer_json import read_json
from llama_chat.tokenizers.vocabulary import DAMAGED, MergeModel, PieceModel, Vocabulary


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a checkpoint of any known format, reading its headers only.

    Raises:
        ModelError: if it is missing, of no known format, or damaged.
    """
    what = label(path)
    try:
        foreign, found = foreign_at(path), identify(path)
    except FileNotFoundError:
        raise ModelError(what, "no such file or folder", "check --model") from None
    except (OSError, ValueError) as error:
        raise ModelError(what, reason(error), "check it") from None
    if foreign is not None:
        raise ModelError(what, *foreign)
    if found is None:
        raise ModelError(what, "not a model of a known format", _advice(path))
    reader = import_module(f"llama_chat.checkpoints.{found.reader}")
    with gate(what):
        checkpoint: Checkpoint = reader.open_checkpoint(path)
    if starter.is_starter(path):
        texts = {DEFAULT: starter.CHAT_TEMPLATE}
        checkpoint.templates = replace(checkpoint.templates, texts=texts, where="llama-chat")
    return checkpoint


def _advice(path: Path) -> str:
    """Return the next step for a path that is no model by itself."""
    with suppress(OSError):
        if not path.is_dir() and identify(path.absolute().parent) is not None:
            return "give the folder that it is in"
    known = "a folder of Meta, Mistral or the Hugging Face Hub, a .gguf file, or a .bin of llama2.c"
    return f"give {known}"


def open_tokenizer(path: Path) -> tuple[Tokenizer, TemplateSource]:
    """Open the tokenizer at ``path``, and the chat templates of the model that it belongs to.

    ``path`` is a model, a ``tokenizer.model`` or ``tokenizer.json``, or a folder that holds one.

    Raises:
        ModelError: if there is no tokenizer or it cannot be read.
    """
    with gate(label(path)):
        if path.name == TEKKEN and path.is_file():
            return make_tokenizer(read_tekken(path)), TemplateSource()
        if ".model" in path.suffixes and not path.is_dir() and path.exists():
            return make_tokenizer(read_model_file(path)), TemplateSource(
                is_meta=path.suffix == ".model"
            )
        if path.suffix == ".json" and not path.is_dir() and path.exists():
            return make_tokenizer(read_json(path)), TemplateSource()
        names = [entry.name for entry in path.iterdir()] if path.is_dir() else []
        is_model = identify_folder(names) is not None
        if not is_model and not {"tokenizer.model", "tokenizer.json"}.isdisjoint(names):
            templates = find_templates(path, read_tokenizer_config(path), (path.name,))
            return make_tokenizer(read_vocabulary(path)), templates
    checkpoint = open_checkpoint(path)
    return load_tokenizer(checkpoint), checkpoint.templates


def load_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """Make the tokenizer of a checkpoint.

    Raises:
        ModelError: if it cannot be read, or has more text tokens than the model.
    """
    with gate(f"tokenizer of {checkpoint.name!r}"):
        vocabulary = checkpoint.read_vocabulary()
        return make_tokenizer(vocabulary.limited(checkpoint.config.vocab_size))


def make_tokenizer(vocabulary: Vocabulary) -> Tokenizer:
    """Make the tokenizer of a vocabulary.

    Raises:
        ModelError: if its tables contradict each other, or lack tokens for single bytes.
    """
    with gate(vocabulary.what, DAMAGED):
        match vocabulary.model:
            case PieceModel() as model:
                return SentencePieceTokenizer(vocabulary, model)
            case MergeModel() as model:
                return LibraryTokenizer(vocabulary, model)
