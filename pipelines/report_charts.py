"""Charts as inline SVG: lines, histograms, confidence intervals. Colours are the page's style sheet's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from graftline.pipelines.words import number


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers that cover a range: steps of 1, 2 or 5 times a power of ten."""
    span = high - low
    if not math.isfinite(span) or span <= 0:
        return [low]
    rough = span / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]


def lines(series: Mapping[str, Sequence[tuple[float, float]]], label: str = "step") -> Markup:
    """Series of (x, y) as lines with axes; values that are not finite are left out."""
    kept = {
        name: [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)] for name, points in series.items()
    }
    everything = [point for points in kept.values() for point in points]
    if not everything:
        return Markup("")
    xs, ys = [x for x, _ in everything], [y for _, y in everything]
    low, high = min(ys), max(ys)
    if low == high:
        low, high = low - abs(low or 1) * 0.5, high + abs(high or 1) * 0.5
    elif low > 0 and low < (high - low):  # a zero line near the data is worth showing
        low = 0.0
    marks = ticks(low, high, 4)
    across = [mark for mark in ticks(min(xs), max(xs), 6) if min(xs) <= mark <= max(xs)]
    plot = _Axes((min(xs), max(xs)), (marks[0], marks[-1]), 520, 230)
    parts: list[str] = [plot.frame(across, marks, label)]
    for index, points in enumerate(kept.values()):
        if len(points) == 1 or len(points) <= 12:
            parts += [
                f'<circle class="dot c{index % 6}" cx="{plot.x(x):.1f}" cy="{plot.y(y):.1f}" r="2.6">'
                f"<title>{escape(label)} {number(x)}: {number(y)}</title></circle>"
                for x, y in points
            ]
        path = " ".join(f"{plot.x(x):.1f},{plot.y(y):.1f}" for x, y in _thinned(points))
        parts.append(f'<polyline class="line c{index % 6}" points="{path}"/>')
    return Markup("".join([*parts, "</svg>"]))


def _thinned(points: Sequence[tuple[float, float]], most: int = 400) -> Sequence[tuple[float, float]]:
    step = math.ceil(len(points) / most) if points else 1
    return points if step == 1 else [*points[::step], points[-1]]


def bins(values: Sequence[float], low: float, high: float, count: int) -> list[int]:
    """How many values fall into each of `count` equal parts of [low, high]."""
    counts = [0] * count
    for value in values:
        if low <= value <= high:
            counts[min(count - 1, int((value - low) / ((high - low) or 1) * count))] += 1
    return counts


def histogram(everything: Sequence[float], chosen: Sequence[float] = (), label: str = "") -> Markup:
    """A histogram of numbers, those of the chosen rows in front."""
    finite = [value for value in everything if math.isfinite(value)]
    if not finite:
        return Markup("")
    low, high = min(finite), max(finite)
    if low == high:
        low, high = low - 0.5, high + 0.5
    whole = all(value == int(value) for value in finite) and high - low <= 30
    if whole:
        low, high = math.floor(low) - 0.5, math.ceil(high) + 0.5
    count = int(high - low) if whole else min(30, max(8, int(math.sqrt(len(finite)) * 1.6)))
    back, front = bins(finite, low, high, count), bins([v for v in chosen if math.isfinite(v)], low, high, count)
    marks = [mark for mark in ticks(0, max(back), 3) if mark == int(mark)]
    plot = _Axes((low, high), (0, max(marks[-1], max(back))), 340, 170)
    parts: list[str] = [plot.frame([mark for mark in ticks(low, high, 5) if low <= mark <= high], marks, label)]
    for kind, counts in (("back" if chosen else "front", back), ("front", front)):
        for index, amount in enumerate(counts):
            if amount:
                left, right = (plot.x(low + (high - low) * edge / count) for edge in (index, index + 1))
                parts.append(
                    f'<rect class="bar {kind}" x="{left + 0.8:.1f}" y="{plot.y(amount):.1f}" '
                    f'width="{max(right - left - 1.6, 0.8):.1f}" height="{plot.y(0) - plot.y(amount):.1f}">'
                    f"<title>{number(amount)}</title></rect>"
                )
    return Markup("".join([*parts, "</svg>"]))


def interval(value: float, low: float, high: float, most: float = 1.0, least: float = 0.0, index: int = 0) -> Markup:
    """A value with its confidence interval on a small scale from `least` to `most`."""
    span = (most - least) or 1.0

    def at(number_: float) -> float:
        return 6 + 148 * min(1.0, max(0.0, (number_ - least) / span))

    return Markup(
        f'<svg class="interval" viewBox="0 0 160 16" width="160" height="16" aria-hidden="true">'
        f'<line class="scale" x1="6" y1="8" x2="154" y2="8"/>'
        f'<line class="range c{index % 6}" x1="{at(low):.1f}" y1="8" x2="{at(high):.1f}" y2="8"/>'
        f'<circle class="dot c{index % 6}" cx="{at(value):.1f}" cy="8" r="4.2"/></svg>'
    )


@dataclass(frozen=True)
class _Axes:
    """A plot's two scales and its size in pixels."""

    across: tuple[float, float]
    upward: tuple[float, float]
    width: int
    height: int

    def x(self, value: float) -> float:
        low, high = self.across
        return 48 + (self.width - 60) * ((value - low) / (high - low) if high > low else 0.5)

    def y(self, value: float) -> float:
        low, high = self.upward
        return self.height - 34 - (self.height - 46) * ((value - low) / (high - low) if high > low else 0.5)

    def frame(self, across: Sequence[float], upward: Sequence[float], label: str) -> Markup:
        """The opening tag, grid, ticks and label."""
        parts = [
            f'<svg class="chart" viewBox="0 0 {self.width} {self.height}" width="{self.width}" height="{self.height}" '
            f'role="img" aria-label="{escape(label)}">'
        ]
        for mark in upward:
            at = self.y(mark)
            parts.append(f'<line class="grid" x1="48" y1="{at:.1f}" x2="{self.width - 12}" y2="{at:.1f}"/>')
            parts.append(f'<text class="tick end" x="42" y="{at + 4:.1f}">{number(_clean(mark))}</text>')
        for mark in across:
            at = self.x(mark)
            parts.append(f'<text class="tick" x="{at:.1f}" y="{self.height - 18}">{number(_clean(mark))}</text>')
        parts.append(
            f'<text class="label" x="{(self.width + 36) / 2:.0f}" y="{self.height - 3}">{escape(label)}</text>'
        )
        return Markup("".join(parts))


def _clean(value: float) -> float:
    """Without the rounding noise of multiplying a step."""
    return float(f"{value:.6g}")
