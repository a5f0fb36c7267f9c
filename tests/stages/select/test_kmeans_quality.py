"""k-means quality: exactly the budget, from every cluster, the better rows more often."""

from __future__ import annotations

import json
import math
import random
import warnings
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graftline.pipelines import run
from graftline.stages import Embedder, Scorer, read, select
from graftline.stages.errors import InvalidField, MissingColumn, RunError, WrongKind
from graftline.stages.lm.llm import Llm
from graftline.stages.rows import user_text
from graftline.stages.select import KmeansQuality
from graftline.stages.select.kmeans_quality import shared_out

HAS = {"ifd": "float64", "embedding": "list<float32>"}
NAN = float("nan")


class Words(Scorer):
    """How many words the user says, in `words`."""

    adds = {"words": "int64"}

    def score_rows(self, table: pa.Table, context: Any) -> dict[str, list[int]]:
        return {"words": [len(user_text(messages).split()) for messages in table["messages"].to_pylist()]}


def corner(kind: int, shift: float) -> list[float]:
    return [float(place == kind) + shift * (place == 7) for place in range(8)]


@pytest.fixture
def kept(given_rows: Any, table: Any, context: Any) -> Any:
    """Which of these rows stay, in two orders."""

    def select_rows(rows: list[dict[str, Any]], **fields: Any) -> list[str]:
        stage = KmeansQuality(rows=given_rows(has=HAS), by="ifd", **fields)
        whole, found = table(rows, **HAS), []
        for order in (list(range(len(rows))), random.Random(4).sample(range(len(rows)), len(rows))):
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                verdicts = list(stage.select_rows(whole.take(pa.array(order, pa.int64())), context))
            assert sorted(each.id for each in verdicts) == sorted(each["id"] for each in rows)
            found.append(sorted(each.id for each in verdicts if each.outcome == "kept"))
        assert found[0] == found[1]
        return found[0]

    return select_rows


def rows(counts: tuple[int, ...] = (30, 20, 10)) -> list[dict[str, Any]]:
    draw = random.Random(1)
    return [
        {"id": f"{'abcd'[kind]}{number:02}", "ifd": draw.random(), "embedding": corner(kind, 0.01 * draw.random())}
        for kind, count in enumerate(counts)
        for number in range(count)
    ]


@pytest.mark.parametrize("budget", [1, 3, 12, 59, 60, 100])
@pytest.mark.parametrize("clusters", [1, 3, None])
def test_exactly_the_budget(kept: Any, budget: int, clusters: int | None) -> None:
    found = kept(rows(), budget=budget, clusters=clusters)
    assert len(found) == len(set(found)) == min(budget, 60)


def test_every_cluster_gets_its_share_and_passes_on_what_it_cannot_use(kept: Any) -> None:
    found = kept(rows(), budget=12, clusters=3)
    assert [sum(row[0] == kind for row in found) for kind in "abc"] == [4, 4, 4]
    found = kept(rows(), budget=50, clusters=3)
    assert [sum(row[0] == kind for row in found) for kind in "abc"] == [20, 20, 10]


def test_without_temperature_the_best_of_each_cluster(kept: Any) -> None:
    made = rows()
    best = [max((row for row in made if row["id"][0] == kind), key=lambda row: row["ifd"])["id"] for kind in "abc"]
    worst = [min((row for row in made if row["id"][0] == kind), key=lambda row: row["ifd"])["id"] for kind in "abc"]
    assert kept(made, budget=3, clusters=3, temperature=0.0) == best
    assert kept(made, budget=3, clusters=3, temperature=0.0, largest=False) == worst
    assert kept(made, budget=3, clusters=3, seed=1) != kept(made, budget=3, clusters=3, seed=2)


def test_the_odds_of_the_draw(given_rows: Any) -> None:
    """One of two rows that differ by two standard deviations: e² to 1, over 2,000 seeds."""
    first = sum(
        KmeansQuality(rows=given_rows(has=HAS), by="ifd", budget=1, seed=seed)._drawn(["a", "b"], [3.0, 5.0])[0] == "b"
        for seed in range(2000)
    )
    assert abs(first / 2000 - 1 / (1 + math.exp(-2))) < 0.03


def test_rows_without_quality_come_last_and_without_embedding_never(kept: Any) -> None:
    made = rows((6,))
    made[0]["ifd"], made[1]["ifd"], made[2]["embedding"] = None, NAN, None
    assert kept(made, budget=3) == ["a03", "a04", "a05"]
    assert kept(made, budget=4) == ["a00", "a03", "a04", "a05"]
    assert kept(made, budget=9) == ["a00", "a01", "a03", "a04", "a05"]
    with pytest.raises(RunError, match="none of 6 rows has a value in 'ifd'"):
        kept([{**row, "ifd": NAN} for row in made], budget=2)
    assert kept([*made, {**made[4], "id": "a06", "ifd": math.inf}], budget=1) == ["a06"]
    assert kept([{**row, "embedding": None} for row in made], budget=2) == []


def test_all_the_same_and_one_row(kept: Any) -> None:
    same = [{**row, "ifd": 1.0, "embedding": corner(0, 0.0)} for row in rows()]
    assert len(kept(same, budget=8)) == 8
    assert kept(rows()[:1], budget=8) == ["a00"]


@given(st.integers(1, 60), st.lists(st.integers(1, 9), min_size=1, max_size=8).map(sorted))
def test_the_budget_is_shared_out_to_the_last_row(budget: int, sizes: list[int]) -> None:
    shares = shared_out(budget, sizes)
    assert sum(shares) == min(budget, sum(sizes)) and all(
        share <= size for share, size in zip(shares, sizes, strict=True)
    )
    wanting = [share for share, size in zip(shares, sizes, strict=True) if share < size]
    assert not wanting or max(shares) - min(wanting) <= 1, "nobody has two more than one who could use one"


def test_what_it_takes(given_rows: Any) -> None:
    fields: dict[str, Any] = {"rows": given_rows(has={"ifd": "float64"}), "by": "ifd", "budget": 3}
    assert KmeansQuality(**fields).embedder == Embedder("minilm-l6")
    assert list(KmeansQuality(**fields).expand()) == ["embedded"]
    assert KmeansQuality(**{**fields, "rows": given_rows(has=HAS)}).expand() == {}
    for wrong in ({"budget": 0}, {"clusters": 0}, {"temperature": -1.0}, {"temperature": NAN}, {"seed": -1}):
        with pytest.raises(InvalidField):
            KmeansQuality(**{**fields, **wrong})
    with pytest.raises(WrongKind, match="takes embedder"):
        KmeansQuality(**fields, embedder=Llm("tiny"))
    with pytest.raises(MissingColumn, match="'other'"):
        KmeansQuality(**{**fields, "by": "other"})


def test_in_a_run_the_embeddings_are_made_once(tmp_path: Path) -> None:
    texts = ["my order is late", "my parcel is late", "no signal here", "no signal at all", "refund my money now"]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    source = read.Jsonl(path="rows.jsonl", prompt="{text}")
    scored = Words(rows=select.NearDuplicates(rows=source))
    two = {
        name: KmeansQuality(rows=scored, by="words", budget=budget, embedder=Embedder("tiny"))
        for name, budget in (("small", 2), ("large", 4))
    }
    made = run(two, str(tmp_path / "store"), base=tmp_path, address="here")
    assert [made["small"].count, made["large"].count] == [2, 4]
    names = [line["name"] for line in made.record["stages"]]
    assert names.count("Embedding") == names.count("tiny") == 1
