"""The config of a model from ``params.json``, of Meta or of Mistral."""

from collections.abc import Mapping
from pathlib import Path

from llama_chat.checkpoints.base import within_window
from llama_chat.checkpoints.foreign import ADAPTER, EXPERTS, OF_LLAMA, Foreign, quantized
from llama_chat.checkpoints.small_files import JsonObject, read_object
from llama_chat.model.config import LlamaConfig
from llama_chat.model.rope import Llama3Scaling

_IMAGES = Foreign("it reads images too", "take a model of text alone")
_QUANTIZED = quantized("another program")

_FOREIGN = {
    "moe": EXPERTS,
    "moe_args": EXPERTS,
    "vision_encoder": _IMAGES,
    "vision_model": _IMAGES,
    "vision_num_cross_attention_layers": _IMAGES,
    "quantization": _QUANTIZED,
    "quantization_args": _QUANTIZED,
    "lora": ADAPTER,
    "lora_args": ADAPTER,
    "yarn": Foreign("its rotary scaling is 'yarn'", "take a model without"),
}
"""Keys of models that are not read."""

_CONTEXT_LENGTHS = {1e6: 16_384, 500_000.0: 8192}
"""Context lengths of Code Llama and Llama 3, which are told by the least rotary base."""
_LLAMA_2_LENGTH = 4096
_SCALED_LENGTH, _SCALED_FROM = 131_072, 8192
"""Context length of Llama 3.1 and later, and that before their rotary scaling."""
_FACTORS = ("rope_scale_factor", "rope_scaling_factor")
"""Names of the factor of that scaling, the older one first; the releases do not state it."""
_SMALLEST_3_1 = 4096
"""Width of the smallest model of Llama 3.1; those of Llama 3.2 are narrower."""
_MISTRAL_LENGTH = 32_768


def read_params(folder: Path) -> JsonObject:
    """Read the ``params.json`` in ``folder``, refusing models that are not supported.

    Raises:
        ModelError: if it cannot be read, or the model has an unsupported feature.
    """
    params = read_object(folder / "params.json", "it belongs beside the weights: download it")
    if isinstance(params.values.get("model"), dict):  # as some of Llama 3 have it
        params = params.object("model")
    architecture = params.text("model_type") or "transformer"
    if architecture != "transformer":
        raise params.error(f"its architecture is {architecture[:60]!r}", OF_LLAMA)
    for key, kind in _FOREIGN.items():
        if params.values.get(key):
            raise params.error(f"{kind.why} ({key})", kind.advice)
    return params


def is_mistral(params: JsonObject) -> bool:
    """True for a file of Mistral, which states what Meta's code computes."""
    return "hidden_dim" in params.values


def is_scaled(params: JsonObject) -> bool:
    """True for Llama 3.1 and later, whose rotary embedding is scaled."""
    return params.flag("use_scaled_rope") is True


def head_dim(params: JsonObject) -> int:
    """Return the size of a head.

    Raises:
        ModelError: if a number is missing or out of range.
    """
    dim, n_heads = params.size("dim"), params.size("n_heads")
    if params.values.get("head_dim") is None and dim % n_heads:
        raise params.error(f"dim {dim} is no multiple of n_heads {n_heads}")
    return params.size("head_dim", dim // n_heads)


def model_config(
    params: JsonObject, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[LlamaConfig, str]:
    """Translate ``params`` to a ``LlamaConfig``.

    Args:
        params: result of ``read_params``.
        shapes: shapes of the weights. The rows of the embedding count, not ``vocab_size``.

    Returns:
        The config, and a warning, which may be empty.

    Raises:
        ModelError: if a number is missing or out of range.
    """
    if params.values.get("vocab_size") != -1:  # Llama 2 leaves it open
        params.size("vocab_size", 1)
    dim, n_heads = params.size("dim"), params.size("n_heads")
    window = _window(params)
    unset = 1e6 if is_mistral(params) and window is None else 10_000.0  # as in their codes
    theta = params.number("rope_theta", unset)
    usual = _MISTRAL_LENGTH if is_mistral(params) else _meta_length(params, theta)
    length = params.size("max_position_embeddings", params.size("max_seq_len", usual))
    length, warning = within_window(length, window)
    try:
        config = LlamaConfig(
            dim=dim,
            n_layers=params.size("n_layers"),
            n_heads=n_heads,
            n_kv_heads=params.size("n_kv_heads", n_heads),
            head_dim=head_dim(params),
            hidden_dim=_hidden_dim(params, dim),
            vocab_size=shapes["tok_embeddings.weight"][0],
            norm_eps=params.number("norm_eps", 1e-5),
            rope_theta=theta,
            context_length=length,
            tie_embeddings="output.weight" not in shapes,
            rope_scaling=_rope_scaling(params),
        )
    except ValueError as error:
        raise params.error(str(error)) from None
    return config, warning or _doubt(params, config)


def _doubt(params: JsonObject, config: LlamaConfig) -> str:
    """Return a warning about a number of ``params.json`` that may not be that of the release."""
    of_llama_2 = not is_mistral(params) and "n_kv_heads" not in params.values
    if config.norm_eps == 1e-6 and of_llama_2:
        return "params.json says norm_eps 1e-06; most of Llama 2 is 1e-05"
    unstated = params.values.keys().isdisjoint(_FACTORS)
    if is_scaled(params) and unstated and config.dim < _SMALLEST_3_1:
        return (
            "params.json gives no rope_scale_factor, and 8 is taken; in the small models of Llama "
            "3.2 it is 32"
        )
    return ""


def _window(params: JsonObject) -> int | None:
    """Return the attention window, the least of all layers; None if there is none."""
    value = params.values.get("sliding_window", params.values.get("_sliding_window"))
    stated = value if isinstance(value, list) else [value]
    sizes = [JsonObject(params.what, {"sliding_window": one}) for one in stated if one is not None]
    return min((size.size("sliding_window") for size in sizes), default=None)


def _meta_length(params: JsonObject, theta: float) -> int:
    """Return the context length of a release of Meta."""
    if is_scaled(params):
        return _SCALED_LENGTH
    known = (length for base, length in _CONTEXT_LENGTHS.items() if theta >= base)
    return next(known, _LLAMA_2_LENGTH)


def _rope_scaling(params: JsonObject) -> Llama3Scaling | None:
    if not is_scaled(params):
        return None
    older, newer = _FACTORS
    factor = params.number(newer, params.number(older, 8.0))
    return Llama3Scaling(factor, 1.0, params.number("rope_high_freq_factor", 4.0), _SCALED_FROM)


def _hidden_dim(params: JsonObject, dim: int) -> int:
    """Return the width of the feed-forward layer, computed as Meta's code does if not given."""
    if is_mistral(params):
        return params.size("hidden_dim")
    multiple_of = params.size("multiple_of", 256)
    hidden = int(params.number("ffn_dim_multiplier", 1.0) * int(2 * 4 * dim / 3))
    return -(-hidden // multiple_of) * multiple_of
