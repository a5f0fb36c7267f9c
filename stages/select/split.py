"""Training, development and test parts."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from graftline.stages.errors import InvalidField, NothingKept
from graftline.stages.expected import Expected, Given, worst
from graftline.stages.rows import Columns, canonical, joined, split_groups
from graftline.stages.shapes import Selector, Verdict
from graftline.stages.stage import Context, View

if TYPE_CHECKING:
    import pyarrow as pa

PARTS = ("train", "dev", "test")
Share = Annotated[float, Field(ge=0, le=1)]


class Split(Selector):
    """Puts each row into one of the parts `.train`, `.dev` and `.test`, never cutting a group.

    Rows belong together that share a group (a made row's group joins its parents' groups), or a value of `by`.
    Without `stratify` a group's part is drawn by a hash of its name and the seed: the shares hold on average, and
    appending a row moves no other group. With it the groups of a stratum are sorted by that hash and cut so that each
    part gets its share of them, exactly up to one group (largest remainder); an appended row may then move others of
    its stratum.

    Args:
        shares: of train, dev and test, 0 to 1 each, together 1.
        by: a string column; rows with one value of it stay together, beside those of one group.
        stratify: a column whose values are to be spread like the shares, such as `answer` (None: none). A group's
            stratum is its most frequent value.
        seed: another seed, another draw.

    Raises:
        NothingKept: a part with a share above 0 got no row.

    The properties its tests check: each group is in exactly one part; the draw depends on groups, shares and seed
    alone; appending rows moves no group; strata are cut exactly.
    """

    method = "select.split"
    origin = "hashing of groups and proportional allotment by largest remainder; no paper"
    views = PARTS

    shares: tuple[Share, Share, Share] = (0.4, 0.1, 0.5)
    by: str = "group"
    stratify: str | None = None
    seed: int = 0

    def check(self) -> None:
        if abs(sum(self.shares) - 1) > 1e-9:
            raise InvalidField(
                f"the shares add up to {sum(self.shares):g}", where="Split.shares", do="make them add up to 1"
            )

    @property
    def train(self) -> View:
        """The rows to train on."""
        return View(of=self, part="train")

    @property
    def dev(self) -> View:
        """The rows to choose by."""
        return View(of=self, part="dev")

    @property
    def test(self) -> View:
        """The rows for reports."""
        return View(of=self, part="test")

    def columns_needed(self) -> Mapping[str, Columns]:
        stratum: Columns = {self.stratify: "any"} if self.stratify else {}
        return {"rows": {"group": "string", **stratum, self.by: "string"}}

    def expected(self, given: Given) -> Expected:
        rows, parts, end = given.rows(self.rows), {}, 0.0
        for part, share in zip(PARTS, self.shares, strict=True):
            start, end = end, end + share
            count = None if rows.count is None else round(rows.count * end) - round(rows.count * start)
            parts[part] = rows.like(count, worst(rows.mark, "~"))
        return Expected(parts)

    def select_rows(self, table: pa.Table, context: Context) -> Iterable[Verdict]:
        ids, values = table["id"].to_pylist(), table[self.by].to_pylist()
        groups = [
            [f"group/{part}" for part in split_groups(group)] + ([f"by/{value}"] if value is not None else [])
            for group, value in zip(
                table["group"].to_pylist(), values if self.by != "group" else [None] * len(values), strict=True
            )
        ]
        names = joined(groups)
        if self.stratify:
            parts = drawn_by_stratum(names, table[self.stratify].to_pylist(), self.shares, self.seed)
        else:
            parts = {name: drawn(name, self.shares, self.seed) for name in names}
        for part, share in zip(PARTS, self.shares, strict=True):
            if share and part not in parts.values():
                raise NothingKept(
                    f"the part {part!r} got none of {len(set(names))} groups",
                    where=self.name,
                    do="give more rows, a larger share, or fewer strata"
                    if self.stratify
                    else "give more rows or a larger share, or cut exactly with stratify=",
                )
        return [Verdict(row, part=parts[name]) for row, name in zip(ids, names, strict=True)]


def position(name: str, seed: int) -> float:
    """Where a group stands, from 0 up to 1."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:6], "big") / 2**48


def drawn(name: str, shares: Sequence[float], seed: int) -> str:
    """The part in which a group's position falls."""
    place, end = position(name, seed), 0.0
    for part, share in zip(PARTS, shares, strict=True):
        end += share
        if place < end:
            return part
    return next(part for part, share in reversed(list(zip(PARTS, shares, strict=True))) if share)


def drawn_by_stratum(
    names: Sequence[str], values: Sequence[object], shares: Sequence[float], seed: int
) -> dict[str, str]:
    """Group → part, each stratum cut by the shares."""
    seen: dict[str, Counter[str]] = defaultdict(Counter)
    for name, value in zip(names, values, strict=True):
        seen[name][canonical(value)] += 1
    strata: dict[str, list[str]] = defaultdict(list)
    for name, counts in seen.items():
        strata[min(counts, key=lambda value: (-counts[value], value))].append(name)
    parts: dict[str, str] = {}
    for members in strata.values():
        members.sort(key=lambda name: (position(name, seed), name))
        cut = [part for part, count in zip(PARTS, allotted(len(members), shares), strict=True) for _ in range(count)]
        parts.update(zip(members, cut, strict=True))
    return parts


def allotted(count: int, shares: Sequence[float]) -> list[int]:
    """`count` divided by the shares into whole numbers: rounded down, what is left to the largest remainders (ties to
    the earlier part)."""
    exact = [round(count * share, 9) for share in shares]
    given = [int(each) for each in exact]
    order = sorted(range(len(shares)), key=lambda index: (given[index] - exact[index], index))
    for index in order[: count - sum(given)]:
        given[index] += 1
    return given
