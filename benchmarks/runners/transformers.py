"""transformers: ``python -m benchmarks.runners.transformers MODEL CONTEXT THREADS OPTIONS``."""

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, DynamicCache

from benchmarks.runners.serving import serve


class Transformers:
    """A model of transformers, a GGUF file unpacked; its context needs no room set aside."""

    def __init__(self, path: str, _context: int, threads: int, dtype: str = "bfloat16") -> None:
        torch.set_num_threads(threads)
        file = Path(path)
        folder, name = (file, None) if file.is_dir() else (file.parent, file.name)
        self.model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=dtype)
        self.vocab_size = self.model.config.vocab_size
        self.cache = DynamicCache()

    @torch.inference_mode()
    def read(self, ids: Sequence[int]) -> None:
        """Read ``ids`` behind the rest."""
        self.model(torch.tensor([ids]), past_key_values=self.cache, logits_to_keep=1)

    @torch.inference_mode()
    def logits(self, ids: Sequence[int]) -> bytes:
        """Read ``ids`` behind the rest, for the logits behind each."""
        out = self.model(torch.tensor([ids]), past_key_values=self.cache)
        return bytes(out.logits[0].float().numpy().tobytes())

    def truncate(self, length: int) -> None:
        """Forget what lies beyond ``length``."""
        if length:
            self.cache.crop(length)
        else:
            self.cache = DynamicCache()


if __name__ == "__main__":
    serve(Transformers)
