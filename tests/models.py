"""Random models, and the same weights in transformers, which takes a second to import."""

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from llama_chat.generation.backend import TorchBackend
from llama_chat.generation.native import NativeBackend
from llama_chat.model.config import LlamaConfig
from llama_chat.model.rope import DynamicScaling, LinearScaling, Llama3Scaling
from llama_chat.model.transformer import Transformer
from llama_chat.quantization.linear import place_parts
from llama_chat.quantization.quantize import quantize_in_parts

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

TINY = LlamaConfig(
    dim=64,
    n_layers=3,
    n_heads=8,
    n_kv_heads=4,
    head_dim=8,
    hidden_dim=96,
    vocab_size=320,
    context_length=512,
)


def random_model(config: LlamaConfig = TINY, seed: int = 0) -> Transformer:
    """Make a model with random weights, scaled so that activations do not vanish."""
    generator = torch.Generator().manual_seed(seed)
    model = Transformer(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.copy_(1 + 0.1 * torch.randn(weight.shape, generator=generator))
            else:
                scale = weight.shape[-1] ** -0.5
                weight.copy_(scale * torch.randn(weight.shape, generator=generator))
    return model.requires_grad_(False).eval()


def half_split(weight: torch.Tensor, n_heads: int) -> torch.Tensor:
    """Reorder the rows of a Q or K projection from Meta's interleaved pairs to two halves."""
    pairs = weight.view(n_heads, -1, 2, weight.shape[-1])  # (n_heads, head_dim / 2, 2, dim)
    return pairs.transpose(1, 2).reshape(weight.shape)


def _rope_parameters(config: LlamaConfig) -> dict[str, object]:
    match config.rope_scaling:
        case None:
            return {"rope_type": "default"}
        case LinearScaling(factor):
            return {"rope_type": "linear", "factor": factor}
        case Llama3Scaling(factor, low, high, original):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": original,
            }
        case DynamicScaling(factor):
            return {"rope_type": "dynamic", "factor": factor}
        case other:
            raise AssertionError(other)


def to_hugging_face(model: Transformer) -> "LlamaForCausalLM":
    """Make the same model for transformers, in float32."""
    from transformers import LlamaConfig as HuggingFaceConfig
    from transformers import LlamaForCausalLM
    from transformers.initialization import no_init_weights

    config = model.config
    scaling = config.rope_scaling
    their_config = HuggingFaceConfig(
        hidden_size=config.dim,
        intermediate_size=config.hidden_dim,
        num_hidden_layers=config.n_layers,
        num_attention_heads=config.n_heads,
        num_key_value_heads=config.n_kv_heads,
        head_dim=config.head_dim,
        vocab_size=config.vocab_size,
        rms_norm_eps=config.norm_eps,
        rope_parameters={**_rope_parameters(config), "rope_theta": config.rope_theta},
        max_position_embeddings=(
            scaling.original_context
            if isinstance(scaling, DynamicScaling)
            else config.context_length
        ),
        tie_word_embeddings=config.tie_embeddings,
    )
    with no_init_weights():  # all of them are loaded
        reference = LlamaForCausalLM(their_config)
    reference.tie_weights()  # a part of the initialization that is skipped
    names = {
        "attention.wo": "self_attn.o_proj",
        "attention.wv": "self_attn.v_proj",
        "feed_forward.w1": "mlp.gate_proj",
        "feed_forward.w2": "mlp.down_proj",
        "feed_forward.w3": "mlp.up_proj",
        "attention_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
    }
    state: dict[str, torch.Tensor] = {
        "model.embed_tokens.weight": model.tok_embeddings.weight,
        "model.norm.weight": model.norm.weight,
        "lm_head.weight": (model.tok_embeddings if config.tie_embeddings else model.output).weight,
    }
    weights = dict(model.named_parameters())
    for i in range(config.n_layers):
        ours, theirs = f"layers.{i}", f"model.layers.{i}"
        for name, other in names.items():
            state[f"{theirs}.{other}.weight"] = weights[f"{ours}.{name}.weight"]
        state[f"{theirs}.self_attn.q_proj.weight"] = half_split(
            weights[f"{ours}.attention.wq.weight"], config.n_heads
        )
        state[f"{theirs}.self_attn.k_proj.weight"] = half_split(
            weights[f"{ours}.attention.wk.weight"], config.n_kv_heads
        )
    reference.load_state_dict({name: weight.float() for name, weight in state.items()})
    return reference.float().eval()


def packed_model(
    config: LlamaConfig, bits: tuple[int, int], dtype: torch.dtype, context: int = 2048
) -> Transformer:
    """Make a random model of packed matrices, with ``bits[1]`` in V and W2, else ``bits[0]``."""
    model = random_model(replace(config, context_length=context))
    weights: dict[str, object] = {}
    for name, weight in model.named_parameters():
        usual = 0 if ".wv" not in name and ".w2" not in name else 1
        packable = weight.dim() == 2 and weight.shape[1] % 32 == 0
        if packable:
            parts = quantize_in_parts(weight, bits[usual])  # type: ignore[arg-type]
            weights[name] = place_parts(parts, len(weight), weight.device)
        else:
            weights[name] = weight.to(dtype)
    model.load_weights(weights)  # type: ignore[arg-type]
    return model


def native_backend(model: Transformer, level: str | None = None) -> NativeBackend:
    """Make a backend of the kernels, with those of one instruction set if given."""
    backend = NativeBackend.create(model)
    assert backend is not None
    if level is not None:
        backend.kernels.level = level
    return backend


def logits_of(model: Transformer, ids: list[int]) -> torch.Tensor:
    """Compute logits at every position of ``ids`` in torch, ``(len(ids), vocab_size)``."""
    backend = TorchBackend(model)
    return backend.forward(ids, backend.new_cache(), all_logits=True)


@torch.inference_mode()
def reference_logits(reference: "LlamaForCausalLM", ids: list[int]) -> torch.Tensor:
    """Compute logits at every position with transformers, ``(len(ids), vocab_size)``."""
    logits: torch.Tensor = reference(torch.tensor([ids])).logits[0]
    return logits
