"""The generated files are current, and made as they should be."""

import json
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import pytest
from pydantic import Field

from graftline.pipelines import stubs
from graftline.stages import train
from graftline.stages.errors import InvalidField
from graftline.stages.shapes import Scorer
from graftline.stages.specification import Plug
from graftline.stages.stage import Model, Report, Rows, Stage

ROOT = Path(__file__).resolve().parents[2]
AGAIN = "run `graftline methods --write-stubs`"


def test_every_stub_is_current():
    stale = [path for path, text in stubs.stubs() if not path.exists() or path.read_text() != text]
    assert stale == [], AGAIN


def test_the_golden_fingerprints_are_current():
    """A change here means that users' stores no longer have what they had: mean it."""
    assert json.loads((ROOT / stubs.GOLDEN).read_text()) == json.loads(stubs.golden()), AGAIN


def test_a_family_exports_its_classes_its_folders_and_theirs():
    text = stubs.stub(train)
    assert "from graftline.stages.train import adapter as adapter\n" in text
    names = [line.rpartition(" ")[2] for line in text.splitlines() if line.startswith("from")]
    assert set(dir(train)) <= set(names) and len(names) == len(set(names))


class Slot(Plug):
    depth: int = 1


class Filled(Slot):
    method = "test.filled"


class Needy(Scorer):
    method = "test.needy"
    needs = {"length": "number", "note": "any"}
    model: Model
    metric: Literal["mean", "max"]
    shares: Annotated[tuple[Annotated[float, Field(gt=0, lt=1)], ...], Field(min_length=2)]
    names: dict[str, Report]
    more: tuple[Rows, ...]
    least: Annotated[int, Field(ge=5)]
    knob: Slot
    maybe: str | None


def test_a_specimen_is_made_from_the_types_of_the_required_fields():
    made = stubs.specimen(Needy)
    assert isinstance(made, Needy)
    assert (made.metric, made.least, made.maybe) == ("mean", 5, stubs.COLUMN)
    assert len(made.shares) == 2 and all(0 < share < 1 for share in made.shares)
    assert made.model.kind == "model" and made.more[0].kind == "rows"
    assert stubs.fingerprint(made) == stubs.fingerprint(stubs.specimen(Needy)) != stubs.fingerprint(made.rows)


class Agreeing(Stage):
    makes = "report"
    method = "test.agreeing"
    low: int
    high: int

    def check(self) -> None:
        if self.low >= self.high:
            raise InvalidField("is not below high", where="Agreeing.low")


class Told(Agreeing):
    specimen: ClassVar[dict[str, int]] = {"high": 2}


def test_a_class_whose_fields_must_agree_is_asked_for_a_specimen():
    with pytest.raises(InvalidField, match=r"Agreeing.*not below high.*`specimen`"):
        stubs.specimen(Agreeing)
    assert stubs.specimen(Told) == Told(low=1, high=2)


def test_writing_changes_only_what_is_stale(tmp_path):
    stale, fresh, new = tmp_path / "stale.pyi", tmp_path / "fresh.pyi", tmp_path / "folder" / "new.json"
    stale.write_text("old")
    fresh.write_text("text")
    generated = [(path, "text") for path in (stale, fresh, new)]
    assert stubs.write(generated) == [stale, new]
    assert stale.read_text() == new.read_text() == "text" and stubs.write(generated) == []
