"""Counting tokens as a model reads them, without loading it: for `plan`, which must not wait for torch."""

from __future__ import annotations

import functools
import json
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftline.stages.errors import InvalidField
from graftline.stages.expected import Mark, Row, Usage, product, turns_of, worst
from graftline.stages.lm import tiny
from graftline.stages.lm.reference import base_of
from graftline.stages.lm.scripted import MEAN, sentence

if TYPE_CHECKING:
    from graftline.stages.stage import Stage

Messages = Sequence[Mapping[str, str]]
Template = Callable[[Messages, bool], str | None]
TURN, ASKED = 5, 3
"""Tokens of a chat template around a turn, and before the answer, where the template is not known: as in ChatML."""
COMPLAINT = 35
"""Tokens of what a model is told of an answer that cannot be read, with the template around both."""
LATIN, FAR = 0x250, 0x2E80
"""Code points below which a token has about four characters, and below which about two; above, it has one."""


class Reader:
    """Counts tokens.

    Args:
        count: of a text.
        template: renders messages in the chat template, and what stands before an answer if one is asked for; None
            where it refuses them (None: not known).
        scripted: whether answers are computed, a word of which counts as a token.
        prices: of a million tokens read and written.
    """

    def __init__(
        self,
        count: Callable[[str], float],
        template: Template | None = None,
        scripted: bool = False,
        prices: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        self._count, self._template, self.scripted, self.prices = count, template, scripted, prices
        self._known: dict[Any, float] = {}

    def text(self, text: str) -> float:
        """Tokens of a text alone."""
        if text not in self._known:
            self._known[text] = self._count(text)
        return self._known[text]

    def whole(self, messages: Messages, ask: bool = False) -> float:
        """Tokens of a conversation in the chat template; `ask`: with what stands before an answer, which is how text is
        counted that is scored."""
        key = (ask, *((turn["role"], turn["content"]) for turn in messages))
        if key not in self._known:
            self._known[key] = self._rendered(messages, ask)
        return self._known[key]

    def asked(self, messages: Messages, prefix: str = "") -> float:
        """Tokens of a request that is answered by writing."""
        if self.scripted:
            return sum(len(turn["content"].split()) + 4 for turn in messages) + len(prefix.split())
        return (self.whole(messages, ask=True) if messages else 0.0) + (self.text(prefix) if prefix else 0.0)

    def written(self, most: int, like: float | None = None) -> float:
        """Tokens of an answer, the end of the turn included.

        Args:
            most: tokens at which it is cut off.
            like: tokens of texts like it; None: nothing is known of it, and half of `most` is less than a factor of two
                from all that is longer than a quarter.
        """
        if self.scripted:
            return min(most, MEAN + 1)
        return max(1.0, min(most, most / 2 if like is None else like + 1))

    def rewritten(self, row: Row) -> Row:
        """A row whose last user turn the model has written, after its likeness: where answers are computed, they have
        likeness to nothing."""
        turns = turns_of(row)
        asking = max((place for place, turn in enumerate(turns) if turn["role"] == "user"), default=None)
        if not self.scripted or asking is None:
            return row
        said = {"role": "user", "content": sentence(zlib.crc32(turns[asking]["content"].encode()))}
        return {**row, "messages": (*turns[:asking], said, *turns[asking + 1 :])}

    def usage(
        self, requests: int | None, prompt: float | None, answer: float | None, mark: Mark = "", retries: int = 0
    ) -> Usage:
        """So many requests that are answered by writing.

        Args:
            prompt, answer: mean tokens of one.
            mark: how well it is known how many.
            retries: how often one whose answer cannot be read is asked again, with that answer and what is wrong with
                it. How many will be is not known: this is the geometric middle between none and all of them, of which
                neither has half or twice the requests while there are fewer than three retries.
        """
        if retries and prompt is not None and answer is not None:
            prompt = math.sqrt(prompt * (prompt + retries * (answer + COMPLAINT) / 2))
        asked = product(requests, math.sqrt(1 + retries))
        read, wrote = product(asked, prompt), product(asked, answer)
        money: float | None = 0.0
        if any(self.prices):
            money = None if read is None or wrote is None else (read * self.prices[0] + wrote * self.prices[1]) / 1e6
        return Usage(asked, read, wrote, money=money, mark=worst(mark, "~" if retries else ""))

    def _rendered(self, messages: Messages, ask: bool) -> float:
        text = None if self._template is None else self._template(messages, ask)
        if text is not None:
            return self._count(text)
        return sum(self.text(turn["content"]) + TURN for turn in messages) + ASKED * ask


def root_of(model: Stage) -> Stage | None:
    """The model at the root of a model or adapter; None where a user's own stage does not say which it is."""
    try:
        return base_of(model)
    except InvalidField:
        return None


def reader_of(root: Stage | None, directory: Callable[[Stage], Path | None]) -> Reader:
    """Who counts for a model: with its own tokenizer where its files are on this disk, else by the length of texts.

    Args:
        root: the model, which is made from no other (None: it is not known which).
        directory: says where a model's files are (None: not here).
    """
    if root is None:
        return Reader(estimated)
    scripted = getattr(root, "engine", "") == "scripted"
    prices = (getattr(root, "price_in", 0.0), getattr(root, "price_out", 0.0))
    if getattr(root, "model", "") == "tiny":
        return Reader(_counting(tiny.backend()), _template(tiny.TEMPLATE), scripted, prices)
    found = directory(root)
    if found is None or not (found / "tokenizer.json").is_file():
        return Reader(estimated, None, scripted, prices)
    return Reader(*_opened(found), scripted, prices)


def estimated(text: str) -> float:
    """Tokens of a text by its length: four characters of Latin script, two of another alphabet, or one of a script with
    a sign for a syllable or a word."""
    if text.isascii():
        return len(text) / 4
    return sum(0.25 if each < LATIN else 0.5 if each < FAR else 1.0 for each in map(ord, text))


@functools.lru_cache(maxsize=4)
def _opened(directory: Path) -> tuple[Callable[[str], float], Template | None]:
    from tokenizers import Tokenizer

    source = ""
    if (directory / "chat_template.jinja").is_file():
        source = (directory / "chat_template.jinja").read_text(encoding="utf-8")
    elif (directory / "tokenizer_config.json").is_file():
        named = json.loads((directory / "tokenizer_config.json").read_text(encoding="utf-8")).get("chat_template")
        source = named if isinstance(named, str) else ""
    return _counting(Tokenizer.from_file(str(directory / "tokenizer.json"))), _template(source) if source else None


def _counting(tokenizer: Any) -> Callable[[str], float]:
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)


def _template(source: str) -> Template:
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(why: str) -> None:
        raise jinja2.TemplateError(why)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals |= {"raise_exception": refuse, "bos_token": "", "eos_token": ""}
    template = environment.from_string(source)

    def rendered(messages: Messages, ask: bool) -> str | None:
        try:
            return template.render(messages=[dict(each) for each in messages], add_generation_prompt=ask)
        except (jinja2.TemplateError, IndexError, TypeError):  # as it will when the row is asked: the row's own affair
            return None

    return rendered
