"""A finished run as its folder and artefacts look, written by hand: what show, inspect and the report read."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from shutil import rmtree
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from graftline.pipelines import Run
from graftline.pipelines.store import Store
from graftline.stages.rows import FIXED, schema

QUEUES = ("billing", "delivery", "returns", "account", "technical")
TEXTS = (
    "I was charged twice for my order last week and nobody answers the phone, refund me now.",
    "parcel says delivered but its not here?? neighbours dont have it either",
    "The zip broke after two days. How do I send the jacket back, and who pays for that?",
    "Can't log in since the update, the reset mail never arrives, tried three browsers.",
    "App crashes when I scan the code. Also, you billed me for the premium plan I cancelled.",
    '<script>alert("row")</script> is what my invoice shows instead of the total',
)


def row(index: int, **more: Any) -> dict[str, Any]:
    text, queue = TEXTS[index % len(TEXTS)], QUEUES[index % len(QUEUES)]
    return {
        "id": f"{index:032x}",
        "parents": [],
        "group": f"{index:032x}",
        "source": "tickets.jsonl",
        "messages": [
            {"role": "system", "content": "Name the queue of the ticket."},
            {"role": "user", "content": text},
            {"role": "assistant", "content": queue},
        ],
        "answer": queue,
        "gen": None,
        **more,
    }


class FakeRun:
    """Writes artefacts and the run's record below a folder."""

    def __init__(self, store: Path, run: str = "20260102T030405Z-quickstart-1a2b") -> None:
        self.store, self.id = store, run
        self.stages: list[dict[str, Any]] = []
        self.metrics: list[dict[str, Any]] = []
        self.fields: dict[str, dict[str, Any]] = {}
        """Key → fields, as `pipeline.json` has them."""
        self.hidden: set[str] = set()
        """Keys of stages that the pipeline does not name."""

    def stage(self, name: str, kind: str, *inputs: dict[str, Any], **more: Any) -> dict[str, Any]:
        """A line of the table of stages, with an empty artefact."""
        number = len(self.stages)
        key, fingerprint = f"{number:02x}" * 32, f"{number + 160:02x}" * 32
        path = f"{self.store}/artefacts/{name}-{fingerprint[:16]}/attempt"
        line: dict[str, Any] = {
            "key": key, "name": name, "class": f"graftline.stages.made.up.{name}", "kind": kind, "part": "",
            "fingerprint": fingerprint, "digest": f"{number + 64:02x}" * 32, "path": path, "status": "ran",
            "seconds": 1.5 * number, "rows": None, "calls": {}, "metrics": {}, "why": "",
            "inputs": [each["key"] for each in inputs], **more,
        }  # fmt: skip
        self.stages.append(line)
        self._manifest(line)
        return line

    def view(self, of: dict[str, Any], part: str, count: int) -> dict[str, Any]:
        """A line of the table for one part of a stage (whose rows lie in one file here all the same)."""
        line = self.stage(f"{of['name']}.{part}", "rows", of, part=part)
        rmtree(line["path"])
        line.update(path=of["path"], seconds=None, rows={**of["rows"], "kept": count, "carried": count})
        return line

    def rows(
        self,
        line: dict[str, Any],
        kept: list[dict[str, Any]],
        filtered: list[dict[str, Any]] = (),  # type: ignore[assignment]
        failed: list[dict[str, Any]] = (),  # type: ignore[assignment]
        created: bool = False,
        columns: dict[str, str] | None = None,
    ) -> None:
        """Gives a stage its rows; dropped ones carry a `reason`."""
        folder = Path(line["path"])
        for outcome, found in (("rows", kept), ("filtered", filtered), ("failed", failed)):
            named = {**FIXED, **(columns or {}), **({} if outcome == "rows" else {"reason": "string"})}
            if outcome == "rows" or found:
                (folder / outcome).mkdir(parents=True)
                table = pa.Table.from_pylist(list(found), schema=schema(named))
                pq.write_table(table, folder / outcome / "part-0.parquet")

        def count(dropped: list[dict[str, Any]]) -> dict[str, int]:
            reasons = [each["reason"] for each in dropped]
            return {reason: reasons.count(reason) for reason in dict.fromkeys(reasons)}

        total = len(kept) + len(filtered) + len(failed)
        line["rows"] = {
            "in": 0 if created else total, "carried": 0 if created else total, "created": total if created else 0,
            "kept": len(kept), "filtered": count(filtered), "failed": count(failed),
        }  # fmt: skip
        self._manifest(line)

    def file(self, line: dict[str, Any], name: str, value: Any) -> None:
        """Gives a stage a JSON (or, of a list of mappings and the name `.jsonl`, JSON lines) file."""
        text = "\n".join(map(json.dumps, value)) if name.endswith(".jsonl") else json.dumps(value)
        Path(line["path"], name).write_text(text, encoding="utf-8")
        self._manifest(line)

    def _manifest(self, line: dict[str, Any]) -> None:
        folder = Path(line["path"])
        folder.mkdir(parents=True, exist_ok=True)
        files = [path for path in folder.rglob("*") if path.is_file() and path.name != "artefact.json"]
        manifest = {
            "schema": 1, "stage": line["name"], "class": line["class"], "kind": line["kind"], "version": 1,
            "fingerprint": line["fingerprint"], "digest": line["digest"], "rows": line["rows"], "views": {},
            "calls": line["calls"], "metrics": line["metrics"], "seconds": line["seconds"],
            "threads": 1, "reproducible": True, "why": "",
            "versions": {"python": "3.11.2", "torch": "2.13.0", "ray": "2.60.0"},
            "files": {str(path.relative_to(folder)): {"bytes": path.stat().st_size} for path in files},
        }  # fmt: skip
        (folder / "artefact.json").write_text(json.dumps(manifest), encoding="utf-8")

    def record(self, **more: Any) -> dict[str, Any]:
        """`run.json`."""
        return {
            "schema": 1, "id": self.id, "pipeline": "quickstart", "file": "examples/quickstart.py",
            "parameters": {"budget": 200, "model": "smollm2-135m-instruct"}, "store": str(self.store),
            "started": "2026-01-02T03:04:05Z", "finished": "2026-01-02T03:08:09Z", "state": "done",
            "seconds": 244.2, "fetch_seconds": 12.5, "error": None, "stages": self.stages,
            "results": {"report": self.stages[-1]["key"]}, **more,
        }  # fmt: skip

    def manifest(self, line: dict[str, Any]) -> dict[str, Any]:
        """A stage's `artefact.json`."""
        found: dict[str, Any] = json.loads(Path(line["path"], "artefact.json").read_text(encoding="utf-8"))
        return found

    def write(self, **more: Any) -> Run:
        """Writes the run's folder and makes it the latest."""
        folder = self.store / "runs" / self.id
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "run.json").write_text(json.dumps(self.record(**more)), encoding="utf-8")
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in self.metrics))
        written = [line["key"] for line in self.stages if line["key"] not in self.hidden]
        table = {key: {"fields": self.fields.get(key, {})} for key in written}
        (folder / "pipeline.json").write_text(json.dumps({"schema": 1, "stages": table}))
        (self.store / "runs" / "latest.json").write_text(json.dumps({"id": self.id}))
        return Run.find(Store(str(self.store)), self.id)


@pytest.fixture
def fake_run(tmp_path: Path) -> Callable[[], FakeRun]:
    """A new, empty run in a store below tmp_path."""
    return lambda: FakeRun(tmp_path / "store")


@pytest.fixture
def quickstart(fake_run: Callable[[], FakeRun]) -> FakeRun:
    """A whole run: read, split, generate, score, choose, train, evaluate, serve."""
    run = fake_run()
    model = run.stage("Llm", "model", metrics={"parameters": 134515008}, status="cached")
    read = run.stage("Jsonl", "rows")
    run.rows(read, [row(i) for i in range(151)], failed=[row(900, reason="no text")], created=True)
    split = run.stage("Split", "rows", read)
    run.rows(split, [row(i) for i in range(151)])
    train_part = run.view(split, "train", 60)
    test_part = run.view(split, "test", 91)
    calls = {"model": "smollm2-135m-instruct", "requests": 260, "tokens_in": 41200, "tokens_out": 9800}
    drafts = run.stage("SelfInstruct", "rows", train_part, model, calls=calls, seconds=61.0)
    gen = {"stage": "SelfInstruct", "model": "smollm2-135m-instruct", "round": 1, "seed": 7}
    run.rows(
        drafts,
        [row(1000 + i, gen=gen) for i in range(183)],
        filtered=[row(2000 + i, reason="too like another draft") for i in range(41)]
        + [row(2100 + i, reason="too short") for i in range(9)],
        failed=[row(3000 + i, reason="the label was not found in the answer") for i in range(7)],
        created=True,
    )
    scored = run.stage("Difficulty", "rows", drafts, model, calls={**calls, "tokens_out": 0}, seconds=22.0)
    score = [0.55 + 0.25 * math.sin(i * 1.7) + 0.1 * math.sin(i * 0.31) for i in range(183)]
    ifd = {"ifd": "float64"}
    run.rows(scored, [row(1000 + i, gen=gen, ifd=score[i]) for i in range(183)], columns=ifd)
    best = sorted(range(183), key=lambda i: -score[i])
    chosen = run.stage("TopK", "rows", scored)
    run.rows(
        chosen,
        [row(1000 + i, gen=gen, ifd=score[i]) for i in best[:100]],
        filtered=[row(1000 + i, gen=gen, ifd=score[i], reason="not in the top 100") for i in best[100:]],
        columns=ifd,
    )
    tuned = run.stage("Train", "adapter", model, chosen, train_part, seconds=98.0)
    run.fields[tuned["key"]] = {"model": {"$": model["key"]}, "rows": {"$": chosen["key"]}}
    for step in range(60):
        loss = 3.1 * math.exp(-step / 14) + 0.25 + 0.12 * math.sin(step * 2.3)
        line = {"stage": "Train", "key": tuned["key"], "step": step, "loss": loss, "tokens_per_second": 190 + step % 7}
        run.metrics.append(line | ({"eval_loss": loss * 0.9 + 0.3} if step % 10 == 9 else {}))
    report = run.stage("Compare", "report", model, tuned, test_part, seconds=30.0)
    values = {"exact_match": (0.0, 0.0, 0.048, 0.853, 0.756, 0.916), "choice": (0.31, 0.21, 0.42, 0.88, 0.787, 0.936)}
    samples = [
        {"id": row(i)["id"], "prompt": TEXTS[i], "reference": QUEUES[i % 5],
         "answers": {"base": "I'm sorry to hear that.", "tickets": QUEUES[(i if i != 2 else 0) % 5]},
         "correct": {"base": False, "tickets": i != 2}}
        for i in range(6)
    ]  # fmt: skip
    run.file(report, "report.json", {
        "columns": ["base", "tickets"],
        "metrics": {
            name: {
                "base": {"value": v[0], "n": 75, "ci_low": v[1], "ci_high": v[2], "truncated": 61},
                "tickets": {"value": v[3], "n": 75, "ci_low": v[4], "ci_high": v[5], "truncated": 0},
            }
            for name, v in values.items()
        },
        "gains": {
            name: {"tickets": {"value": v[3] - v[0], "n": 75, "ci_low": v[4] - v[1], "ci_high": v[5] - v[0]}}
            for name, v in values.items()
        },
        "confusion": {"tickets": {
            queue: {queue: 12 + i, **({QUEUES[i - 2]: i} if i % 2 else {"(unparsed)": 1})}
            for i, queue in enumerate(QUEUES)
        }},
        "intervals": "95 %, Wilson", "samples": samples, "decoding": {"temperature": 0.0, "max_new_tokens": 7},
    })  # fmt: skip
    service = run.stage("Service", "service", model, tuned, report, seconds=20.0)
    run.file(service, "transcript.json", [
        {"request": {"model": "tickets", "messages": row(1)["messages"][:2]}, "status": 200, "text": "delivery",
         "seconds": 0.41},
        {"request": {"model": "nobody", "messages": row(0)["messages"][:2]}, "status": 404,
         "text": "there is no model nobody; use base or tickets", "seconds": 0.02},
    ])  # fmt: skip
    return run
