"""transformers: ``python -m benchmarks.runners.transformers MODEL CONTEXT THREADS``."""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, DynamicCache

from benchmarks.runners.serving import serve


class Transformers:
    """A model of transformers in bfloat16, a GGUF file unpacked."""

    def __init__(self, path: str, threads: int) -> None:
        torch.set_num_threads(threads)
        file = Path(path)
        folder, name = (file, None) if file.is_dir() else (file.parent, file.name)
        self.model = AutoModelForCausalLM.from_pretrained(
            folder, gguf_file=name, dtype=torch.bfloat16
        )
        self.vocab_size = self.model.config.vocab_size
        self.cache = DynamicCache()

    @torch.inference_mode()
    def read(self, ids: Sequence[int]) -> None:
        """Read ``ids`` behind the rest."""
        self.model(torch.tensor([ids]), past_key_values=self.cache, logits_to_keep=1)

    def truncate(self, length: int) -> None:
        """Forget what lies beyond ``length``."""
        if length:
            self.cache.crop(length)
        else:
            self.cache = DynamicCache()


if __name__ == "__main__":
    serve(Transformers(sys.argv[1], int(sys.argv[3])))
