"""Of several responses to one prompt, the one that suits the model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from graftline.stages.errors import InvalidField
from graftline.stages.expected import Expected, Given, prompt_turns
from graftline.stages.rows import Columns, canonical
from graftline.stages.score.perplexity import Perplexity
from graftline.stages.select.ranking import missing
from graftline.stages.shapes import Selector, Verdict
from graftline.stages.specification import Paper, specifications
from graftline.stages.stage import Context, Stage, View

if TYPE_CHECKING:
    import pyarrow as pa


class Grape(Selector):
    """Keeps of each prompt's responses the likeliest under the model that will be trained (GRAPE).

    Rows answer one prompt where all their messages but the final assistant turn are equal. Likelihood does not know
    truth, so a `gate` should sort out wrong responses; it applies before the choice. The scores must be the mean
    log-probability a token (a sum prefers short responses) of the final turn alone (the earlier turns of a
    conversation would weigh the less the longer the response is) under the very model that `Train` starts from:
    `score.Perplexity(model=student, of="last")`.

    Args:
        by: the column of the mean log-probability of the response.
        gate: a numeric column, 0 where a response is not valid, such as `verified`; missing is not valid (None: all
            are).
        prefer: where responses come from, in order of preference, for those with equal scores; others come after them,
            and then the smaller id first. Each is one of: a file that was read (`"experts.jsonl"`), a model that wrote
            the response (`"Qwen2.5-7B-Instruct"`, as in `gen.model`), or a row's whole `source` (`"experts.jsonl:17"`,
            `"generated"`). Of a path, and of a model's name with its owner, rows hold the last part, so that the rest
            tells nothing apart: files to be ranked need different names. A teacher that is an adapter goes by its
            stage's class.

    The properties its tests check: at most one row of a prompt; the gate comes first; a monotone transform of the
    scores changes nothing, nor does the rows' order; of a conversation, what was said before the response changes
    nothing; two files, and two teachers, are ranked. A prompt of which no response can be kept disappears, and one of
    its rows has the reason `no response to its prompt is left`, so that the account counts such prompts.

    Raises:
        InvalidField: the scores are a `Perplexity`'s of other tokens than the last turn's.
    """

    version = 2  # files and teachers can be preferred
    method = "select.grape"
    papers = (Paper("The Best Instruction-Tuning Data are Those That Fit"),)
    specimen: ClassVar[Mapping[str, Any]] = {"by": "score"}

    by: str = "logprob_mean"
    gate: str | None = None
    prefer: tuple[str, ...] = ()

    def check(self) -> None:
        for stage in makers(self.rows, self.by):
            if isinstance(stage, Perplexity) and stage.of != "last":
                raise InvalidField(
                    f"the {self.by!r} of Perplexity(of={stage.of!r}) is not that of the response, given its prompt",
                    where="Grape.rows",
                    do='score with Perplexity(of="last")',
                )

    def columns_needed(self) -> Mapping[str, Columns]:
        gate: Columns = {self.gate: "number"} if self.gate else {}
        return {"rows": {"messages": "messages", "source": "string", "gen": "gen", **gate, self.by: "number"}}

    def expected(self, given: Given) -> Expected:
        """At most a row for each prompt; of a sample of many rows, few share theirs."""
        rows = given.rows(self.rows)
        return Expected(rows.at_most(rows.groups(lambda row: canonical(prompt_turns(row))), mark="<="))

    def select_rows(self, table: pa.Table, context: Context) -> Iterable[Verdict]:
        columns = ["id", "source", "gen", self.by, *([self.gate] if self.gate else [])]
        prompts: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
        for row, messages in zip(table.select(columns).to_pylist(), table["messages"].to_pylist(), strict=True):
            prompts[prompt(messages or [])].append(row)
        for rows in prompts.values():
            reasons = {row["id"]: self._fault(row) for row in rows}
            good = [row for row in rows if not reasons[row["id"]]]
            if good:
                reasons |= {row["id"]: "not the likeliest response" for row in good}
                reasons[min(good, key=self._place)["id"]] = ""
            else:
                reasons[min(reasons)] = "no response to its prompt is left"
            yield from (Verdict(row, "filtered" if why else "kept", why) for row, why in reasons.items())

    def _fault(self, row: Mapping[str, Any]) -> str:
        """Why a response cannot be chosen ("" = it can)."""
        if self.gate and (missing(row[self.gate]) or not row[self.gate]):
            return f"not valid by {self.gate}"
        return f"no {self.by}" if missing(row[self.by]) else ""

    def _place(self, row: Mapping[str, Any]) -> tuple[float, int, str]:
        """Among the responses to a prompt: the smallest is chosen."""
        names = origins(row)
        known = (place for place, name in enumerate(self.prefer) if any(_names(name, each) for each in names))
        return -row[self.by], next(known, len(self.prefer)), row["id"]


def origins(row: Mapping[str, Any]) -> list[str]:
    """What a row's response can be said to come from: its source, the file that this is a line of, and the model that
    wrote it."""
    source = row["source"] or ""
    file, _, line = source.rpartition(":")
    found = [source, file if line.isdecimal() else "", (row["gen"] or {}).get("model") or ""]
    return [name for name in found if name]


def _names(name: str, origin: str) -> bool:
    """Whether a name, with or without the path before it, is the one a row holds."""
    return name == origin or name.endswith(f"/{origin}")


def makers(rows: Stage, column: str) -> Iterator[Stage]:
    """The stages that add a column which rows have; none where it came with them. Row stages pass on the columns of
    their `rows`, and parts those of what they are parts of."""
    seen: set[str] = set()
    stack: list[Any] = [rows]
    while stack:
        stage = stack.pop()
        if stage.key in seen:
            continue
        seen.add(stage.key)
        if column in stage.columns_added():
            yield stage
        else:
            stack += specifications(stage.__dict__.get("of" if isinstance(stage, View) else "rows"))


def prompt(messages: Sequence[Mapping[str, str]]) -> str:
    """What a row's response answers: all its messages but a final assistant turn, as one text."""
    answered = bool(messages) and messages[-1]["role"] == "assistant"
    return canonical(messages[:-1] if answered else messages)
