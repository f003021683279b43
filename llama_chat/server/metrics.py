"""Counts and sizes in the text format of Prometheus."""

from collections.abc import Mapping
from dataclasses import asdict

from llama_chat.server.worker import Counts


def metrics_text(counts: Counts, sizes: Mapping[str, int], n_jobs: int) -> str:
    """Return the metrics, a line each, with their types.

    https://prometheus.io/docs/instrumenting/exposition_formats/
    """
    lines = []
    for name, value in asdict(counts).items():
        lines += [f"# TYPE llama_chat_{name}_total counter", f"llama_chat_{name}_total {value}"]
    for name, value in {**sizes, "open_requests": n_jobs}.items():
        lines += [f"# TYPE llama_chat_{name} gauge", f"llama_chat_{name} {value}"]
    return "\n".join(lines) + "\n"
