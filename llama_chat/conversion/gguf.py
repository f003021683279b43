"""Writer of GGUF files, through the gguf library."""

from collections.abc import Callable
from pathlib import Path

import gguf
from torch import Tensor

from llama_chat.checkpoints.base import Checkpoint
from llama_chat.checkpoints.float_types import FLOATS
from llama_chat.conversion import weights
from llama_chat.conversion.generation import add_ends, add_sampling
from llama_chat.conversion.vocabulary import gguf_losses, gguf_vocabulary
from llama_chat.errors import counted
from llama_chat.kernels import mapped_files
from llama_chat.model.config import LlamaConfig
from llama_chat.model.rope import (
    DynamicScaling,
    FrequencyDivisors,
    LinearScaling,
    Llama3Scaling,
    rotary_frequencies,
)
from llama_chat.tokenizers.vocabulary import PieceModel, Vocabulary

_ARCHITECTURE = "llama"
_ROPE_DIVISORS = "rope_freqs.weight"

_FILE_TYPES = {
    "F32": gguf.LlamaFileType.ALL_F32,
    "F16": gguf.LlamaFileType.MOSTLY_F16,
    "BF16": gguf.LlamaFileType.MOSTLY_BF16,
    "Q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
    "Q4_0": gguf.LlamaFileType.MOSTLY_Q4_0,
    "Q4_1": gguf.LlamaFileType.MOSTLY_Q4_1,
}


class GGUFFile:
    """A GGUF file, planned before it is written."""

    def __init__(self, checkpoint: Checkpoint, vocabulary: Vocabulary, kind: str) -> None:
        """Plan a file with matrices of the type ``kind``.

        Raises:
            ModelError: if GGUF cannot hold the vocabulary.
        """
        self._checkpoint = checkpoint
        shapes = checkpoint.config.tensor_shapes()
        self._kinds = {name: weights.fitting_type(shape, kind) for name, shape in shapes.items()}
        self.sizes = {name: weights.n_bytes(shapes[name], self._kinds[name]) for name in shapes}
        """Bytes of each weight."""
        self.warnings: list[str] = []
        matrices = [self._kinds[name] for name in shapes if len(shapes[name]) > 1]
        if n_unfit := sum(one != kind for one in matrices):
            share = f"{n_unfit} of {len(matrices)} matrices"
            self.warnings.append(f"as F16, since rows are no multiple of a block: {share}")
        self._writer = gguf.GGUFWriter(None, _ARCHITECTURE)
        self._writer.add_name(checkpoint.name)
        self._writer.add_file_type(_FILE_TYPES[kind])
        if kind not in FLOATS:
            self._writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        self._describe(checkpoint.config)
        self._describe_tokens(vocabulary.limited(checkpoint.config.vocab_size))

    def write(self, path: Path, report: Callable[[int, int], None]) -> None:
        """Write the file, one weight at a time.

        Args:
            path: the new file.
            report: called with the bytes written and their total.

        Raises:
            OSError: if it cannot be written.
            UsageError: if the type cannot represent the values of a weight.
        """
        writer, config = self._writer, self._checkpoint.config
        names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.n_layers)
        divisors = _divisors(config)
        if divisors is not None:
            writer.add_tensor_info(
                _ROPE_DIVISORS, divisors.shape, divisors.numpy().dtype, divisors.nbytes
            )
        for name, shape in config.tensor_shapes().items():
            kind = gguf.GGMLQuantizationType[self._kinds[name]]
            stored = names.get_name(name, try_suffixes=(".weight",))
            writer.add_tensor_info(stored, shape, float, self.sizes[name], kind)
        total, done = sum(self.sizes.values()), 0
        try:
            writer.write_header_to_file(path)
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            if divisors is not None:
                writer.write_tensor_data(divisors.numpy())
            for name, size in self.sizes.items():
                data = weights.read_bytes(self._checkpoint, name, self._kinds[name])
                writer.write_tensor_data(data)
                mapped_files.check()
                self._checkpoint.forget(name)
                done += size
                report(done, total)
        finally:
            writer.close()

    def _describe(self, config: LlamaConfig) -> None:
        writer, context = self._writer, config.context_length
        match config.rope_scaling:
            case LinearScaling(factor):
                writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
                writer.add_rope_scaling_factor(factor)
            case DynamicScaling(_, original):
                # Up to that length no scaling applies.
                context = min(context, original)
                self.warnings.append(
                    f"GGUF has no dynamic rotary scaling: "
                    f"the new model is one of {counted(context, 'token')}"
                )
        writer.add_context_length(context)
        writer.add_embedding_length(config.dim)
        writer.add_block_count(config.n_layers)
        writer.add_feed_forward_length(config.hidden_dim)
        writer.add_head_count(config.n_heads)
        writer.add_head_count_kv(config.n_kv_heads)
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
        writer.add_rope_dimension_count(config.head_dim)
        writer.add_rope_freq_base(config.rope_theta)
        writer.add_layer_norm_rms_eps(config.norm_eps)
        writer.add_vocab_size(config.vocab_size)

    def _describe_tokens(self, vocabulary: Vocabulary) -> None:
        writer = self._writer
        self.warnings += gguf_losses(vocabulary)
        vocabulary = vocabulary.padded(self._checkpoint.config.vocab_size)
        add_vocabulary(writer, vocabulary)
        self.warnings += add_ends(writer, self._checkpoint, vocabulary)
        self.warnings += add_sampling(writer, self._checkpoint.generation)
        if templates := self._checkpoint.templates.stored:
            writer.add_chat_template(templates)


def add_vocabulary(writer: gguf.GGUFWriter, vocabulary: Vocabulary) -> None:
    """Add a vocabulary to ``writer``.

    Raises:
        ModelError: if GGUF has no form for it.
    """
    vocabulary = gguf_vocabulary(vocabulary)
    model = vocabulary.model
    writer.add_tokenizer_model("llama" if isinstance(model, PieceModel) else "gpt2")
    writer.add_token_list(vocabulary.pieces)
    writer.add_token_types(vocabulary.types)
    if isinstance(model, PieceModel):
        writer.add_token_scores(model.scores)
        writer.add_add_space_prefix(vocabulary.prefix != "never")
    else:
        writer.add_tokenizer_pre(model.name)
        writer.add_token_merges([f"{left} {right}" for left, right in model.merges])
    if vocabulary.bos_id is not None:
        writer.add_bos_token_id(vocabulary.bos_id)
    if vocabulary.eos_id is not None:
        writer.add_eos_token_id(vocabulary.eos_id)
    writer.add_add_bos_token(vocabulary.add_bos)
    writer.add_add_eos_token(vocabulary.add_eos)


def _divisors(config: LlamaConfig) -> Tensor | None:
    """Return the divisor of each rotary frequency, ``(head_dim // 2,)``, if GGUF stores them."""
    if not isinstance(config.rope_scaling, Llama3Scaling | FrequencyDivisors):
        return None
    return rotary_frequencies(config.head_dim, config.rope_theta) / config.rope_frequencies()
