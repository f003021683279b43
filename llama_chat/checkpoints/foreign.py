"""Models that are recognised and not read: what they are, and what would work.

They are told by the first bytes of a file, the files in a folder, or the names of tensors.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from llama_chat.errors import ModelError
from llama_chat.files import open_regular
from llama_chat.library.layouts import identify_folder


class Foreign(NamedTuple):
    """A kind of model: what is said about it, and what would work."""

    why: str
    advice: str


ADAPTER = Foreign(
    "it is an adapter, which changes another model",
    "merge it into that model (merge_and_unload of peft), and give the result",
)
EXPERTS = Foreign("it is a mixture of experts", "take a dense model")
OF_LLAMA = "take a model of the llama family"

_BY_HEAD = {
    (b"lmgg", b"fmgg", b"tjgg"): Foreign(
        "it is a GGML file, the format before GGUF", "take the same model as GGUF"
    ),
    (b"algg",): ADAPTER,
}
"""First bytes of files."""

_BY_FILE = {
    "adapter_config.json": ADAPTER,
    "adapter_model.safetensors": ADAPTER,
    "adapter_model.bin": ADAPTER,
    "lora.safetensors": ADAPTER,
}
"""Names of files, each given by itself or in a folder without a whole model."""


def quantized(method: str) -> Foreign:
    """Describe a model whose weights are quantized in the way of another program."""
    return Foreign(f"its weights are quantized by {method}", "take a GGUF file of the same model")


_BY_TENSOR = {
    r"\.lora_\w+": ADAPTER,
    r"\.(qweight|qzeros|g_idx)$": quantized("GPTQ or AWQ"),
    r"\.(SCB|absmax|quant_map|weight_format|nested_\w+)$|\.quant_state\.": quantized(
        "bitsandbytes"
    ),
    r"_scale(_inv)?$|\.(weight_packed|weight_shape|qscale_\w+)$": quantized("FP8 or the like"),
    r"\.(scales|biases)$": quantized("MLX"),
    r"\.ffn_\w+?(_exps|_shexp|_inp|\.\d+)\.|\.(block_sparse_moe|experts|router)\.": EXPERTS,
    r"\.bias$": Foreign("it has biases, which Llama 2 has not", "take a model without"),
}
"""Parts of the names of tensors; the first that one of them has tells the kind."""


def foreign_at(path: Path) -> Foreign | None:
    """Tell the kind of a file or folder; None if it is not known, or a whole model.

    Raises:
        OSError: if it cannot be read.
    """
    if path.is_dir():
        names = [entry.name for entry in path.iterdir()]
        found = identify_folder(names)
        whole = found is not None and found[1].is_complete
        return None if whole else next((_BY_FILE[n] for n in names if n in _BY_FILE), None)
    with open_regular(path) as file:
        head = file.read(4)
    known = (kind for heads, kind in _BY_HEAD.items() if head in heads)
    return next(known, _BY_FILE.get(path.name))


def foreign_tensors(what: str, names: Iterable[str]) -> ModelError | None:
    """Return the error for a model with tensors of a known kind; None if none is."""
    names = list(names)
    for pattern, (why, advice) in _BY_TENSOR.items():
        for name in names:
            if re.search(pattern, name):
                return ModelError(what, f"{why}, as in tensor {name[:80]!r}", advice)
    return None
