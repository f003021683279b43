"""Checkpoints and tokenizers, opened by path with the reader of their format."""

from dataclasses import replace
from importlib import import_module
from pathlib import Path

from llama_chat.checkpoints.base import (
    BytePairSource,
    Checkpoint,
    SentencePieceSource,
    SentencePieceTables,
    TokenizerJsonSource,
    TokenizerSource,
)
from llama_chat.checkpoints.small_files import decoding
from llama_chat.checkpoints.template_source import DEFAULT, TemplateSource
from llama_chat.errors import ModelError, reason
from llama_chat.library import starter
from llama_chat.library.layouts import identify, identify_folder
from llama_chat.tokenizers.base import Tokenizer
from llama_chat.tokenizers.bpe import BytePairTokenizer
from llama_chat.tokenizers.sentencepiece import SentencePieceTokenizer
from llama_chat.tokenizers.sentencepiece_tables import serialize_model
from llama_chat.tokenizers.tokenizer_json import JsonTokenizer


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a checkpoint of any known format, reading its headers only.

    Raises:
        ModelError: if it is missing, of no known format, or damaged.
    """
    what = f"model {str(path)!r}"
    try:
        found = identify(path)
    except FileNotFoundError:
        raise ModelError(what, "no such file or folder", "check --model") from None
    except (OSError, ValueError) as error:
        raise ModelError(what, reason(error), "check it") from None
    if found is None:
        raise ModelError(
            what,
            "not a model of a known format",
            "give a folder of Meta or the Hugging Face Hub, a .gguf file, or a .bin of llama2.c",
        )
    reader = import_module(f"llama_chat.checkpoints.{found.reader}")
    with decoding(what):
        checkpoint: Checkpoint = reader.open_checkpoint(path)
    if starter.is_starter(path):
        texts = {DEFAULT: starter.CHAT_TEMPLATE}
        checkpoint.templates = replace(checkpoint.templates, texts=texts, where="llama-chat")
    return checkpoint


def open_tokenizer(path: Path) -> tuple[Tokenizer, TemplateSource]:
    """Open the tokenizer at ``path``, and the chat templates of the model that it belongs to.

    ``path`` is a model, a ``tokenizer.model`` or ``tokenizer.json``, or a folder that holds one.

    Raises:
        ModelError: if there is no tokenizer or it cannot be read.
    """
    with decoding(f"model {str(path)!r}"):
        files = [path]
        if path.is_dir():
            names = [entry.name for entry in path.iterdir()]
            is_model = identify_folder(names) is not None
            files = [] if is_model else [path / "tokenizer.model", path / "tokenizer.json"]
        for file in files:
            if file.suffix == ".model" and file.exists():
                return SentencePieceTokenizer(file), TemplateSource(is_meta=True)
            if file.suffix == ".json" and file.exists():
                return JsonTokenizer(file), TemplateSource()
    checkpoint = open_checkpoint(path)
    return load_tokenizer(checkpoint), checkpoint.templates


def load_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """Make the tokenizer of a checkpoint.

    Raises:
        ModelError: if it cannot be read, or holds more tokens than the model.
    """
    with decoding(f"tokenizer of {checkpoint.name!r}"):
        tokenizer = _make_tokenizer(checkpoint.tokenizer_source)
    if tokenizer.vocab_size > checkpoint.config.vocab_size:
        raise ModelError(
            f"tokenizer of {checkpoint.name!r}",
            f"it has {tokenizer.vocab_size} tokens and the model {checkpoint.config.vocab_size}",
            "use the tokenizer that came with the model",
        )
    return tokenizer


def _make_tokenizer(source: TokenizerSource) -> Tokenizer:
    match source:
        case SentencePieceSource():
            return SentencePieceTokenizer(source.path)
        case SentencePieceTables():
            model = serialize_model(
                tokens=source.tokens,
                scores=source.scores,
                types=source.types,
                bos_id=source.bos_id,
                eos_id=source.eos_id,
                add_dummy_prefix=source.add_dummy_prefix,
            )
            return SentencePieceTokenizer(model, add_bos=source.add_bos)
        case TokenizerJsonSource():
            return JsonTokenizer(
                source.path,
                bos_token=source.bos_token,
                eos_token=source.eos_token,
                add_bos=source.add_bos,
            )
        case BytePairSource():
            return BytePairTokenizer(
                tokens=source.tokens,
                merges=source.merges,
                control_ids=source.control_ids,
                added_ids=source.added_ids,
                pre_tokenizer=source.pre_tokenizer,
                bos_id=source.bos_id,
                eos_id=source.eos_id,
                add_bos=source.add_bos,
            )
