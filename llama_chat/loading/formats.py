"""The readers of model files: from a path to a checkpoint, and to its tokenizer."""

from pathlib import Path

from llama_chat.checkpoints.base import (
    BytePairSource,
    Checkpoint,
    SentencePieceSource,
    SentencePieceTables,
    TokenizerJsonSource,
    TokenizerSource,
)
from llama_chat.checkpoints.gguf import GGUFCheckpoint, is_gguf
from llama_chat.checkpoints.huggingface import HuggingFaceCheckpoint, is_huggingface
from llama_chat.checkpoints.llama2c import Llama2cCheckpoint, is_llama2c
from llama_chat.checkpoints.meta import MetaCheckpoint, is_meta
from llama_chat.errors import ModelError
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
        exists, folder = path.exists(), path.is_dir()
    except (OSError, ValueError) as error:
        raise ModelError(what, f"cannot be looked at ({error})", "check the path") from None
    if not exists:
        raise ModelError(what, "no such file or folder", "check --model")
    if folder and is_huggingface(path):
        return HuggingFaceCheckpoint.open(path)
    if folder and is_meta(path):
        return MetaCheckpoint.open(path)
    if not folder and is_gguf(path):
        return GGUFCheckpoint.open(path)
    if not folder and is_llama2c(path):
        return Llama2cCheckpoint.open(path)
    known = "give a folder of Meta's or of the Hugging Face Hub, a .gguf file or a .bin of llama2.c"
    raise ModelError(what, "not a model of a known format", known)


def open_tokenizer(path: Path) -> tuple[Tokenizer, str | None]:
    """The tokenizer at ``path`` and the chat template text beside it, without the weights.

    ``path`` is a model, a ``tokenizer.model`` or ``tokenizer.json``, or a folder that holds one.

    Raises:
        ModelError: if there is no tokenizer or it cannot be read.
    """
    files = [path]
    if path.is_dir():
        is_model = is_meta(path) or is_huggingface(path)
        files = [] if is_model else [path / "tokenizer.model", path / "tokenizer.json"]
    for file in files:
        if file.suffix == ".model" and file.is_file():
            return SentencePieceTokenizer(file), None
        if file.suffix == ".json" and file.is_file():
            return JsonTokenizer(file), None
    checkpoint = open_checkpoint(path)
    return load_tokenizer(checkpoint), checkpoint.chat_template


def load_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """Make the tokenizer of a checkpoint.

    Raises:
        ModelError: if it cannot be read, or holds more tokens than the model.
    """
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
