"""One row of each cluster of near-duplicates."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from graftline.stages.rows import Columns, user_text
from graftline.stages.select.clusters import UnionFind
from graftline.stages.select.ranking import ranked
from graftline.stages.shapes import Selector, Verdict
from graftline.stages.specification import Paper
from graftline.stages.stage import Context

if TYPE_CHECKING:
    import pyarrow as pa

UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
"""Thai, Lao, Burmese, Khmer, Japanese, Chinese: written without spaces, so each character stands for a word."""
WORD = re.compile(rf"[{UNSPACED}]|[^\W{UNSPACED}]+")
STRICTEST = 0.8
"""Pairs are proposed from this similarity at the latest, since the index has too few bands for more."""
Shingles = frozenset[str]


class NearDuplicates(Selector):
    """Keeps one row of each cluster of near-duplicates, found by MinHash and locality-sensitive hashing.

    Two texts are near-duplicates where the sets of their runs of `shingle` words have a Jaccard similarity of at least
    `threshold`; hashing only proposes pairs, each is then measured. Pairs that share a row join into one cluster, so
    its ends may be less alike. A text shorter than `shingle` words is a duplicate only of one with the same words, and
    one without words only of the very same text. Case does not count. For texts of a sentence or two, where a changed
    word touches most runs of five, take `shingle=2`.

    Args:
        threshold: the least similarity, above 0, up to 1.
        shingle: words of a run (characters in scripts that are written without spaces).
        text: what is compared: the user's turns (`prompt`), or all turns (`conversation`).
        by: a numeric column; of a cluster the row with the best value stays (None: the one with the smallest id).
            Rows without a value (missing or NaN) come last, and ties go to the smaller id.
        largest: the largest value is the best, else the smallest.
        permutations: hash functions of a signature; more miss fewer pairs near the threshold.

    The properties its tests check: of 1,000 pairs at 0.85 or above it finds at least 99 %; exact copies are always
    together; exactly one row of a cluster stays; nothing depends on the rows' order.
    """

    method = "score.near_dup"
    papers = (Paper("SantaCoder: don't reach for the stars!"),)

    threshold: Annotated[float, Field(gt=0, le=1)] = 0.7
    shingle: Annotated[int, Field(ge=1)] = 5
    text: Literal["prompt", "conversation"] = "prompt"
    by: str | None = None
    largest: bool = True
    permutations: Annotated[int, Field(ge=16)] = 256

    def columns_needed(self) -> Mapping[str, Columns]:
        score: Columns = {self.by: "number"} if self.by else {}
        return {"rows": {"messages": "messages", **score}}

    def select_rows(self, table: pa.Table, context: Context) -> Iterable[Verdict]:
        ids = table["id"].to_pylist()
        clusters = self._clusters(ids, [self._text(messages) for messages in table["messages"].to_pylist()])
        kept: set[str] = set()
        for place in ranked(ids, table[self.by].to_pylist() if self.by else None, self.largest):
            cluster = clusters.root(ids[place])
            if cluster in kept:
                yield Verdict(ids[place], "filtered", "near-duplicate of a kept row")
            else:
                kept.add(cluster)
                yield Verdict(ids[place])

    def _text(self, messages: list[dict[str, str]] | None) -> str:
        if self.text == "prompt":
            return user_text(messages)
        return "\n\n".join(turn["content"] or "" for turn in messages or ())

    def _clusters(self, ids: list[str], texts: list[str]) -> UnionFind:
        from datasketch import MinHash, MinHashLSH

        clusters = UnionFind()
        copies: defaultdict[Shingles, list[str]] = defaultdict(list)  # thousands of equal rows are one to the index
        for row, text in zip(ids, texts, strict=True):
            copies[shingles(text, self.shingle)].append(row)
        for rows in copies.values():
            for row in rows:
                clusters.join(rows[0], row)
        index = MinHashLSH(threshold=min(self.threshold, STRICTEST), num_perm=self.permutations)
        known = {rows[0]: each for each, rows in copies.items()}
        encoded = ([shingle.encode("utf-8", "surrogatepass") for shingle in each] for each in known.values())
        sketches = MinHash.generator(encoded, num_perm=self.permutations, scheme="affine32")
        for (row, each), sketch in zip(known.items(), sketches, strict=True):
            for other in index.query(sketch):
                if clusters.root(other) != clusters.root(row) and jaccard(each, known[other]) >= self.threshold:
                    clusters.join(row, other)
            index.insert(row, sketch)
        return clusters


def shingles(text: str, length: int) -> Shingles:
    """A text's runs of so many words; where it is shorter, all its words as one run, and where it has none, the text
    itself: were their sets empty, all short texts would be each other's duplicates."""
    words = WORD.findall(unicodedata.normalize("NFKC", text).casefold())
    runs = frozenset("\x1f".join(words[start : start + length]) for start in range(len(words) - length + 1))
    return runs or frozenset(["\x1f".join(words) or f"\x1e{text.strip()}"])


def jaccard(one: Shingles, other: Shingles) -> float:
    """The share of two sets' elements that both have."""
    common = len(one & other)
    return common / (len(one) + len(other) - common)
