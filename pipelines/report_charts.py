"""Charts as inline SVG: lines, points, histograms, confidence intervals. Colours are the page's style sheet's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from graftline.pipelines.words import number, shortened

LETTER = 6.2
"""Pixels that a letter of a tick takes, about."""


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


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten (the powers alone over more than two orders) around a range above 0."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    factors = (1, 2, 5) if high / low <= 100 else (1,)
    marks = [factor * 10.0**power for power in range(first, last + 1) for factor in factors]
    step = max(1, (last - first) // 6) if factors == (1,) else 1
    return marks[::step]


@dataclass(frozen=True)
class Point:
    """One point of a scatter plot.

    Args:
        x, y: where it is; a y that is not finite puts it on the floor, as what came to nothing.
        kind: best, full, stopped or failed, as the style sheet has them.
        title: what hovering tells.
    """

    x: float
    y: float
    kind: str
    title: str


def scatter(
    points: Sequence[Point], label: str, names: Sequence[str] = (), log: bool = False, width: int = 340
) -> Markup:
    """Points with axes.

    Args:
        points: what to show; the best lies on top.
        label: below the x axis.
        names: of the places 0, 1, 2, … where x is no number.
        log: whether x counts by orders of magnitude.
        width: in pixels.
    """
    found = [point for point in points if math.isfinite(point.y)]
    if not found:
        return Markup("")
    spread, low, high = _stretched([point.y for point in found])
    upward = log_ticks(low, high) if spread else ticks(low, high, 4)
    xs = sorted({point.x for point in points})
    across = _across(xs, names, log)
    left, right = (-0.5, len(names) - 0.5) if names else (xs[0], xs[-1])
    plot = _Axes((left, right), (min(low, upward[0]), max(high, upward[-1])), width, 210, log, spread, 12)
    texts = {float(place): shortened(name, max(3, 40 // len(names))) for place, name in enumerate(names)}
    parts: list[str] = [plot.frame([float(mark) for mark in across], upward, label, texts)]
    for point in sorted(points, key=lambda each: each.kind == "best"):
        x, y = plot.x(point.x), plot.y(point.y) if math.isfinite(point.y) else plot.height - 34.0
        title = f"<title>{escape(point.title)}</title>"
        if point.kind == "failed" or not math.isfinite(point.y):
            cross = f"M{x - 4:.1f} {y - 4:.1f}l8 8m0 -8l-8 8"
            parts.append(f'<path class="trial failed" d="{cross}">{title}</path>')
        else:
            radius = 5.5 if point.kind == "best" else 4
            parts.append(f'<circle class="trial {point.kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}">{title}</circle>')
    return Markup("".join([*parts, "</svg>"]))


def _across(xs: Sequence[float], names: Sequence[str], log: bool) -> Sequence[float]:
    """Where the x axis has marks: at every value, where they are few enough to be read."""
    if names:
        return [float(place) for place in range(len(names))] if len(names) <= 12 else []
    if len(xs) <= 6:
        return xs
    marks = log_ticks(xs[0], xs[-1]) if log else ticks(xs[0], xs[-1], 5)
    return [mark for mark in marks if xs[0] <= mark <= xs[-1]]


def _stretched(values: Sequence[float]) -> tuple[bool, float, float]:
    """Whether values are told apart only by orders of magnitude, and the range to show them in."""
    low, high = min(values), max(values)
    if low > 0 and high / low > 50:
        return True, low, high
    if low == high:
        return False, low - abs(low or 1) * 0.5, high + abs(high or 1) * 0.5
    return False, low, high


def curves(series: Sequence[tuple[str, str, Sequence[tuple[float, float]]]], label: str = "step") -> Markup:
    """Many curves in one plot, by kind instead of by colour: the best in front, the others behind.

    Args:
        series: (kind, title, points) of each; kinds as in `Point`.
    """
    kept = [
        (kind, title, [(x, y) for x, y in points if math.isfinite(y)])
        for kind, title, points in sorted(series, key=lambda each: each[0] == "best")
    ]
    everything = [point for _, _, points in kept for point in points]
    if not everything:
        return Markup("")
    xs = [x for x, _ in everything]
    spread, low, high = _stretched([y for _, y in everything])
    upward = log_ticks(low, high) if spread else ticks(low, high, 4)
    across = [mark for mark in ticks(min(xs), max(xs), 6) if min(xs) <= mark <= max(xs)]
    reach = (min(low, upward[0]), max(high, upward[-1]))
    plot = _Axes((min(xs), max(xs)), reach, 340, 210, False, spread)
    parts: list[str] = [plot.frame(across, upward, label)]
    for kind, title, points in kept:
        if not points:
            continue
        path = " ".join(f"{plot.x(x):.1f},{plot.y(y):.1f}" for x, y in _thinned(points))
        end = f'cx="{plot.x(points[-1][0]):.1f}" cy="{plot.y(points[-1][1]):.1f}" r="3"'
        parts.append(
            f'<g class="curve {kind}"><title>{escape(title)}</title><polyline points="{path}"/><circle {end}/></g>'
        )
    return Markup("".join([*parts, "</svg>"]))


def lines(series: Mapping[str, Sequence[tuple[float, float]]], label: str = "step", width: int = 520) -> Markup:
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
    plot = _Axes((min(xs), max(xs)), (marks[0], marks[-1]), width, 230 if width > 400 else 190)
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
    """A histogram of numbers, those of the chosen rows in front: what is seen behind them was not chosen."""
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
    for kind, counts, word in (("back" if chosen else "front", back, ""), ("front", front, " kept")):
        for index, amount in enumerate(counts):
            if amount:
                left, right = (plot.x(low + (high - low) * edge / count) for edge in (index, index + 1))
                parts.append(
                    f'<rect class="bar {kind}" x="{left + 0.8:.1f}" y="{plot.y(amount):.1f}" '
                    f'width="{max(right - left - 1.6, 0.8):.1f}" height="{plot.y(0) - plot.y(amount):.1f}">'
                    f"<title>{_span(low, high, count, index)}: {number(amount)}{word}</title></rect>"
                )
    return Markup("".join([*parts, "</svg>"]))


def _span(low: float, high: float, count: int, index: int) -> str:
    """One of `count` equal parts of [low, high], in words."""
    left, right = (number(_clean(low + (high - low) * edge / count)) for edge in (index, index + 1))
    return f"{left} to {right}"


def interval(value: float, low: float, high: float, most: float = 1.0, least: float = 0.0, kind: str = "") -> Markup:
    """A value with its confidence interval on a small scale from `least` to `most`; `kind` is the style sheet's."""
    span = (most - least) or 1.0

    def at(number_: float) -> float:
        return 6 + 148 * min(1.0, max(0.0, (number_ - least) / span))

    return Markup(
        f'<svg class="interval {kind}" viewBox="0 0 160 16" width="160" height="16" aria-hidden="true">'
        f'<line class="scale" x1="6" y1="8" x2="154" y2="8"/>'
        f'<line class="range" x1="{at(low):.1f}" y1="8" x2="{at(high):.1f}" y2="8"/>'
        f'<circle class="dot" cx="{at(value):.1f}" cy="8" r="4.2"/></svg>'
    )


@dataclass(frozen=True)
class _Axes:
    """A plot's two scales and its size in pixels.

    Args:
        across, upward: the ends of the scales.
        width, height: of the picture.
        log_across, log_upward: whether a scale counts by orders of magnitude.
        inset: pixels between the frame and the first and last value.
    """

    across: tuple[float, float]
    upward: tuple[float, float]
    width: int
    height: int
    log_across: bool = False
    log_upward: bool = False
    inset: int = 0

    def x(self, value: float) -> float:
        return 48 + self.inset + (self.width - 60 - 2 * self.inset) * _share(value, *self.across, self.log_across)

    def y(self, value: float) -> float:
        return self.height - 34 - (self.height - 46) * _share(value, *self.upward, self.log_upward)

    def frame(
        self, across: Sequence[float], upward: Sequence[float], label: str, texts: Mapping[float, str] | None = None
    ) -> Markup:
        """The opening tag, grid, ticks and label; `texts`: of marks that are no numbers."""
        parts = [
            f'<svg class="chart" viewBox="0 0 {self.width} {self.height}" width="{self.width}" height="{self.height}" '
            f'role="img" aria-label="{escape(label)}">'
        ]
        for mark in upward:
            at = self.y(mark)
            parts.append(f'<line class="grid" x1="48" y1="{at:.1f}" x2="{self.width - 12}" y2="{at:.1f}"/>')
            parts.append(f'<text class="tick end" x="42" y="{at + 4:.1f}">{number(_clean(mark))}</text>')
        taken = 0.0
        for mark in across:
            at, text = self.x(mark), (texts or {}).get(mark, number(_clean(mark)))
            half = len(text) * LETTER / 2
            if at - half < taken:  # it would run into the one before
                continue
            taken = at + half + LETTER
            parts.append(f'<text class="tick" x="{at:.1f}" y="{self.height - 18}">{escape(text)}</text>')
        parts.append(
            f'<text class="label" x="{(self.width + 36) / 2:.0f}" y="{self.height - 3}">{escape(label)}</text>'
        )
        return Markup("".join(parts))


def _share(value: float, low: float, high: float, log: bool) -> float:
    """How far a value lies on the way from one end of a scale to the other."""
    if high <= low:
        return 0.5
    if log:
        return math.log(value / low) / math.log(high / low)
    return (value - low) / (high - low)


def _clean(value: float) -> float:
    """Without the rounding noise of multiplying a step."""
    return float(f"{value:.6g}")
