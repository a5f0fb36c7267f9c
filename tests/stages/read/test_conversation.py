"""Every common shape becomes the same messages, and what is missing is said."""

from __future__ import annotations

import json
from typing import Any

import pytest

from graftline.stages.errors import RowFault
from graftline.stages.read.conversation import checked, messages_of, preference_of

USER, ANSWER = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}
SYSTEM = {"role": "system", "content": "Be brief."}
SHAPES: dict[str, list[dict[str, Any]]] = {
    "messages": [
        {"messages": [USER, ANSWER]},
        {"messages": json.dumps([USER, ANSWER])},
        {"messages": [USER | {"name": "x"}, ANSWER]},
    ],
    "sharegpt": [
        {"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "Because."}]},
        {"conversations": [USER, ANSWER]},
    ],
    "alpaca": [
        {"instruction": "Why?", "input": "", "output": "Because."},
        {"instruction": "Why?", "output": "Because."},
    ],
    "prompt": [
        {"prompt": "Why?", "completion": "Because."},
        {"prompt": "Why?", "response": "Because."},
        {"prompt": "Why?", "answer": "Because."},
        {"prompt": "Why?", "output": "Because."},
        {"prompt": [USER], "completion": [ANSWER]},
    ],
}


@pytest.mark.parametrize(("shape", "record"), [(shape, record) for shape in SHAPES for record in SHAPES[shape]])
def test_all_shapes_say_the_same(shape: str, record: dict[str, Any]) -> None:
    assert messages_of(record, shape) == [USER, ANSWER]
    assert messages_of({**record, "other": 1}, "auto") == [USER, ANSWER]


def test_input_and_system_columns() -> None:
    record = {"instruction": "Translate.", "input": "Hallo", "output": "Hello", "system": "Be brief."}
    found = messages_of(record, "auto")
    assert found == [
        SYSTEM,
        {"role": "user", "content": "Translate.\n\nHallo"},
        {"role": "assistant", "content": "Hello"},
    ]
    assert messages_of({"conversations": [USER, ANSWER], "system": "Be brief."}, "auto") == [SYSTEM, USER, ANSWER]
    assert messages_of({"conversations": [SYSTEM, USER], "system": "no"}, "auto") == [SYSTEM, USER]


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "has no messages"),
        (None, "no list"),
        (3, "no list"),
        ("hello", "text, not a list"),
        ("[" * 100_000, "text, not a list"),
        ([USER, "hello"], "message 2 is no object"),
        ([USER, {"role": "bot", "content": "x"}], "message 2 has the role 'bot'"),
        ([{"content": "x"}], "message 1 has the role 'None'"),
        ([{"role": ["user"], "content": "x"}], "message 1 has the role"),
        ([{"role": "user", "content": None}], "message 1 has no text"),
        ([{"role": "user"}], "message 1 has no text"),
        ([USER, SYSTEM, ANSWER], "system message that is not the first"),
        ([SYSTEM, ANSWER], "no user message"),
        ([USER, {"role": "assistant", "content": " \n"}], "the answer is empty"),
    ],
)
def test_what_is_no_conversation_is_refused(messages: Any, reason: str) -> None:
    with pytest.raises(RowFault, match=reason):
        checked(messages_of({"messages": messages}, "messages"))


def test_an_unknown_shape_names_the_columns() -> None:
    with pytest.raises(RowFault, match=r"its columns: text, label\); give prompt= and answer="):
        messages_of({"text": "x", "label": "y"}, "auto")
    with pytest.raises(RowFault, match="say shape='preference'"):
        messages_of({"prompt": "x", "chosen": "y", "rejected": "z"}, "auto")
    with pytest.raises(RowFault, match="no column 'output'"):
        messages_of({"instruction": "x"}, "alpaca")
    with pytest.raises(RowFault, match="the prompt is empty"):
        messages_of({"prompt": " ", "completion": "x"}, "auto")
    with pytest.raises(RowFault, match="the answer is empty"):
        messages_of({"prompt": "x", "completion": ""}, "auto")


NO = {"role": "assistant", "content": "No."}
HH = "\n\nHuman: Why?\n\nAssistant: "


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "Why?", "chosen": "Because.", "rejected": "No."},
        {"prompt": [USER], "chosen": [ANSWER], "rejected": [NO]},
        {"prompt": "Why?", "chosen": [USER, ANSWER], "rejected": [USER, NO]},
        {"chosen": [USER, ANSWER], "rejected": [USER, NO]},
        {"chosen": f"{HH}Because.", "rejected": f"{HH}No."},
        {
            "conversations": [{"from": "human", "value": "Why?"}],
            "chosen": {"from": "gpt", "value": "Because."},
            "rejected": {"from": "gpt", "value": "No."},
        },
        {"instruction": "Why?", "input": "", "output": "x", "chosen": "Because.", "rejected": "No."},
        {"messages": [USER], "chosen": "Because.", "rejected": "No."},
    ],
)
def test_preferences(record: dict[str, Any]) -> None:
    assert preference_of(record) == ([USER], "Because.", "No.")


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"chosen": "a", "rejected": "b"}, "no prompt"),
        ({"prompt": "x", "chosen": "a"}, "no column 'rejected'"),
        ({"prompt": "x", "chosen": "a", "rejected": "a"}, "the same"),
        ({"prompt": "x", "chosen": "a", "rejected": ""}, "the answer is empty"),
        ({"prompt": "x", "chosen": "a", "rejected": []}, "the answer is empty"),
        ({"chosen": [USER, ANSWER], "rejected": [SYSTEM, NO]}, "different prompts"),
        ({"prompt": "x", "chosen": [USER], "rejected": [USER]}, "does not end with an answer"),
        ({"messages": [USER, ANSWER], "chosen": "a", "rejected": "b"}, "no prompt before"),
    ],
)
def test_what_is_no_preference_is_refused(record: dict[str, Any], reason: str) -> None:
    with pytest.raises(RowFault, match=reason):
        preference_of(record)
