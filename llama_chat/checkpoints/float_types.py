"""Float types of stored weights: their names in GGUF and safetensors, and in torch."""

FLOATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
