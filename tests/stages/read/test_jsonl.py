"""JSON lines: whatever a line holds, it fails alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graftline.stages.read import Jsonl

GOOD = json.dumps({"prompt": "Why?", "completion": "Because."}).encode()


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{'prompt': 1}", "is not JSON (expecting property name enclosed in double quotes)"),
        (b'{"prompt": "x"', "is not JSON (expecting ',' delimiter)"),
        (b"hello", "is not JSON (expecting value)"),
        (b'{"prompt": "caf\xe9", "completion": "x"}', "is not UTF-8"),
        (b"[1, 2]", "is JSON, but not an object"),
        (b'"text"', "is JSON, but not an object"),
        (b"[" * 50_000, "is not JSON that can be read"),
        (b'{"prompt": ' + b"9" * 5000 + b"}", "is not JSON that can be read"),
        (b'{"messages": []}', "has no messages"),
        (b'{"prompt": "x", "completion": ""}', "the answer is empty"),
        (b'{"prompt": "' + b"x" * 10_000_000 + b'", "completion": "y"}', "is longer than max_bytes=1,000,000"),
    ],
    ids=lambda value: None if isinstance(value, bytes) else value[:30],
)
def test_a_line_that_cannot_be_read_fails_alone(folder: Any, outcomes: Any, line: bytes, reason: str) -> None:
    made = folder.read(Jsonl(path=folder.write("a.jsonl", b"\n".join([GOOD, b"", line, GOOD]))))
    assert outcomes(made) == [("1", ""), ("3", reason), ("4", "")]


@given(noise=st.lists(st.binary(max_size=40), max_size=5))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_noise_never_hides_a_good_line(folder: Any, noise: list[bytes]) -> None:
    lines = [GOOD]
    for each in noise:
        lines += [each, GOOD]
    made = folder.read(Jsonl(path=folder.write("a.jsonl", b"\n".join(lines))))
    assert sum(each.outcome == "kept" for each in made) == len(noise) + 1
    assert all(each.reason and each.row["id"] for each in made if each.outcome == "failed")


def test_windows_line_ends_and_a_byte_order_mark(folder: Any, outcomes: Any) -> None:
    made = folder.read(Jsonl(path=folder.write("a.jsonl", b"\xef\xbb\xbf" + GOOD + b"\r\n\r\n" + GOOD + b"\r\n")))
    assert outcomes(made) == [("1", ""), ("3", "")]
    assert made[0].row["answer"] == "Because."


@pytest.mark.parametrize(
    ("file", "fields", "least"),
    [
        ("llamafactory_demo/alpaca_en_demo.jsonl", {}, 1.0),
        ("llamafactory_demo/glaive_toolcall_en_demo.jsonl", {}, 1.0),
        ("llamafactory_demo/kto_en_demo.jsonl", {"keep": ("label",)}, 1.0),
        ("llamafactory_demo/dpo_en_demo.jsonl", {"shape": "preference"}, 1.0),
        ("hh_rlhf/helpful-base.jsonl", {"shape": "preference"}, 0.99),
        ("rasbt_instruct/instruction-data-with-preference.jsonl", {"shape": "preference"}, 0.99),
        ("snips/train.jsonl", {"prompt": "{text}", "answer": "{intent}"}, 1.0),
    ],
)
def test_sets_in_the_wild(folder: Any, data_dir: Path, file: str, fields: dict[str, Any], least: float) -> None:
    made = folder.read(Jsonl(path=str(data_dir / file), **fields))
    assert sum(each.outcome == "kept" for each in made) >= least * len(made)


@pytest.mark.parametrize(("column", "outcome"), [("text", "kept"), ("other", "failed")])
def test_a_row_nested_too_deep_fails_alone(folder: Any, column: str, outcome: str) -> None:
    deep = '{"' + column + '": ' + "[" * 900 + "]" * 900 + ', "queue": "x"}'
    lines = ['{"text": "hello", "queue": "x"}', deep, '{"text": "bye", "queue": "y"}']
    path = folder.write("a.jsonl", "\n".join(lines))
    made = folder.read(Jsonl(path=path, prompt="{text}", answer="{queue}"))
    assert [each.outcome for each in made] == ["kept", outcome, "kept"] and (outcome == "kept" or made[1].reason)
