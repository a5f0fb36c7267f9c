"""Bad input: one clear error each (what, where, what to do), the right exit code, nothing half-written counted."""

from __future__ import annotations

import os
import random
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ..fake_openai import FakeOpenAI

READ = """
from graftline.stages import read, select
def pipeline(path: str = "rows.jsonl"):
    return select.TopK(rows=Counted(rows=read.Jsonl(path=path, prompt="{text}", answer="{label}")), by="n", k=3)

from graftline.stages import Scorer
class Counted(Scorer):
    origin = "a test"
    adds = {"n": "int64"}
    def score_rows(self, table, context):
        return {"n": [len(messages[0]["content"]) for messages in table["messages"].to_pylist()]}
"""

MODEL = """
from graftline.stages import Llm
def pipeline(name: str = "no-such/model-anywhere"):
    return Llm(name)
"""


def started(store: str) -> list[Path]:
    return list(Path(store).glob("artefacts/*/*/artefact.json"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 300 kB (a tmpfs; needs the right to mount)."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a small file system here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, ["rows.jsonl", "no such file"]),
        ('{"text": "a", "label": "b"}\n'.encode("utf-16"), ["rows.jsonl", "UTF-8"]),
        (b"", ["rows.jsonl", "empty"]),
        (b'{"body": "a", "label": "b"}\n', ["rows.jsonl", "text", "body"]),
    ],
)
def test_a_file_that_cannot_be_read_at_all_stops_before_anything_starts(
    content: bytes | None,
    words: list[str],
    graftline: Callable[..., Any],
    pipeline_file: Callable[..., Path],
    environment: dict[str, str],
) -> None:
    file = pipeline_file(READ)
    if content is not None:
        (file.parent / "rows.jsonl").write_bytes(content)
    done = graftline("run", str(file))
    assert done.code == 2, done.err
    assert all(word.lower() in done.err.lower() for word in words), done.err
    assert "Traceback" not in done.err and not started(environment["GRAFTLINE_STORE"])


def test_a_model_that_is_not_there(
    graftline: Callable[..., Any], pipeline_file: Callable[..., Path], environment: dict[str, str]
) -> None:
    environment["HF_ENDPOINT"] = "http://127.0.0.1:9"  # a closed port: the answer does not wait for the network
    done = graftline("plan", str(pipeline_file(MODEL)))
    assert done.code == 2
    assert "no-such/model-anywhere" in done.err and "Traceback" not in done.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--set", "path"), ["name=value"]),
        (("--set", "nope=1"), ["nope", "path"]),
        (("--nope",), ["No such option"]),
    ],
)
def test_a_wrong_request_exits_two(
    arguments: tuple[str, ...], words: list[str], graftline: Callable[..., Any], pipeline_file: Callable[..., Path]
) -> None:
    done = graftline("plan", str(pipeline_file(READ)), *arguments)
    assert done.code == 2
    assert all(word in done.err for word in words), done.err


def test_a_pipeline_file_that_is_not_one(graftline: Callable[..., Any], pipeline_file: Callable[..., Path]) -> None:
    for source, word in (
        ("x = 1", "pipeline"),
        ("def pipeline(:", "mine.py"),
        ("def pipeline():\n  return 3", "stage"),
    ):
        done = graftline("plan", str(pipeline_file(source)))
        assert done.code == 2 and word in done.err, (source, done.err)
    assert graftline("plan", "nowhere.py").code == 2


def test_a_store_that_cannot_be_written(
    graftline: Callable[..., Any], pipeline_file: Callable[..., Path], small_disk: Path
) -> None:
    file = pipeline_file(READ)
    (file.parent / "rows.jsonl").write_text('{"text": "a", "label": "b"}\n')
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    done = graftline("run", str(file), "--store", str(small_disk / "store"))
    assert done.code == 2, done.err
    assert str(small_disk) in done.err and "read-only" in done.err.lower()
    done = graftline("run", str(file), "--store", str(file))
    assert done.code == 2 and str(file) in done.err


@pytest.mark.real
def test_scores_that_are_no_number(
    graftline: Callable[..., Any], pipeline_file: Callable[..., Path], environment: dict[str, str]
) -> None:
    """NaN is no score: such rows come last, are counted so, and a choice by nothing else is none."""
    source = READ.replace('adds = {"n": "int64"}', 'adds = {"n": "float64"}\n    least: int = 30').replace(
        "[len(messages[0]", '[float("nan") if len(messages[0]["content"]) < self.least else len(messages[0]'
    )
    file = pipeline_file(source)
    lines = [f'{{"text": "{"x" * n}", "label": "b"}}' for n in range(20, 35)]
    (file.parent / "rows.jsonl").write_text("\n".join(lines))
    done = graftline("run", str(file), "--address", "here")
    assert done.code == 0, done.err
    shown = graftline("inspect", "latest", "TopK", "--rows", "9").out
    assert shown.count("x" * 32) == 3 and "x" * 20 not in shown.replace("x" * 32, "")
    lost = graftline("show", "latest", "--json").out
    assert '"no score": 10' in lost and "NaN" not in lost
    page = next(Path(environment["GRAFTLINE_STORE"]).glob("runs/*/report.html")).read_text()
    assert "no score" in page
    done = graftline(
        "run", str(pipeline_file(source.replace("least: int = 30", "least: int = 99"))), "--address", "here"
    )
    assert done.code == 1 and "TopK: none of 15 rows has a value in 'n'" in done.err, done.err


def test_a_servers_key_that_is_wrong(
    graftline: Callable[..., Any], pipeline_file: Callable[..., Path], environment: dict[str, str]
) -> None:
    environment["THEIR_KEY"] = "sk-not-the-right-one"
    with FakeOpenAI(key="sk-another") as server:
        file = pipeline_file(
            "from graftline.stages import Endpoint, generate, read\n"
            "def pipeline():\n"
            "    rows = read.Jsonl(path='rows.jsonl', prompt='{text}')\n"
            f"    teacher = Endpoint('fake', url='{server.url}', key_env='THEIR_KEY')\n"
            "    return generate.TeacherResponses(prompts=rows, teacher=teacher)\n"
        )
        (file.parent / "rows.jsonl").write_text('{"text": "a"}\n')
        done = graftline("run", str(file))
        assert server.log == []
    assert done.code == 2 and "THEIR_KEY" in done.err and "401" in done.err, done.err
    assert "sk-" not in done.err + done.out and not started(environment["GRAFTLINE_STORE"])


def test_a_sweep_that_this_machine_has_no_room_for(
    graftline: Callable[..., Any], pipeline_file: Callable[..., Path], environment: dict[str, str]
) -> None:
    file = pipeline_file(
        "from graftline.stages import Llm, read, select, sweep, train\n"
        "from graftline.stages.stage import Resources\n"
        "def pipeline():\n"
        "    rows = read.Jsonl(path='rows.jsonl', prompt='{text}', answer='{label}')\n"
        "    split = select.Split(rows=rows, shares=(0.5, 0.5, 0.0))\n"
        "    tuned = train.Train(model=Llm('tiny'), rows=split.train, held_out=split.dev, workers=3,\n"
        "                        resources=Resources(cpus=99.0))\n"
        "    return sweep.Sweep(stage=tuned, over={'adapter.rank': sweep.grid(4, 8)})\n"
    )
    (file.parent / "rows.jsonl").write_text("\n".join(f'{{"text": "{n}", "label": "b"}}' for n in range(9)))
    done = graftline("run", str(file))
    assert done.code == 2 and "297 cpus" in done.err and "adapter.rank=4" in done.err, done.err
    assert not started(environment["GRAFTLINE_STORE"])


@pytest.mark.real
def test_row_faults_become_failed_rows_and_the_rest_goes_on(
    graftline: Callable[..., Any], pipeline_file: Callable[..., Path], environment: dict[str, str]
) -> None:
    file = pipeline_file(READ)
    good = [f'{{"text": "ticket number {n}", "label": "b"}}' for n in range(60)]
    bad = [
        "not json",
        '{"text": "no label"}',
        '{"text": "empty answer", "label": ""}',
        '{"text": "' + "x" * 10_000_000 + '", "label": "b"}',
    ]
    (file.parent / "rows.jsonl").write_text("\n".join([*good, *bad]) + "\n")
    done = graftline("run", str(file))
    assert done.code == 0, done.err
    shown = graftline("show", "latest", "--json").out
    assert '"failed"' in shown
    lost = graftline("inspect", "latest", "Jsonl", "--outcome", "failed", "--rows", "9")
    for words in ("JSON", "label", "empty", "bytes"):
        assert words in lost.out, lost.out[:3000]

    (file.parent / "rows.jsonl").write_text("\n".join([*good[:6], *bad]) + "\n")  # 4 of 10 failed
    done = graftline("run", str(file))
    assert done.code == 1
    assert "failed" in done.err and "max_failed" in done.err and "Jsonl" in done.err
    (file.parent / "rows.jsonl").write_text("\n".join(bad[:2]) + "\n")
    done = graftline("run", str(file))  # a file without one good row is found before anything starts
    assert done.code == 2 and "no row can be read" in done.err


@pytest.mark.real
def test_a_full_disk_stops_the_run_and_nothing_half_written_counts(
    graftline: Callable[..., Any], pipeline_file: Callable[..., Path], small_disk: Path
) -> None:
    file = pipeline_file(READ)
    noise = random.Random(0)  # what compression cannot shrink to fit
    lines = [f'{{"text": "{n} {noise.randbytes(1500).hex()}", "label": "b"}}' for n in range(400)]
    (file.parent / "rows.jsonl").write_text("\n".join(lines))
    store = small_disk / "store"
    done = graftline("run", str(file), "--store", str(store))
    assert done.code == 1, done.err
    assert "full" in done.err.lower() or "space" in done.err.lower()
    subprocess.run(["mount", "-o", "remount,size=200m", str(small_disk)], check=True)
    done = graftline("run", str(file), "--store", str(store))
    assert done.code == 0, done.err


def test_a_port_in_use_is_found_before_anything_starts(
    graftline: Callable[..., Any], pipeline_file: Callable[..., Path], environment: dict[str, str]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        file = pipeline_file(
            "from graftline.stages import Llm, serve\n"
            f"def pipeline():\n    return serve.Service(model=Llm('tiny'), port={port}, probe=('hi',))\n"
        )
        done = graftline("run", str(file))
    assert done.code == 2, done.err
    assert str(port) in done.err
    assert not started(environment["GRAFTLINE_STORE"]) and os.path.isdir(file.parent)


def test_an_adapter_on_another_base_is_refused(
    graftline: Callable[..., Any], pipeline_file: Callable[..., Path]
) -> None:
    file = pipeline_file(
        "from graftline.stages import Llm, evaluate, read, train\n"
        "def pipeline():\n"
        "    rows = read.Jsonl(path='rows.jsonl')\n"
        "    tuned = train.Train(model=Llm('tiny'), rows=rows)\n"
        "    other = Llm('smollm2-135m-instruct')\n"
        "    return evaluate.Compare(model=other, adapters={'x': tuned}, rows=rows, metrics=(evaluate.ExactMatch(),))\n"
    )
    (file.parent / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    done = graftline("plan", str(file))
    assert done.code == 2, done.err
    assert "tiny" in done.err and "adapters.x" in done.err
