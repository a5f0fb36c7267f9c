"""The display of a run: a table that follows the events on a terminal, few plain lines elsewhere."""

import io
from dataclasses import dataclass, field

from rich.console import Console

from graftline.pipelines.progress import Progress


@dataclass
class Happened:
    kind: str
    key: str = ""
    name: str = ""
    done: int = 0
    total: int = 0
    numbers: dict = field(default_factory=dict)


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def displayed(progress):
    console = Console(width=120, file=io.StringIO(), force_terminal=False)
    console.print(progress.table())
    return console.file.getvalue()


def plain():
    out, clock = io.StringIO(), Clock()
    return Progress(Console(file=out, width=200), every=5.0, clock=clock), out, clock


def test_plain_lines_are_one_a_start_and_end_and_progress_now_and_then():
    progress, out, clock = plain()
    with progress:
        progress(Happened("planned", "a", "Jsonl"))
        progress(Happened("planned", "b", "Train"))
        progress(Happened("cached", "a", "Jsonl"))
        progress(Happened("ray", name="starting Ray"))
        progress(Happened("started", "b", "Train"))
        for step in range(1, 101):
            clock.now += 0.2
            progress(Happened("progress", "b", "Train", step, 100, {"loss": 1 / step, "tokens_per_second": 190.0}))
        progress(Happened("done", "b", "Train"))
    lines = out.getvalue().splitlines()
    assert [line.strip() for line in lines[:3]] == [
        "0.0 s  = Jsonl: taken from the store", "0.0 s  starting Ray", "0.0 s  ▸ Train: started",
    ]  # fmt: skip
    assert lines[-1].strip() == "20.0 s  ✓ Train: done in 20 s, loss 0.01, tokens per second 190"
    assert 3 <= len(lines) - 4 <= 5, "20 s of progress, a line every 5 s at most"
    assert "\x1b" not in out.getvalue()


def test_the_table_follows_the_events():
    progress, _, clock = plain()
    for kind, key, name in (("planned", "a", "Jsonl"), ("planned", "b", "Train"), ("planned", "c", "Compare")):
        progress(Happened(kind, key, name))
    progress(Happened("done", "a", "Jsonl"))
    progress(Happened("started", "b", "Train"))
    clock.now += 65
    progress(Happened("progress", "b", "Train", 30, 60, {"loss": 0.4321}))
    rows = {line.split()[1]: line for line in displayed(progress).splitlines()[1:4]}
    assert rows["Jsonl"].strip().startswith("✓")
    assert all(part in rows["Train"] for part in ("▸", "1 min 05 s", "30 / 60", "loss 0.432", "━"))
    assert rows["Compare"].strip().startswith("·")
    assert "1 of 3 stages" in displayed(progress)
    progress(Happened("failed", "b", "Train"))
    clock.now += 1000
    assert "✗" in displayed(progress) and "1 min 05 s" in displayed(progress), "a finished stage's clock stands"


def test_a_stage_that_was_ended_early_has_not_failed():
    progress, out, _ = plain()
    progress(Happened("started", "a", "Train rank=4"))
    progress(Happened("stopped", "a", "Train rank=4"))
    assert "■ Train rank=4: stopped early" in out.getvalue() and "■" in displayed(progress)


def test_a_terminal_gets_a_live_table():
    out = io.StringIO()
    with Progress(Console(file=out, force_terminal=True, width=100)) as progress:
        progress(Happened("started", "b", "Train"))
        progress(Happened("done", "b", "Train"))
    assert "Train" in out.getvalue() and "\x1b[" in out.getvalue() and "started" not in out.getvalue()


def test_a_name_cannot_carry_markup_or_control_characters():
    progress, out, _ = plain()
    progress(Happened("started", "a", "[red]x[/red]\x1b[2J"))
    assert "[red]x[/red]\\x1b[2J" in out.getvalue() and "[red]x[/red]\\x1b[2J" in displayed(progress)


def test_progress_without_a_start_counts_as_running():
    progress, out, clock = plain()
    progress(Happened("progress", "a", "Scorer", 5))
    clock.now += 6
    progress(Happened("progress", "b", "Train", numbers={"step": 3, "eval_loss": 0.5}))
    lines = [line.strip() for line in out.getvalue().splitlines()]
    assert lines == ["0.0 s    Scorer: 5", "6.0 s    Train: eval loss 0.5"]


def test_on_a_narrow_terminal_only_the_numbers_give_way():
    progress, _, clock = plain()
    progress(Happened("planned", "a", "Train"))
    progress(Happened("started", "a", "Train"))
    clock.now += 75
    progress(Happened("progress", "a", "Train", 197, 200, {"loss": 3.67, "lr": 6e-7, "tokens_per_second": 190.0}))
    console = Console(width=72, file=io.StringIO(), force_terminal=False)
    console.print(progress.table())
    (line,) = [line for line in console.file.getvalue().splitlines() if "Train" in line]
    assert line.startswith("▸  Train") and "1 min 15 s" in line and "197 / 200" in line and "…" in line
