"""The common shapes of instruction and preference data, as messages. What a record lacks is a `RowFault`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from graftline.stages.errors import RowFault
from graftline.stages.read.template import text_of, value_of

Record = Mapping[str, Any]
Messages = list[dict[str, str]]

ROLES = {
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "human": "user",
    "gpt": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "observation": "tool",
}
"""Names of roles in the wild → ours."""
ANSWERS = ("completion", "response", "answer", "output")
"""Columns that hold the answer to a `prompt`, in the order in which they are looked for."""
TURN = re.compile(r"\n\n(Human|Assistant):[ ]?")


def messages_of(record: Record, shape: str) -> Messages:
    """The conversation of a record.

    Args:
        shape: `messages`, `prompt`, `alpaca`, `sharegpt`, or `auto`: the first of them whose columns it has.

    Raises:
        RowFault: the record has not this shape, or a role or text is missing.
    """
    shape = _shape(record) if shape == "auto" else shape
    if shape == "messages":
        return turns(value_of(record, "messages"))
    if shape == "sharegpt":
        found = turns(value_of(record, "conversations"))
        return _after_system(record, found)
    if shape == "alpaca":
        return [*_instruction(record), _said("assistant", record, "output")]
    found = _prompt(record)
    answer = next((name for name in ANSWERS if record.get(name) is not None), None)
    return found if answer is None else found + _side(record, answer)


def preference_of(record: Record) -> tuple[Messages, str, str]:
    """Prompt, chosen and rejected answer of a record: `chosen` and `rejected` as texts, as messages, or as whole
    conversations (messages, or `Human:`/`Assistant:` transcripts) that begin alike.

    Raises:
        RowFault: it has no prompt or answer, both are one, or they answer different prompts.
    """
    chosen, rejected = _side(record, "chosen"), _side(record, "rejected")
    if "prompt" in record:
        prompt = _prompt(record)
    elif "conversations" in record or "messages" in record:
        prompt = messages_of(record, "sharegpt" if "conversations" in record else "messages")
    elif "instruction" in record:
        prompt = _instruction(record)
    else:
        prompt = chosen[:-1]
    for side in (chosen, rejected):
        if side[:-1] and side[:-1] != prompt:
            raise RowFault("chosen and rejected answer different prompts")
        if side[-1]["role"] != "assistant":
            raise RowFault("chosen or rejected does not end with an answer")
    if not prompt or prompt[-1]["role"] == "assistant":
        raise RowFault("has no prompt before chosen and rejected")
    if chosen[-1] == rejected[-1]:
        raise RowFault("chosen and rejected are the same")
    return prompt, chosen[-1]["content"], rejected[-1]["content"]


def turns(value: Any) -> Messages:
    """Messages under our names; a text is read as JSON (so that CSV can hold them).

    Raises:
        RowFault: they are no list of roles and texts.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise RowFault("its messages are text, not a list") from None
    if not isinstance(value, list):
        raise RowFault("its messages are no list")
    found = []
    for number, turn in enumerate(value, 1):
        if not isinstance(turn, Mapping):
            raise RowFault(f"message {number} is no object with a role and a content")
        given = turn.get("role", turn.get("from"))
        content = turn.get("content", turn.get("value"))
        role = ROLES.get(given) if isinstance(given, str) else None
        if role is None:
            raise RowFault(f"message {number} has the role {str(given)[:40]!r}, not system, user, assistant or tool")
        if not isinstance(content, str):
            raise RowFault(f"message {number} has no text")
        found.append({"role": role, "content": content})
    return found


def checked(messages: Messages) -> Messages:
    """Messages that make a conversation.

    Raises:
        RowFault: there are none, none is the user's, the system's is not first, or the answer is empty.
    """
    if not messages:
        raise RowFault("has no messages")
    if any(message["role"] == "system" for message in messages[1:]):
        raise RowFault("has a system message that is not the first")
    if not any(message["role"] == "user" for message in messages):
        raise RowFault("has no user message")
    if messages[-1]["role"] == "assistant" and not messages[-1]["content"].strip():
        raise RowFault("the answer is empty")
    return messages


def _shape(record: Record) -> str:
    if record.get("chosen") is not None and record.get("rejected") is not None:
        raise RowFault("has chosen and rejected answers: say shape='preference', or which other shape to take")
    for shape, columns in (("messages", {"messages"}), ("sharegpt", {"conversations"})):
        if columns <= record.keys():
            return shape
    if {"instruction", "output"} <= record.keys():
        return "alpaca"
    if "prompt" in record and any(name in record for name in ANSWERS):
        return "prompt"
    has = ", ".join(str(name)[:40] for name in list(record)[:12])
    raise RowFault(f"has none of the known shapes (its columns: {has or 'none'}); give prompt= and answer= templates")


def _said(role: str, record: Record, column: str) -> dict[str, str]:
    return {"role": role, "content": text_of(value_of(record, column), column)}


def _after_system(record: Record, messages: Messages) -> Messages:
    """The messages, after a column `system` where it has text and they have no system message."""
    system = record.get("system")
    if not isinstance(system, str) or not system.strip() or (messages and messages[0]["role"] == "system"):
        return messages
    return [{"role": "system", "content": system}, *messages]


def _instruction(record: Record) -> Messages:
    instruction, given = _said("user", record, "instruction"), record.get("input")
    if given is not None and (text := text_of(given, "input")).strip():
        instruction["content"] += f"\n\n{text}"
    if not instruction["content"].strip():
        raise RowFault("the prompt is empty")
    return _after_system(record, [instruction])


def _prompt(record: Record) -> Messages:
    value = value_of(record, "prompt")
    found = turns(value) if isinstance(value, list) else [_said("user", record, "prompt")]
    if not any(turn["content"].strip() for turn in found):
        raise RowFault("the prompt is empty")
    return _after_system(record, found)


def _side(record: Record, column: str) -> Messages:
    """An answer column as messages that end with it."""
    value = value_of(record, column)
    if isinstance(value, Mapping):
        found = turns([value])
    elif isinstance(value, list):
        found = turns(value)
    elif isinstance(value, str) and TURN.match(value):
        parts = TURN.split(value)[1:]
        names = ("user" if name == "Human" else "assistant" for name in parts[::2])
        found = [{"role": role, "content": text} for role, text in zip(names, parts[1::2], strict=True)]
    else:
        found = [_said("assistant", record, column)]
    if not found or not found[-1]["content"].strip():
        raise RowFault("the answer is empty")
    return found
