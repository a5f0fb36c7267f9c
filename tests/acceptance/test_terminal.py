"""A run as a terminal sees it: a live table while it goes on, the whole account at the end, RESULT last."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from ..fake_openai import FakeOpenAI
from .conftest import COMMAND, ROOT

RUN = f"{COMMAND} run examples/own_method.py --address here"
TAUGHT = """
from graftline.stages import Endpoint, Llm, generate, read, train


def pipeline(url: str):
    rows = read.Jsonl(path="rows.jsonl", prompt="{text}")
    answers = generate.TeacherResponses(prompts=rows, teacher=Endpoint("fake", url=url, concurrency=2))
    return train.Train(model=Llm("tiny"), rows=answers, steps=40, batch_size=8, dtype="float32")
"""

pytestmark = pytest.mark.skipif(
    shutil.which("script") is None, reason="needs the command `script`, which gives a terminal"
)


def typescript(command: str, environment: dict[str, str], tmp_path: Path) -> str:
    """What a terminal of 100 × 40 was sent."""
    log = tmp_path / "typescript"
    environment |= {"TERM": "xterm-256color", "COLUMNS": "100", "LINES": "40"}
    done = subprocess.run(
        ["script", "--quiet", "--return", "--command", command, str(log)],
        env=environment, cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return log.read_text(encoding="utf-8")


def without_colours(shown: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)


def test_the_table_is_live_and_result_comes_last(environment: dict[str, str], tmp_path: Path) -> None:
    shown = typescript(RUN, environment, tmp_path)
    assert "\x1b[" in shown and re.search(r"\x1b\[\d*A", shown), "the table is drawn again in its place"
    plain = without_colours(shown)
    for name in ("Jsonl", "Shouting", "TopK"):
        assert re.search(rf"✓\s+{name}", plain), f"{name} ends as done"
    lines = [line.strip() for line in plain.splitlines() if line.strip() and not line.startswith("Script ")]
    assert lines[-1].startswith('RESULT {"pipeline": "own_method"') and "report.html" in plain


@pytest.mark.real
def test_model_calls_and_training_steps_are_seen_to_advance(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(f'{{"text": "question {number}"}}\n' for number in range(24)))
    file = tmp_path / "taught.py"
    file.write_text(TAUGHT)
    with FakeOpenAI(slow=0.15) as fake:
        run = shlex.join([COMMAND, "run", str(file), "--address", "here", "--set", f"url={fake.url}"])
        plain = without_colours(typescript(run, environment, tmp_path))
    for name, total in (("TeacherResponses", 24), ("Train", 40)):
        running = re.findall(rf"▸\s+{name}\s.*?(\d+) / {total}\b", plain)
        assert len(set(running)) > 1, f"{name} shows how far it is while it runs, not only its end: {running}"
        assert [*map(int, running)] == sorted(map(int, running))
        assert re.search(rf"✓\s+{name}\s.*{total} / {total}\b", plain)
    assert re.search(r"▸\s+Train\s.*loss \d", plain), "with the loss beside it"
