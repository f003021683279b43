"""Measure the cost of formatting Markdown, in microseconds for each token of a reply.

    python -m benchmarks.markdown [--tokens 20000]

For each kind of text it prints the mean time of a push, the 99th percentile, and the share of one
core that the mean takes at 100 tokens per second.
"""

import argparse
import re
import statistics
import time

from rich.color import ColorSystem

from llama_chat.terminal.markdown import MarkdownStream, Painter

TEXTS = {
    "prose": (
        "Entanglement means that two particles share **one** state: measuring the first tells what "
        "the *second* will show, however far away it is. No message travels between them, as the "
        "outcome of either is random by itself.\n\n"
    ),
    "plain prose": (
        "Entanglement means that two particles share one state: measuring the first tells what "
        "the second will show, however far away it is.\n"
    ),
    "Chinese": "量子纠缠是指两个粒子共享**一个**状态:测量第一个就知道第二个会显示什么。\n",
    "list": (
        "- **Water:** use `soft` water, as [this page](https://example.org/water) explains.\n"
        "  1. Heat it to 75 degrees.\n  2. Pour it over the *leaves*.\n"
    ),
    "Python code": (
        "```python\ndef brew(tea: str, grams: float) -> str:\n"
        '    """How much water a tea needs."""\n'
        "    volume = grams / 2 * 100  # 2 g for 100 ml\n"
        '    return f"{tea}: {volume} ml"\n```\n\n'
    ),
    "code in no language": "```\nbrew the tea for two minutes\npour it into the cup\n```\n\n",
    "table": (
        "| Tea | Degrees | Minutes |\n|---|---:|---:|\n"
        + "| **Sencha** | 75 | 2 |\n| Assam | 98 | `4` |\n" * 10
        + "\n"
    ),
}
TOKEN = re.compile(r" ?[^\W\d_]{1,5}|\d| |\n|[^\w\s]{1,2}|.", re.DOTALL)


def measure(text: str, n_tokens: int) -> list[float]:
    """Measure each push, in microseconds."""
    tokens = TOKEN.findall(text)
    stream = MarkdownStream(Painter(ColorSystem.STANDARD), lambda: 80)
    times = []
    for number in range(n_tokens):
        began = time.perf_counter()
        stream.push(tokens[number % len(tokens)])
        times.append(1e6 * (time.perf_counter() - began))
    return times


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=20_000)
    n_tokens = parser.parse_args().tokens
    print(f"{'text':20}  mean_us  99th_us  core_at_100_tok_s")
    for name, text in TEXTS.items():
        measure(text, 500)  # imports and caches
        times = measure(text, n_tokens)
        mean = statistics.mean(times)
        last = statistics.quantiles(times, n=100)[-1]
        print(f"{name:20}  {mean:7.1f}  {last:7.1f}  {mean / 1e4:17.2%}")


if __name__ == "__main__":
    main()
