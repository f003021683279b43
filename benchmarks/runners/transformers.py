"""transformers: ``python -m benchmarks.runners.transformers MODEL CONTEXT THREADS OPTIONS``."""

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, DynamicCache

from benchmarks.runners.serving import serve


class Transformers:
    """A model of transformers, a GGUF file unpacked; its cache grows as needed."""

    def __init__(self, path: str, _context: int, threads: int, dtype: str = "bfloat16") -> None:
        torch.set_num_threads(threads)
        file = Path(path)
        folder, name = (file, None) if file.is_dir() else (file.parent, file.name)
        self.model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=dtype)
        self.vocab_size = self.model.config.vocab_size
        self.cache = DynamicCache()

    @torch.inference_mode()
    def read(self, ids: Sequence[int]) -> None:
        """Evaluate ``ids`` after the cached tokens."""
        self.model(torch.tensor([ids]), past_key_values=self.cache, logits_to_keep=1)

    @torch.inference_mode()
    def logits(self, ids: Sequence[int]) -> bytes:
        """Evaluate ``ids`` after the cached tokens, and return the logits of each."""
        out = self.model(torch.tensor([ids]), past_key_values=self.cache)
        return bytes(out.logits[0].float().numpy().tobytes())

    def truncate(self, length: int) -> None:
        """Trim the cache to ``length`` tokens."""
        if length:
            self.cache.crop(length)
        else:
            self.cache = DynamicCache()


if __name__ == "__main__":
    serve(Transformers)
