"""Stages in this process, shape by shape."""

import json
from pathlib import Path
from typing import Annotated

import pytest

from graftline.pipelines import run
from graftline.pipelines.failures import ContractBroken
from graftline.stages import Execution, Made, Rows, Selector, Source, Stage, Verdict
from graftline.stages.errors import InvalidField, UnknownStage, WorldError


class Numbers(Source):
    count: int = 4

    def make_rows(self, context):
        yield from (Made({"id": f"{number:02d}", "answer": str(number)}) for number in range(self.count))


class Doubled(Source):
    """Rows of an input, and new ones made from them."""

    rows: Rows
    fault: Annotated[str, Execution] = ""

    def make_rows(self, context, rows):
        assert context.opened(self.rows) == rows
        for row in rows.rows().to_pylist():
            yield Made(row)
            yield Made({"parents": [row["id"]], "answer": str(context.seed(row["id"]))})
        if self.fault:
            raise InvalidField("cannot go on", where="x")


class Odd(Selector):
    """Keeps odd rows; `mode` says how it misbehaves."""

    mode: Annotated[str, Execution] = ""

    def select_rows(self, table, context):
        assert table["id"].to_pylist() == sorted(table["id"].to_pylist())
        found = [Verdict(row, "kept" if int(row) % 2 else "filtered", "even") for row in table["id"].to_pylist()]
        return {
            "": found, "unknown": [*found, Verdict("nobody")], "twice": [*found, found[0]], "missing": found[1:],
            "part": [Verdict(row.id, part="train") for row in found], "outcome": [Verdict(found[0].id, "failed")],
            "text": ["00"],
        }[self.mode]  # fmt: skip


class Notes(Stage):
    """A report; `mode` says what it does."""

    makes = "report"
    rows: Rows
    mode: Annotated[str, Execution] = ""

    def make(self, context, out, rows):
        if self.mode == "nothing":
            return None
        if self.mode == "stranger":
            context.opened(Numbers(count=99))
        (out / "deep").mkdir()
        (out / "deep" / "report.json").write_text(json.dumps([row["id"] for row in rows.rows().to_pylist()]))
        (out / ".half").write_text("unfinished")
        return {"_digest": "mine", "_reproducible": False, "_why": "bf16", "rows": rows.count}


class Adapter(Stage):
    makes = "adapter"
    rows: Rows

    def make(self, context, out, rows):
        (out / "adapter").mkdir()
        (out / "adapter" / "adapter_config.json").write_text(str(id(self)))
        return {"adapter_digest": "a" * 64}


class OwnRows(Stage):
    """Rows written by a make."""

    makes = "rows"
    rows: Rows

    def make(self, context, out, rows):
        import pyarrow.parquet as pq

        (out / "rows").mkdir()
        pq.write_table(rows.rows().slice(0, 2), out / "rows" / "part-x.parquet")
        return {"some": 1}


class Remembers(Stage):
    """Fails once, and finds what it left in its scratch folder."""

    makes = "report"
    rows: Rows

    def make(self, context, out, rows):
        left = context.scratch / "left"
        context.log(0, loss=3.0)
        if not left.exists():
            left.write_text("first")
            raise ConnectionError("lost")
        context.log(1, loss=2.0)
        return {"found": left.read_text(), "threads": context.resources.threads, "cpus": context.resources.cpus}


@pytest.fixture
def go(tmp_path):
    return lambda pipeline, store="store": run(pipeline, str(tmp_path / store), base=tmp_path, address="here")


def test_a_source_with_an_input(go):
    made = go(Doubled(rows=Numbers()))
    manifest = made["result"].manifest
    assert manifest["rows"] == {"in": 4, "carried": 4, "created": 4, "kept": 8, "filtered": {}, "failed": {}}
    rows = made["result"].rows().to_pylist()
    assert {row["group"] for row in rows if row["parents"]} == {"00", "01", "02", "03"}
    assert go(Doubled(rows=Numbers()), "other")["result"].digest == made["result"].digest


def test_an_error_in_a_generator_is_the_stages(go):
    with pytest.raises(InvalidField, match="cannot go on"):
        go(Doubled(rows=Numbers(), fault="x"))


def test_a_selector(go):
    made = go(Odd(rows=Numbers()))
    assert made["result"].rows(["id"])["id"].to_pylist() == ["01", "03"]
    assert made["result"].manifest["rows"]["filtered"] == {"even": 2}
    assert [row["reason"] for row in made["result"].rows(outcome="filtered").to_pylist()] == ["even", "even"]
    assert made["result"].rows(outcome="failed").num_rows == 0


@pytest.mark.parametrize(
    ("mode", "says"),
    [
        ("unknown", "'nobody', which is not among its rows"),
        ("twice", "two verdicts on '00'"),
        ("missing", "no verdict on 1 rows, such as '00'"),
        ("part", "the part 'train', which it does not have"),
        ("outcome", "gave the verdict Verdict"),
        ("text", "gave the verdict '00'"),
    ],
)
def test_a_selector_that_breaks_its_contract(go, mode, says):
    with pytest.raises(ContractBroken, match=says) as caught:
        go(Odd(rows=Numbers(), mode=mode))
    assert caught.value.where == "Odd"


def test_a_make_speaks_of_its_digest(go):
    made = go(Notes(rows=Numbers()))
    manifest = made["result"].manifest
    assert manifest["digest"] == "mine" and manifest["metrics"] == {"rows": 4}
    assert (manifest["reproducible"], manifest["why"]) == (False, "bf16")
    assert list(manifest["files"]) == ["deep/report.json"] and made["result"].json("deep/report.json") == [
        "00",
        "01",
        "02",
        "03",
    ]
    assert made.record["stages"][-1]["why"] == "bf16"


def test_an_adapters_digest_is_what_it_says(go):
    assert go(Adapter(rows=Numbers()))["result"].digest == "a" * 64


def test_rows_that_a_make_wrote(go):
    made = go(OwnRows(rows=Numbers()))
    assert made["result"].count == 2 and made["result"].manifest["rows"]["created"] == 2
    assert made["result"].rows(["id"])["id"].to_pylist() == ["00", "01"]


def test_a_make_that_breaks_its_contract(go):
    with pytest.raises(ContractBroken, match="returned NoneType"):
        go(Notes(rows=Numbers(), mode="nothing"))
    with pytest.raises(UnknownStage, match="is no input of Notes"):
        go(Notes(rows=Numbers(), mode="stranger"))


def test_scratch_outlives_a_failure_and_goes_with_the_commit(go, tmp_path):
    with pytest.raises(WorldError, match="ConnectionError: lost"):
        go(Remembers(rows=Numbers()))
    (scratch,) = tmp_path.glob("store/scratch/Remembers-*")
    assert (scratch / "left").read_text() == "first"
    made = go(Remembers(rows=Numbers()))
    assert made["result"].metrics == {"found": "first", "threads": 1, "cpus": 1.0} and not scratch.exists()
    log = (Path(made["result"].path) / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in log] == [0, 1], "what was logged before the failure is there, once"


def test_on_a_store_that_is_not_local(tmp_path):
    import pyarrow.fs as fs

    from graftline.pipelines.store import Store

    (tmp_path / "far").mkdir()
    store = Store("bucket/store", fs.SubTreeFileSystem(str(tmp_path / "far"), fs.LocalFileSystem()))
    pipeline = {"notes": Notes(rows=Odd(rows=Numbers())), "rows": OwnRows(rows=Numbers())}
    made = run(pipeline, store, base=tmp_path, address="here")
    assert made["notes"].json("deep/report.json") == ["01", "03"] and made["rows"].count == 2
    assert (made["notes"].directory("deep") / "report.json").read_text() == '["01", "03"]'
    with pytest.raises(WorldError, match="lost"):
        run(Remembers(rows=Numbers()), store, base=tmp_path, address="here")
    assert run(Remembers(rows=Numbers()), store, base=tmp_path, address="here")["result"].metrics["found"] == "first"
    assert run(pipeline, store, base=tmp_path, address="here").ran == 0
    assert [path.name for path in tmp_path.iterdir()] == ["far"]
