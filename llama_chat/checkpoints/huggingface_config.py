"""The config of a model from the ``config.json`` of the Hugging Face Hub.

Missing values have the defaults of transformers.
"""

from collections.abc import Mapping
from pathlib import Path

from llama_chat.checkpoints.base import n_rows, within_window
from llama_chat.checkpoints.foreign import OF_LLAMA, quantized
from llama_chat.checkpoints.small_files import JsonObject, read_object
from llama_chat.model.config import LlamaConfig
from llama_chat.model.rope import DynamicScaling, LinearScaling, Llama3Scaling, RopeScaling

_FAMILY = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM"}

_QUANTIZED = {"quantization": "MLX", "quantization_config": "an unnamed method"}
"""Keys of models with weights that another program quantized, and the method if it is not named."""

_MISTRAL_WINDOW = 4096
"""Default attention window of Mistral models; those without a window have null."""


def read_config(folder: Path) -> JsonObject:
    """Read the ``config.json`` in ``folder``, refusing models that are not supported.

    Raises:
        ModelError: if it cannot be read, or the model has an unsupported feature.
    """
    config = read_object(folder / "config.json", "it belongs beside the weights: download it")
    architecture = _architecture(config)
    if architecture not in _FAMILY:
        raise config.error(f"its architecture is {architecture[:60]!r}", OF_LLAMA)
    for key, otherwise in _QUANTIZED.items():
        if config.values.get(key) is not None:
            method = config.object(key).text("quant_method")
            raise config.error(*quantized(repr(method[:60]) if method else otherwise))
    activation = config.text("hidden_act") or "silu"
    if activation != "silu":
        raise config.error(f"its activation is {activation[:60]!r}", "take a model with 'silu'")
    return config


def model_config(
    config: JsonObject, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[LlamaConfig, str]:
    """Translate ``config`` to a ``LlamaConfig``.

    Args:
        config: result of ``read_config``.
        shapes: shapes of the weights by Meta's names. An output matrix among them is used, even if
            ``tie_word_embeddings`` is true; and the rows of the embedding count, not
            ``vocab_size``.

    Returns:
        The config, and a warning, which may be empty.

    Raises:
        ModelError: if a number is missing or out of range.
    """
    dim, n_heads = config.size("hidden_size"), config.size("num_attention_heads")
    if config.values.get("head_dim") is None and dim % n_heads:
        raise config.error(f"hidden_size {dim} is no multiple of num_attention_heads {n_heads}")
    positions = config.size("max_position_embeddings", 2048)
    # Models fine-tuned for more tokens than their base give these separately.
    length = max(positions, config.size("max_sequence_length", positions))
    length, warning = within_window(length, _attention_window(config))
    ties = bool(config.flag("tie_word_embeddings")) and "output.weight" not in shapes
    try:
        theta, scaling = _rotary(config, positions)
        shape = LlamaConfig(
            dim=dim,
            n_layers=config.size("num_hidden_layers"),
            n_heads=n_heads,
            n_kv_heads=config.size("num_key_value_heads", n_heads),
            head_dim=config.size("head_dim", dim // n_heads),
            hidden_dim=config.size("intermediate_size"),
            vocab_size=n_rows(shapes, config.size("vocab_size", 1)),
            norm_eps=config.number("rms_norm_eps", 1e-6),
            rope_theta=theta,
            context_length=length,
            tie_embeddings=ties,
            rope_scaling=scaling,
        )
    except ValueError as error:
        raise config.error(str(error)) from None
    return shape, warning


def _attention_window(config: JsonObject) -> int | None:
    """Return the number of last tokens that a token attends to, itself included; None for all."""
    if _architecture(config) != "mistral":
        return None
    window = config.values.get("sliding_window", _MISTRAL_WINDOW)
    return None if window is None else config.size("sliding_window", _MISTRAL_WINDOW)


def _architecture(config: JsonObject) -> str:
    """Return a key of ``_FAMILY``, or the name of an unsupported architecture."""
    if kind := config.text("model_type"):
        return kind
    names = config.values.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    if not isinstance(name, str):
        raise config.error("it does not name its architecture")
    return next((kind for kind, called in _FAMILY.items() if called == name), name)


def _rotary(config: JsonObject, positions: int) -> tuple[float, RopeScaling | None]:
    """Read base and scaling; transformers 5 writes both into ``rope_parameters``."""
    older = config.values.get("rope_scaling")
    rope = config.object("rope_scaling" if older else "rope_parameters")
    theta = rope.number("rope_theta", config.number("rope_theta", 10_000.0))
    if any(isinstance(value, dict) for value in rope.values.values()):
        raise config.error("its rotary embedding differs between layers", "take another model")
    if rope.number("partial_rotary_factor", config.number("partial_rotary_factor", 1.0)) != 1:
        raise config.error("only a part of each head is rotated", "take another model")
    kind = rope.text("rope_type") or rope.text("type") or "default"
    if kind == "default":
        return theta, None
    if kind == "linear":
        return theta, LinearScaling(rope.number("factor"))
    if kind == "dynamic":
        return theta, DynamicScaling(rope.number("factor"), positions)
    if kind == "llama3":
        original = config.size("original_max_position_embeddings", positions)
        return theta, Llama3Scaling(
            factor=rope.number("factor"),
            low_freq_factor=rope.number("low_freq_factor"),
            high_freq_factor=rope.number("high_freq_factor"),
            original_context=rope.size("original_max_position_embeddings", original),
        )
    raise config.error(
        f"its rotary scaling is {kind[:60]!r}", "take a model with 'linear', 'dynamic' or 'llama3'"
    )
