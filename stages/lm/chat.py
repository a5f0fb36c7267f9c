"""Conversations as tokens: prompts, and rows with the mask of what is trained.

A row is rendered turn by turn, so that what is trained is exactly what generation would have had to write: the
assistant's text and its end-of-turn token, after the very tokens of the prompt. Nothing is searched for in the text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from graftline.stages.errors import InvalidField, NoTrainedToken, RowFault

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from graftline.stages.lm.engine import Messages


def render(tokenizer: PreTrainedTokenizerBase, messages: Messages, *, prefix: str = "") -> list[int]:
    """The tokens of a conversation up to the assistant turn asked for, which starts with `prefix`. Without messages
    the prefix is all there is: plain text, without a template.

    Raises:
        RowFault: the conversation cannot be rendered.
        InvalidField: the tokenizer has no chat template.
    """
    if prefix and not messages:
        ids: list[int] = tokenizer(prefix)["input_ids"]
        return ids
    text = _text(tokenizer, messages, ask=True)
    _refuse_marks(tokenizer, prefix, "prefix")
    return _tokens(tokenizer, text + prefix)


def render_whole(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> list[int]:
    """The tokens of a whole conversation, whoever speaks last.

    Raises:
        RowFault: the conversation cannot be rendered.
        InvalidField: the tokenizer has no chat template.
    """
    return _tokens(tokenizer, _text(tokenizer, messages))


def render_supervised(
    tokenizer: PreTrainedTokenizerBase, messages: Messages, *, last: bool = False
) -> tuple[list[int], list[bool]]:
    """The tokens of a whole conversation, and for each whether it is trained: True on every assistant turn's text and
    its end-of-turn token; with `last`, on those of the last turn alone.

    Raises:
        NoTrainedToken: there is no assistant turn, or the turns are empty; with `last`, the last turn is none.
        RowFault: the conversation cannot be rendered, or a turn's first characters join the template's last token.
        InvalidField: the template changes earlier turns when later ones follow, or marks no end of turn.
    """
    ids = render_whole(tokenizer, messages)
    mask = [False] * len(ids)
    for start, end in _assistant_spans(tokenizer, messages, ids, len(messages) - 1 if last else 0):
        mask[start:end] = [True] * (end - start)
    if not any(mask):
        what = "does not end in an assistant turn with text" if last else "has no assistant turn with text"
        raise NoTrainedToken(what, do="give the row an answer")
    return ids, mask


def continuation(tokenizer: PreTrainedTokenizerBase, messages: Messages, text: str) -> tuple[list[int], list[int]]:
    """The tokens of a prompt, and those of an answer to it with its end-of-turn token."""
    ids, mask = render_supervised(tokenizer, [*messages, {"role": "assistant", "content": text}])
    start = len(render(tokenizer, messages))
    return ids[:start], [token for token, trained in zip(ids[start:], mask[start:], strict=True) if trained]


def _assistant_spans(
    tokenizer: PreTrainedTokenizerBase, messages: Messages, ids: list[int], first: int = 0
) -> Iterator[tuple[int, int]]:
    """Start and end (exclusive) of each assistant turn from message `first` on, in the tokens of the whole
    conversation."""
    special = _special(tokenizer).ids
    for index, message in enumerate(messages):
        if index < first or message["role"] != "assistant" or not message["content"].strip():
            continue
        before = _tokens(tokenizer, _text(tokenizer, messages[:index], ask=True))
        until = ids if index == len(messages) - 1 else _tokens(tokenizer, _text(tokenizer, messages[: index + 1]))
        where = f"messages[{index}]"
        if ids[: len(until)] != until:
            raise InvalidField(
                "the chat template renders this turn differently when others follow it",
                where=where,
                do="use a template that only appends, or rows of one assistant turn",
            )
        if until[: len(before)] != before:
            raise RowFault(
                f"the answer's first characters ({message['content'][:12]!r}) are one token with the template before"
                " it, so the prompt's tokens would not be what the model is asked with",
                where=where,
                do="strip white space from its start",
            )
        ends = [position for position in range(len(before), len(until)) if until[position] in special]
        if not ends:
            raise InvalidField(
                "the chat template marks no end of an assistant turn with a special token",
                where=where,
                do="use a template whose turns end in the tokenizer's eos token",
            )
        yield len(before), ends[-1] + 1


def _text(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, str]], ask: bool = False) -> str:
    import jinja2

    plain = [{"role": message["role"], "content": message["content"]} for message in messages]
    if not plain:
        raise RowFault("has no message that the assistant could answer", do="start with a user turn")
    if tokenizer.chat_template is None:
        raise InvalidField(
            "the model's tokenizer has no chat template", where=tokenizer.name_or_path, do="use an instruct model"
        )
    for index, message in enumerate(plain):
        _refuse_marks(tokenizer, message["content"], f"messages[{index}]")
    try:
        return str(tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=ask))
    except (jinja2.TemplateError, IndexError) as error:
        roles = ", ".join(message["role"] for message in plain) or "none"
        raise RowFault(f"the chat template refuses these turns ({roles}): {error}") from error


def _refuse_marks(tokenizer: PreTrainedTokenizerBase, text: str, where: str) -> None:
    for mark in _special(tokenizer).marks:
        if mark in text:
            raise RowFault(
                f"contains the chat template's own {mark}, which would end the turn",
                where=where,
                do="remove it from the text",
            )


def _tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


@dataclass(frozen=True)
class _Special:
    """A tokenizer's special tokens: all their ids, and those the template writes between turns, which in a message
    would be read as a turn's end."""

    ids: frozenset[int]
    marks: tuple[str, ...]


def _special(tokenizer: PreTrainedTokenizerBase) -> _Special:
    known = _SPECIAL.get(tokenizer)
    if known is None:
        added = {index: str(token) for index, token in tokenizer.added_tokens_decoder.items() if token.special}
        sample = str(tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False))
        marks = tuple(token for token in {*added.values(), *tokenizer.all_special_tokens} if token in sample)
        known = _SPECIAL[tokenizer] = _Special(frozenset({*added, *tokenizer.all_special_ids}), tuple(sorted(marks)))
    return known


_SPECIAL: WeakKeyDictionary[Any, _Special] = WeakKeyDictionary()
"""Looking them up takes longer than rendering a row, so once a tokenizer."""
