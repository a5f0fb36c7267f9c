import math
from typing import Annotated

import numpy as np
import pytest

from graftline.pipelines.artefacts import Identity, entry
from graftline.pipelines.board import LocalBoard
from graftline.pipelines.budget import Budget, Purse
from graftline.pipelines.store import Store
from graftline.pipelines.work import Work, input_rows, made_product, plain
from graftline.stages import Adapter, Plug, Resources, Rows, Selector, Source, Stage, View
from graftline.stages.artefact import Artefact
from graftline.stages.errors import UnknownStage
from graftline.stages.specification import Template


class Numbers(Source):
    n: int = 0


class Split(Selector):
    views = ("train", "test")


class Tuned(Stage):
    makes = "adapter"
    n: int = 0


class Needing(Plug):
    rows: Rows


class Everything(Stage):
    makes = "report"
    one: Rows
    many: tuple[Rows, ...]
    named: dict[str, Adapter]
    plug: Needing
    empty: tuple[Rows, ...] = ()
    number: int = 3
    inside: Annotated[Rows | None, Template] = None

    def expand(self):
        return {"hidden": Numbers(n=9)}


def order(stage, *inputs):
    store = Store("/nowhere")
    opened = {
        each.key: Artefact({"kind": each.kind, "n": getattr(each, "n", 0)}, store.filesystem, f"/nowhere/{number}")
        for number, each in enumerate(inputs)
    }
    return Work(
        stage=stage, chain=(stage,), fingerprints={}, identity=Identity("X", "f"), inputs=opened, store=store, base="/",
        resources=Resources(), board=LocalBoard(Purse(Budget()), lambda told: None, lambda key, stage, metric: None),
    )  # fmt: skip


def test_inputs_arrive_shaped_like_their_fields():
    split = Split(rows=Numbers())
    part = View(of=split, part="train")
    stage = Everything(
        one=Numbers(n=1),
        many=(Numbers(n=2), part),
        named={"a": Tuned(n=3)},
        plug=Needing(rows=Numbers(n=4)),
        inside=Numbers(n=7),
    )
    work = order(stage, Numbers(n=1), Numbers(n=2), split, Tuned(n=3), Numbers(n=4), Numbers(n=9))
    found = work.arguments(stage)
    assert set(found) == {"one", "many", "named", "hidden"}
    assert found["one"].manifest["n"] == 1 and found["many"][0].manifest["n"] == 2 and found["many"][1].part == "train"
    assert (
        list(found["named"]) == ["a"] and found["named"]["a"].manifest["n"] == 3 and found["hidden"].manifest["n"] == 9
    )
    assert work.opened(Numbers(n=4)).manifest["n"] == 4, "what a plug holds is opened by its stage"
    with pytest.raises(UnknownStage, match="no input of Everything"):
        work.opened(Numbers(n=5))
    assert [each.manifest["n"] for each in input_rows(work)] == [1, 2, 0, 4, 9]


def test_what_a_makes_metrics_say_of_it():
    work = order(Tuned())
    files = {"adapter/x": entry(b"1"), "log.jsonl": entry(b"2"), "t": entry(b"3")}
    own = made_product(work, files, {"adapter_digest": "a" * 64, "loss": 1.0}, 5.0)
    assert own.digest == "a" * 64 and own.metrics == {"adapter_digest": "a" * 64, "loss": 1.0} and own.began == 5.0
    said = made_product(work, files, {"_digest": "d", "_why": "timing", "_reproducible": False}, 5.0)
    assert (said.digest, said.metrics, said.reproducible, said.why) == ("d", {}, False, "timing")
    asked = {"requests": 4, "tokens_in": 20}
    assert made_product(work, files, {"_calls": asked, "n": 1}, 5.0).calls == asked and said.calls == {}
    quiet = made_product(work, files, {"_volatile": ["t"]}, 5.0)
    assert quiet.digest == made_product(work, {"adapter/x": entry(b"1")}, {}, 5.0).digest
    assert quiet.digest != made_product(work, files, {}, 5.0).digest


def test_metrics_are_plain():
    given = {"a": np.float32(0.5), "b": np.int64(3), 4: [math.inf, float("nan")], "t": (True, None), "x": object}
    found = plain(given)
    assert found == {"a": 0.5, "b": 3, "4": [None, None], "t": [True, None], "x": str(object)}
    assert type(found["b"]) is int
