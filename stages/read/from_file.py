"""What all readers of files share: fields, ids and groups, and what is said of what cannot be read."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import PurePosixPath
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from graftline.stages.errors import InvalidField, RequestError, RowFault
from graftline.stages.expected import Expected, Given, Row, Volume, spread
from graftline.stages.read.conversation import checked, messages_of, preference_of
from graftline.stages.read.template import check_template, fill, text_of, value_of
from graftline.stages.rows import FIXED, PREFERENCE, Columns, canonical, group_value, row_id
from graftline.stages.shapes import Made, Source
from graftline.stages.specification import Pins
from graftline.stages.stage import Context

READ, LARGE = 512, 1 << 20
"""Rows, and characters, of which a sample is taken."""
NOT_TEXT = ("id", "parents", "group", "source", "gen")
Shape = Literal["auto", "messages", "prompt", "alpaca", "sharegpt", "preference"]


@dataclass(frozen=True, slots=True)
class Record:
    """One record of a file: its columns, or why it cannot be read.

    Args:
        number: its line, or its position from 1 in a file that has no lines.
        columns: None where it cannot be read.
        fault: why not.
        raw: bytes that stand for it in its id where it cannot be read (none: its columns do).
    """

    number: int
    columns: Mapping[str, Any] | None
    fault: str = ""
    raw: bytes = b""


class FileSource(Source):
    """Rows from one file. Its formats are the classes below it.

    Args:
        path: the file; a relative path counts from the pipeline file's folder; a URI may name a remote one.
        shape: `messages` (role and content), `prompt` (with completion, response, answer or output), `alpaca`
            (instruction, input, output), `sharegpt` (conversations), `preference` (chosen and rejected; makes
            preference rows); `auto` takes the first that a record has, `preference` left out.
        prompt: instead of a shape, a template over the record's columns, such as `"{subject}: {text}"`, which makes
            the user's turn; outer white space is dropped.
        answer: such a template for the assistant's turn (None: rows of prompts alone).
        system: such a template for the system message, of any shape, where a record has none.
        group: column with the split key (None: each row is a group of its own).
        keep: further columns to keep, as strings.
        limit: read at most this many records (None: all).
        max_bytes: bytes a record may have; a longer one has failed.

    A record that cannot be read becomes a failed row that says why and whose `source` says where ("tickets.jsonl:17");
    the rest goes on. Its id is a hash of the row's content, so that appending a row changes no other id.

    Raises:
        FileMissing: the file is not there.
        RequestError: nothing in it can be read, or a column asked for is in no record.
    """

    on_driver_node = True
    specimen: ClassVar[Mapping[str, Any]] = {"prompt": "{text}", "answer": "{queue}"}

    path: str
    shape: Shape = "auto"
    prompt: str | None = None
    answer: str | None = None
    system: str | None = None
    group: str | None = None
    keep: tuple[str, ...] = ()
    limit: Annotated[int, Field(ge=1)] | None = None
    max_bytes: Annotated[int, Field(ge=1)] = 1_000_000

    def check(self) -> None:
        name = type(self).__name__
        for field, least in (("prompt", 1), ("answer", 1), ("system", 0)):
            if (template := getattr(self, field)) is not None:
                check_template(template, f"{name}.{field}", at_least=least)
        if self.answer is not None and self.prompt is None:
            raise InvalidField("needs a prompt beside it", where=f"{name}.answer", do="give prompt=, or drop answer=")
        if self.prompt is not None and self.shape not in ("auto", "prompt"):
            raise InvalidField(
                f"{self.shape!r} has a prompt of its own", where=f"{name}.shape", do="drop it, or prompt= and answer="
            )
        for position, column in enumerate(self.keep):
            if column in {**FIXED, **PREFERENCE, "reason": ""} or column in self.keep[:position]:
                raise InvalidField(f"{column!r} is taken", where=f"{name}.keep.{position}", do="leave it out")

    def columns_made(self) -> Columns:
        fixed = PREFERENCE if self.shape == "preference" else FIXED
        return {**fixed, **{column: "string" for column in self.keep}}

    def pins(self, resolve: Pins) -> Mapping[str, Any]:
        return {"path": resolve.file(self.path)}

    def preflight(self, file: Callable[[str], str]) -> None:
        """Reads until a row is fine and every column was seen: with a good file, its first record."""
        unseen = set(self.keep)
        for made in self.read(file(self.path)):
            unseen = {column for column in unseen if made.row[column] is None}
            if made.outcome == "kept" and not unseen:
                return

    def expected(self, given: Given) -> Expected:
        path = given.file(self.path)
        if "://" in path or not os.path.isfile(path):
            return Expected(Volume())
        return Expected(Volume(self.count(path), tuple(self.sampled(path))).at_most(self.limit))

    def sampled(self, path: str) -> list[Row]:
        """Some rows of a local file, from all over its beginning: labels often come one after the other."""
        found: list[Row] = []
        size = 0
        with contextlib.suppress(RequestError):  # that nothing can be read is told elsewhere
            for made in islice(self.read(path), READ):
                if made.outcome == "kept":
                    found.append({name: value for name, value in made.row.items() if name not in NOT_TEXT})
                    size += len(str(made.row))
                if size > LARGE:
                    break
        return spread(found)

    def make_rows(self, context: Context, **inputs: Any) -> Iterator[Made]:
        yield from self.read(context.file(self.path))

    def count(self, path: str) -> int | None:
        """About how many records a local file has, where that can be told quickly: its lines."""
        with open(path, "rb") as stream:
            return sum(block.count(b"\n") for block in iter(lambda: stream.read(1 << 20), b""))

    def records(self, path: str) -> Iterator[Record]:
        """The file's records in order; a fault of the whole file is a `RequestError`."""
        raise NotImplementedError(f"{type(self).__name__}.records")

    def read(self, path: str) -> Iterator[Made]:
        """Every row of the file, as it is read."""
        name = PurePosixPath(path).name
        seen: dict[str, int] = {}
        unseen, kept, first = set(self.keep), 0, ""
        for record in islice(self.records(path), self.limit):
            unseen = {column for column in unseen if column not in (record.columns or {})}
            fault, row = self._row(record)
            content = row.pop("content")
            identity = row_id((), content)
            count = seen[identity] = seen.get(identity, -1) + 1
            identity = row_id((), content, count) if count else identity
            group = row.pop("group", None) or identity
            row |= {"id": identity, "parents": [], "group": group, "source": f"{name}:{record.number}", "gen": None}
            kept += not fault
            first = first or (f"{name}:{record.number}: {fault}" if fault else "")
            yield Made(row, "failed", fault) if fault else Made(row)
        where = f"{type(self).__name__}({name!r})"
        if not kept:
            what = f"no row can be read; the first is {first}" if first else "the file has no rows"
            raise RequestError(what, where=where, do="check the shape, or name the columns: prompt=, answer=")
        if unseen:
            raise RequestError(f"no row has the column {min(unseen)!r}", where=where, do="correct keep=")

    def _row(self, record: Record) -> tuple[str, dict[str, Any]]:
        """Why it failed ("" where it did not), and its columns, with `content`: what its id is made of."""
        try:
            if record.columns is None:
                raise RowFault(record.fault)
            content = self._content(record.columns)
            if self.group is not None:
                content["group"] = group_value(text_of(value_of(record.columns, self.group), self.group))
            for column in self.keep:
                value = record.columns.get(column)
                content[column] = None if value is None else text_of(value, column)
            self._refuse_unfit(content)
        except (RowFault, RecursionError) as error:
            fault = error.what if isinstance(error, RowFault) else "is nested too deep to be read"
            raw = record.raw or canonical(record.columns).encode()
            empty: dict[str, Any] = {
                column: [] if type_ == "messages" else None for column, type_ in self.columns.items()
            }
            return fault, {**empty, "content": ["failed", hashlib.sha256(raw).hexdigest()]}
        row = {**content, "content": content}
        if self.shape != "preference":
            last = content["messages"][-1]
            row["answer"] = last["content"] if last["role"] == "assistant" else None
        return "", row

    def _content(self, record: Mapping[str, Any]) -> dict[str, Any]:
        if self.shape == "preference":
            prompt, chosen, rejected = preference_of(record)
            return {"prompt": checked(self._with_system(prompt, record)), "chosen": chosen, "rejected": rejected}
        messages = messages_of(record, self.shape) if self.prompt is None else self._filled(record)
        return {"messages": checked(self._with_system(messages, record))}

    def _filled(self, record: Mapping[str, Any]) -> list[dict[str, str]]:
        found = []
        for name, role, template in (("prompt", "user", self.prompt), ("answer", "assistant", self.answer)):
            if template is not None:
                found.append({"role": role, "content": fill(template, record).strip()})
                if not found[-1]["content"]:
                    raise RowFault(f"the {name} is empty")
        return found

    def _with_system(self, messages: list[dict[str, str]], record: Mapping[str, Any]) -> list[dict[str, str]]:
        if self.system is None or not messages or messages[0]["role"] == "system":
            return messages
        return [{"role": "system", "content": fill(self.system, record)}, *messages]

    def _refuse_unfit(self, content: Mapping[str, Any]) -> None:
        """Texts that Arrow or a tokenizer cannot hold, and too many of them."""
        size = 0
        for value in content.values():
            for text in (turn["content"] for turn in value) if isinstance(value, list) else (value,):
                if text is None:
                    continue
                if "\x00" in text:
                    raise RowFault("has a zero character (NUL)")
                try:
                    size += len(text.encode())
                except UnicodeEncodeError:
                    raise RowFault("has characters that are no Unicode (bad UTF-8 or a lone surrogate)") from None
        if size > self.max_bytes:
            raise RowFault(too_long(self.max_bytes))


def too_long(most: int) -> str:
    """The reason of a record above its limit."""
    return f"is longer than max_bytes={most:,}"
