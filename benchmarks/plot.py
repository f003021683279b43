"""Draw decode speed against context, from a report of ``benchmarks.compare``.

    python -m benchmarks.compare MODEL --llama-cpp PYTHON --prompt 0
        --context 0 512 1024 2048 3072 4096 --json speeds.json
    python -m benchmarks.plot speeds.json docs/decode-by-context.svg

Each program has a line through the medians of its rounds, and a band between their quartiles. The
picture has its own background, and dark colours for viewers that prefer them.
"""

import argparse
import json
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from benchmarks.compare import DECODE

WIDTH, HEIGHT = 760, 420
LEFT, RIGHT, TOP, BOTTOM = 64, 148, 76, 56
"""Margins around the axes, for titles and labels."""

LABEL_HEIGHT = 34
"""Height of two lines of text: the name of a program, and its last speed."""

STYLE = """
text { font: 13px system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif; fill: #59636e }
.card { fill: #ffffff; stroke: #d1d9e0 }
.title { font-size: 17px; font-weight: 600; fill: #1f2328 }
.name { font-weight: 600 }
.grid { stroke: #e6eaef }
.axis { stroke: #9aa4ae }
.line { fill: none; stroke-width: 2.5; stroke-linejoin: round; stroke-linecap: round }
.band { stroke: none; fill-opacity: 0.14 }
.dot { stroke: #ffffff; stroke-width: 1.5 }
"""
DARK_STYLE = """
text { fill: #9198a1 } .title { fill: #f0f6fc }
.card { fill: #0d1117; stroke: #3d444d } .dot { stroke: #0d1117 }
.grid { stroke: #21262d } .axis { stroke: #656c76 }
"""
COLORS = (("#0969da", "#58a6ff"), ("#c2410c", "#f0883e"), ("#6639ba", "#bc8cff"))
"""Colours of each program, on a light and on a dark background."""


@dataclass(frozen=True, slots=True)
class Line:
    """Speeds of one program: ``(context, tokens per second of each round)`` by context."""

    name: str
    points: Sequence[tuple[int, Sequence[float]]]

    @property
    def medians(self) -> list[tuple[int, float]]:
        """Median speed at each context."""
        return [(context, statistics.median(speeds)) for context, speeds in self.points]

    def quartiles(self) -> Iterator[tuple[int, float, float]]:
        """Context, and the lower and the upper quartile of the speeds."""
        for context, speeds in self.points:
            both = speeds if len(speeds) > 1 else [*speeds, *speeds]  # one has no quartiles
            cuts = statistics.quantiles(both, n=4, method="inclusive")
            yield context, cuts[0], cuts[2]


@dataclass(frozen=True, slots=True)
class Frame:
    """Mapping of contexts and speeds to coordinates of the picture."""

    longest: int
    fastest: float

    def x(self, context: float) -> float:
        """Map a context to a distance from the left."""
        return LEFT + (WIDTH - LEFT - RIGHT) * context / self.longest

    def y(self, speed: float) -> float:
        """Map a speed to a distance from the top."""
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * speed / self.fastest

    def places(self, points: Sequence[tuple[float, float]]) -> str:
        """Format the coordinates of a line or an area."""
        return " ".join(f"{self.x(context):.1f},{self.y(speed):.1f}" for context, speed in points)


def lines_of(report: dict[str, Any]) -> list[Line]:
    """Read the speeds of each program from a report of ``benchmarks.compare``.

    Raises:
        SystemExit: if it holds fewer than two contexts.
    """
    by_context = {
        int(task.removeprefix(DECODE)): result["tok_s"]
        for task, result in report["tasks"].items()
        if task.startswith(DECODE)
    }
    if len(by_context) < 2:
        raise SystemExit("nothing to draw: measure with several numbers in --context")
    contexts = sorted(by_context)
    names = by_context[contexts[0]]
    return [Line(name, [(n, by_context[n][name]) for n in contexts]) for name in names]


def round_step(most: float) -> float:
    """Return 1, 2 or 5 times a power of ten: the largest that fits four times into ``most``."""
    power = 10.0 ** math.floor(math.log10(most / 4))
    return next(power * n for n in (5, 2, 1) if most / (power * n) >= 4)


def text(x: float, y: float, words: str, kind: str = "note", anchor: str = "start") -> str:
    """Make an element of text."""
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text class="{kind}" {place}>{escape(words)}</text>'


def axes(frame: Frame, step: float, contexts: Sequence[int]) -> Iterator[str]:
    """Draw the grid, the ticks and their labels."""
    for i in range(round(frame.fastest / step) + 1):
        y, kind = frame.y(i * step), "grid" if i else "axis"
        yield f'<path class="{kind}" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>'
        yield text(LEFT - 10, y + 4.5, f"{i * step:g}", anchor="end")
    bottom = HEIGHT - BOTTOM
    for context in contexts:
        yield f'<path class="axis" d="M{frame.x(context):.1f} {bottom}v5"/>'
        yield text(frame.x(context), bottom + 21, f"{context:,}", anchor="middle")
    middle = (LEFT + WIDTH - RIGHT) / 2
    yield text(middle, HEIGHT - 14, "tokens of context", anchor="middle")


def curve(frame: Frame, line: Line, number: int) -> Iterator[str]:
    """Draw the line of a program with its band and its points."""
    quartiles = list(line.quartiles())
    area = [(x, low) for x, low, _ in quartiles] + [(x, high) for x, _, high in reversed(quartiles)]
    yield f'<polygon class="band of{number}" points="{frame.places(area)}"/>'
    yield f'<polyline class="line to{number}" points="{frame.places(line.medians)}"/>'
    for context, speed in line.medians:
        x, y = frame.x(context), frame.y(speed)
        yield f'<circle class="dot of{number}" cx="{x:.1f}" cy="{y:.1f}" r="4"/>'


def labels(frame: Frame, lines: Sequence[Line]) -> Iterator[str]:
    """Label the end of each line with its program and last speed; labels do not overlap."""
    ends = sorted((frame.y(line.medians[-1][1]), i) for i, line in enumerate(lines))
    x, lowest = WIDTH - RIGHT + 14, -math.inf
    for end, i in ends:
        y = lowest = max(end, lowest + LABEL_HEIGHT)
        yield text(x, y - 1, lines[i].name, f"name of{i}")
        yield text(x, y + 15, f"{lines[i].medians[-1][1]:.0f} tok/s")


def style(n_lines: int) -> str:
    """Make the style sheet, with dark colours for viewers that prefer them."""
    light, dark = (
        "".join(
            f".of{i} {{ fill: {colors[tone]} }} .to{i} {{ stroke: {colors[tone]} }}\n"
            for i, colors in enumerate(COLORS[:n_lines])
        )
        for tone in (0, 1)
    )
    return f"{STYLE}{light}@media (prefers-color-scheme: dark) {{{DARK_STYLE}{dark}}}\n"


def draw(report: dict[str, Any]) -> str:
    """Draw the picture as SVG."""
    lines = lines_of(report)
    contexts = [context for context, _ in lines[0].points]
    most = max(high for line in lines for _, _, high in line.quartiles())
    step = round_step(most)
    frame = Frame(contexts[-1], math.ceil(most / step) * step)
    n_rounds = len(lines[0].points[0][1])
    what = f"{report['model'].removesuffix('.gguf')}, {report['threads']} threads"
    title = "Decode speed by length of context, tokens per second"
    parts = [
        f"<title>{title}</title>",
        f"<style>{style(len(lines))}</style>",
        f'<rect class="card" x="0.5" y="0.5" width="{WIDTH - 1}" height="{HEIGHT - 1}" rx="8"/>',
        text(24, 34, title, "title"),
        text(24, 56, f"{what}, medians of {n_rounds} rounds"),
        *axes(frame, step, contexts),
    ]
    for number, line in enumerate(lines):
        parts += curve(frame, line, number)
    parts += labels(frame, lines)
    size = f'width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}"'
    return "\n".join([f'<svg xmlns="http://www.w3.org/2000/svg" {size}>', *parts, "</svg>\n"])


def main() -> None:
    """Read the report and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("report", type=Path, metavar="FILE.json")
    parser.add_argument("picture", type=Path, metavar="FILE.svg")
    options = parser.parse_args()
    options.picture.write_text(draw(json.loads(options.report.read_text())))


if __name__ == "__main__":
    main()
