"""Whole models on two, four and eight ranks, compared with one process.

    python -m harness.campaigns.rank_models [SIZE…]

The stories models and the starter model, as floats and packed: logits, conversations, and eight
sequences at once. Packed weights are computed in torch, where only the order of sums changes the
rounding; then by the kernels, which quantize activations to 8 bits and are only reported.
"""

import os
import sys
import tempfile
from pathlib import Path

from llama_chat.library import starter
from tests.test_ranks import TOLERANCE, case_of, compare

TIMEOUT_S = 3600.0


def main(arguments: list[str]) -> int:
    """Compare; returns 1 if a result differs."""
    stories = Path(os.environ.get("LLAMA_CHAT_TEST_DATA", "../shared")).resolve() / "models"
    small = starter.pull(starter.DEFAULT, lambda done, total: None)
    cases = [
        case_of(stories / "stories260K", talks=2),
        case_of(stories / "stories260K-mp2", talks=2),
        *(
            case_of(small, quantize, talks=int(quantize == "stored"), dtype="float32")
            for quantize in ("none", "stored", "int8", "int4")
        ),
    ]
    status = 0
    for size in map(int, arguments or ("2", "4", "8")):
        for kernel in ("torch", ""):
            with tempfile.TemporaryDirectory() as home:
                reports = compare(size, cases, Path(home), kernel, TIMEOUT_S)
            for case, found in zip(cases, reports, strict=True):
                pairs = [found.get("sessions", (0, 0)), found.get("batches", (0, 0))]
                is_equal = found["difference"] < TOLERANCE and all(a == b for a, b in pairs)
                status |= not is_equal and kernel == "torch"
                name, quantize = Path(case["path"]).name, case["quantize"]
                print(
                    f"{size} ranks, {kernel or 'kernels'}, {name} {quantize}: logits differ by "
                    f"{found['difference']:.1e} of their range; "
                    f"{'equal' if is_equal else 'not equal'}",
                    flush=True,
                )
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
