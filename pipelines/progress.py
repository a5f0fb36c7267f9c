"""A run as one watches it: a live table on a terminal, plain lines elsewhere. Both go to stderr."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, Self

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from graftline.pipelines.words import duration, number, visible

if TYPE_CHECKING:
    from types import TracebackType

SIGNS = {
    "waiting": ("·", "dim"),
    "running": ("▸", "bold cyan"),
    "done": ("✓", "green"),
    "cached": ("=", "dim green"),
    "failed": ("✗", "bold red"),
    "stopped": ("■", "yellow"),
}
WORDS = {"done": "done", "cached": "taken from the store", "stopped": "stopped early", "failed": "FAILED"}
MOST_NUMBERS = 4


class Happened(Protocol):
    """What the display needs of the runner's events."""

    kind: str
    key: str
    name: str
    done: int
    total: int
    numbers: Mapping[str, float]


@dataclass
class Line:
    """One stage of the display; times in seconds of the display's clock."""

    name: str
    state: str = "waiting"
    done: int = 0
    total: int = 0
    numbers: dict[str, float] = field(default_factory=dict)
    started: float | None = None
    ended: float | None = None
    said: float = float("-inf")
    """When its progress was last printed as a plain line."""


class Progress:
    """The watch of a run: call it with events, inside `with`.

    Args:
        console: where it writes; a live table where that is a terminal.
        every: seconds between two plain lines of progress of one stage.
        clock: a monotonic clock.
    """

    def __init__(self, console: Console, every: float = 5.0, clock: Callable[[], float] = time.monotonic) -> None:
        self.console, self.every, self.clock = console, every, clock
        self.lines: dict[str, Line] = {}
        self.note = ""
        self._lock = threading.RLock()
        self._live: Live | None = None
        self._start = clock()

    def __enter__(self) -> Self:
        self._start = self.clock()
        if self.console.is_terminal:
            self._live = Live(console=self.console, get_renderable=self.table, refresh_per_second=4, transient=False)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def __call__(self, event: Happened) -> None:
        with self._lock:
            if event.kind == "ray":
                self.note = event.name or "starting Ray"
                self._say(self.note)
                return
            line = self.lines.setdefault(event.key, Line(event.name))
            now = self.clock()
            if event.kind != "planned":
                line.done, line.total = event.done or line.done, event.total or line.total
                line.numbers |= dict(event.numbers or {})
            if event.kind == "started":
                line.state, line.started = "running", now
                self._say(f"▸ {line.name}: started")
            elif event.kind == "progress":
                if line.started is None:
                    line.state, line.started = "running", now
                if now - line.said >= self.every:
                    line.said = now
                    self._say(f"  {line.name}: {', '.join(filter(None, (amounts(line), numbers(line))))}")
            elif event.kind in WORDS:
                line.state, line.ended = event.kind, now
                took = f" in {duration(now - line.started)}" if line.started is not None else ""
                word = WORDS[event.kind]
                told = ", ".join(filter(None, (f"{word}{took}", numbers(line))))
                self._say(f"{SIGNS[event.kind][0]} {line.name}: {told}")

    def table(self) -> RenderableType:
        """The live table."""
        with self._lock:
            table = Table(box=None, padding=(0, 2, 0, 0), show_header=True, header_style="dim", expand=False)
            table.add_column("", width=1)
            table.add_column("stage", overflow="ellipsis", no_wrap=True)
            table.add_column("time", justify="right", no_wrap=True)
            table.add_column("", width=22)
            table.add_column("rows or steps", justify="right", no_wrap=True)
            table.add_column("")  # the one column that gives way where the terminal is narrow
            now = self.clock()
            for line in self.lines.values():
                sign, style = SIGNS[line.state]
                running = line.state == "running"
                bar: RenderableType = ""
                if running:
                    bar = ProgressBar(
                        total=line.total or None, completed=line.done, width=22, pulse=not line.total,
                        animation_time=now,
                    )  # fmt: skip
                table.add_row(
                    Text(sign, style),
                    Text(visible(line.name), "bold" if running else "" if line.state != "waiting" else "dim"),
                    "" if line.started is None else duration((line.ended or now) - line.started),
                    bar,
                    amounts(line),
                    Text(numbers(line), "cyan" if running else "dim", no_wrap=True, overflow="ellipsis"),
                )
            finished = sum(line.state in ("done", "cached") for line in self.lines.values())
            total = f"{finished} of {len(self.lines)} stages, {duration(now - self._start)}"
            running_now = any(line.state == "running" for line in self.lines.values())
            table.caption = Text(total if running_now or not self.note else f"{total}, {self.note}", "dim")
            table.caption_justify = "left"
            return table

    def _say(self, text: str) -> None:
        if self._live is None:
            elapsed = f"{self.clock() - self._start:7.1f} s"
            self.console.print(Text(f"{elapsed}  {visible(text)}"), soft_wrap=True)


def amounts(line: Line) -> str:
    """How far it is."""
    if line.total:
        return f"{number(line.done)} / {number(line.total)}"
    return number(line.done) if line.done else ""


def numbers(line: Line) -> str:
    """A few numbers of a stage; its step is told as the amount done."""
    shown = [(name, value) for name, value in line.numbers.items() if name != "step"][:MOST_NUMBERS]
    return ", ".join(f"{name.replace('_', ' ')} {number(float(value))}" for name, value in shown)
