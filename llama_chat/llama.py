"""Joining the parts: from a path on disk to a model that answers."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from llama_chat.chat.conversation import Conversation
from llama_chat.chat.prompt_files import Example
from llama_chat.chat.session import ChatSession
from llama_chat.chat.templates import ChatTemplate, choose_template
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
from llama_chat.errors import ModelError, UsageError
from llama_chat.generation.engine import Engine
from llama_chat.generation.events import Event, Watch
from llama_chat.generation.sampling import Sampler, Sampling
from llama_chat.memory import available_memory
from llama_chat.model.transformer import Transformer
from llama_chat.tokenizers.base import Tokenizer
from llama_chat.tokenizers.bpe import BytePairTokenizer
from llama_chat.tokenizers.sentencepiece import SentencePieceTokenizer
from llama_chat.tokenizers.sentencepiece_tables import serialize_model
from llama_chat.tokenizers.tokenizer_json import JsonTokenizer
from llama_chat.weights import check_fit, choose_form, read_weights

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
KV_DTYPES = {"auto": None, "int8": torch.int8}


class Llama:
    """A loaded model."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        model: Transformer,
        tokenizer: Tokenizer,
        threads: int | None = None,
    ) -> None:
        self.checkpoint = checkpoint
        self.model = model
        self.tokenizer = tokenizer
        self._threads = threads
        self.use_threads()
        self._engine = self.engine()

    @property
    def name(self) -> str:
        """What to call it on screen."""
        return self.checkpoint.name

    @property
    def context(self) -> int:
        """How many tokens fit."""
        return self.model.config.context_length

    def use_threads(self) -> None:
        """Let torch compute in as many threads as were asked for.

        OpenMP keeps that number for each thread that calls it: a thread other than the one that
        loaded the model calls this first.
        """
        if self._threads is not None:
            torch.set_num_threads(self._threads)

    def logits(self, ids: Sequence[int]) -> Tensor:
        """Logits behind every position of ``ids``, ``(len(ids), vocab_size)`` in float32."""
        return self._engine.logits(ids)

    def prompt_ids(self, text: str) -> list[int]:
        """The ids of a raw prompt: BOS where the model was trained with it, then ``text``."""
        bos = self.tokenizer.bos_id
        ids = self.tokenizer.encode(text)
        return [bos, *ids] if bos is not None and (self.tokenizer.add_bos or not ids) else ids

    def generate(
        self,
        ids: Sequence[int],
        sampling: Sampling | None = None,
        *,
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
        lookup: bool = True,
        watch: Watch | None = None,
    ) -> Iterator[Event]:
        """Continue ``ids``; see ``Engine.generate``. Shared beginnings are read once."""
        empty = len(ids) == 1 and ids[0] == self.tokenizer.bos_id
        return self._engine.generate(
            ids,
            Sampler(sampling or Sampling()),
            max_tokens=max_tokens,
            stop=stop,
            leading="dummy" if empty else "keep",
            lookup=lookup,
            watch=watch,
        )

    def template(self, name: str = "auto") -> ChatTemplate:
        """The chat template ``name``, or the one the checkpoint means; see ``choose_template``."""
        return choose_template(name, self.checkpoint.chat_template, self.tokenizer)

    def engine(self) -> Engine:
        """A new engine on this model, with a cache of its own."""
        return Engine(self.model, self.tokenizer)

    def chat(
        self,
        system: str = "",
        sampling: Sampling | None = None,
        *,
        examples: Sequence[Example] = (),
        conversation: Conversation | None = None,
        template: str = "auto",
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
        drop_oldest: bool = True,
        lookup: bool = True,
        notify: Callable[[str], None] | None = None,
    ) -> ChatSession:
        """Begin a conversation, or go on with one, with a cache of its own; see ``ChatSession``."""
        return ChatSession(
            self.engine(),
            self.template(template),
            sampling,
            conversation=conversation or Conversation(system, examples),
            max_tokens=max_tokens,
            stop=stop,
            drop_oldest=drop_oldest,
            lookup=lookup,
            notify=notify,
        )


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


def load(
    path: str | os.PathLike[str],
    device: str = "auto",
    dtype: str = "auto",
    quantize: str | None = None,
    context: int | None = None,
    *,
    kv_dtype: str = "auto",
    threads: int | None = None,
    report: Callable[[int, int], None] | None = None,
) -> Llama:
    """Load a model.

    Args:
        path: a folder of Meta's or of the Hugging Face Hub, a GGUF file, or one of llama2.c.
        device: ``auto``, ``cpu``, ``cuda``, ``mps``, or several with commas, to split the layers.
        dtype: ``auto``, ``float32``, ``bfloat16`` or ``float16``.
        quantize: ``auto`` (which None is), ``none`` (floats, however the file is stored),
            ``stored`` (packed as the file is), ``int8`` or ``int4`` (packed anew).
        context: context length in tokens, at most the model's.
        kv_dtype: of the cache: ``auto`` (that of ``dtype``) or ``int8``.
        threads: CPU threads for all of torch; None leaves one per core.
        report: told the bytes read, of how many.

    Raises:
        ModelError: if the model or its tokenizer cannot be loaded.
        UsageError: if an argument does not fit the model or this machine.
    """
    devices = pick_devices(device)
    checkpoint = open_checkpoint(Path(path))
    tokenizer = load_tokenizer(checkpoint)
    config = checkpoint.config
    if context is not None:
        if context > config.longest_context:
            raise UsageError(
                f"--context {context}",
                f"the model was made for {config.longest_context} tokens",
                "give that or less",
            )
        config = replace(config, context_length=context)
    if threads is not None:
        torch.set_num_threads(threads)
    weights_dtype = pick_dtype(dtype, checkpoint.dtype, devices[0])
    with torch.device("meta"):
        model = Transformer(config)
    free = free_memory(devices)
    form = choose_form(quantize or "auto", checkpoint, weights_dtype, free, devices[0])
    model.kv_dtype = KV_DTYPES[kv_dtype]
    check_fit(form, checkpoint, weights_dtype, free, context, model.kv_dtype)
    model.load_weights(read_weights(checkpoint, form, weights_dtype, devices, report))
    model.eval()
    return Llama(checkpoint, model, tokenizer, threads)


def pick_devices(wanted: str) -> list[torch.device]:
    """Turn ``--device`` into devices that this machine has.

    Raises:
        UsageError: if it has not.
    """
    if wanted == "auto":
        if torch.cuda.is_available():
            return [torch.device("cuda", 0)]
        return [torch.device("mps" if torch.backends.mps.is_available() else "cpu")]
    return [_pick_device(name.strip()) for name in wanted.split(",")]


def free_memory(devices: Sequence[torch.device]) -> int:
    """Bytes free where the weights would lie: of GPUs their own, else those of the machine."""
    gpus = [device for device in devices if device.type == "cuda"]
    if not gpus:
        return available_memory()
    return sum(torch.cuda.mem_get_info(gpu)[0] for gpu in gpus)


def _pick_device(name: str) -> torch.device:
    what = f"--device {name[:40]!r}"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(what, "no such device", "give auto, cpu, cuda or mps") from None
    available = {
        "cpu": 1,
        "cuda": torch.cuda.device_count(),
        "mps": int(torch.backends.mps.is_available()),
    }.get(device.type, 0)
    if (device.index or 0) >= available:
        raise UsageError(what, "this machine has none", "give auto or cpu")
    return device


def pick_dtype(wanted: str, stored: torch.dtype | None, device: torch.device) -> torch.dtype:
    """Choose the type of the weights in memory.

    ``auto`` keeps float32 as it is stored; all else becomes bfloat16 where the device computes it
    fast, else float16 on a GPU and float32 on a CPU.

    Raises:
        UsageError: if the device cannot compute in ``wanted``.
    """
    if device.type == "cuda":
        bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "cpu":
        # The processor computes it either way; without the instructions it takes much longer.
        bfloat16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    else:
        bfloat16 = True
    if wanted != "auto":
        if wanted == "bfloat16" and not bfloat16 and device.type == "cuda":
            raise UsageError("--dtype bfloat16", "this GPU has none", "give float16")
        return DTYPES[wanted]
    if stored == torch.float32:
        return stored
    if bfloat16:
        return torch.bfloat16
    return torch.float32 if device.type == "cpu" else torch.float16
