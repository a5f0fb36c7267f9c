"""A run's record: `run.json`, rewritten as it advances, `metrics.jsonl` and TensorBoard's events."""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from graftline.pipelines.graph import Graph
from graftline.pipelines.store import Store
from graftline.pipelines.tensorboard import Events
from graftline.stages.artefact import Artefact
from graftline.stages.expected import AMOUNTS
from graftline.stages.stage import Stage, View
from graftline.stages.value_graph import to_json

if TYPE_CHECKING:
    from graftline.pipelines.planning import Plan

SAVE_EVERY = 1.0
"""Seconds between two writes of what only says how far it is."""
REMOTE_EVERY = 15.0
LATEST = "runs/latest.json"


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Record:
    """Writes one run's folder.

    Args:
        store: the store.
        plan: what is run.
        name: the pipeline's name.
        parameters: what it was built with.
        file: the pipeline file.
    """

    def __init__(self, store: Store, plan: Plan, name: str, parameters: Mapping[str, Any], file: str = "") -> None:
        self.store = store
        self.id = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{name}-{secrets.token_hex(2)}"
        self.folder = f"runs/{self.id}"
        self._lock = threading.RLock()
        self._began = time.monotonic()
        self._saved = self._flushed = float("-inf")
        self._metrics: list[str] = []
        self._events = Events(store, self.folder)
        self._lines: dict[str, dict[str, Any]] = {}
        self.run: dict[str, Any] = {
            "schema": 1,
            "id": self.id,
            "pipeline": name,
            "file": file,
            "parameters": {key: value if _is_plain(value) else str(value) for key, value in parameters.items()},
            "store": store.shown,
            "started": now(),
            "finished": None,
            "state": "running",
            "seconds": 0.0,
            "fetch_seconds": 0.0,
            "calls": {},
            "error": None,
            "stages": [],
            "results": {},
        }
        self.add(plan.graph)
        self.planned(plan)
        self.run["results"] = dict(plan.roots)
        table = to_json(plan.graph.roots)
        store.write_json(
            f"{self.folder}/pipeline.json",
            {**table, "pipeline": name, "base": plan.base, "file": file, "parameters": self.run["parameters"]},
        )
        store.write_json(f"{self.folder}/lock.json", plan.pins.to_dict())
        self.save()
        store.write_json(LATEST, {"schema": 1, "id": self.id})

    def add(self, graph: Graph, why: str = "", asked_by: str = "") -> None:
        """Adds a graph's stages to the table; `asked_by`: key of the running stage that asked for them."""
        with self._lock:
            for stage in graph.stages.values():
                if stage.key in self._lines:
                    continue
                line: dict[str, Any] = {
                    "key": stage.key,
                    "name": stage.name,
                    "class": stage.qualified,
                    "kind": stage.kind,
                    "fingerprint": graph.fingerprint(stage),
                    "digest": "",
                    "path": "",
                    "part": stage.part if isinstance(stage, View) else "",
                    "status": "pending",
                    "seconds": None,
                    "rows": None,
                    "calls": {},
                    "metrics": {},
                    "inputs": [each.key for each in graph.reads[stage.key]],
                    "why": why,
                    "asked_by": asked_by,
                }
                self._lines[stage.key] = line
                self.run["stages"].append(line)

    def planned(self, plan: Plan) -> None:
        """Keeps what a plan expects of the stages that will run, to be held against what then happens."""
        with self._lock:
            for step in plan.steps:
                if step.status != "cached" and not isinstance(step.stage, View):
                    self._lines[step.key].setdefault("planned", {"rows": step.rows, **step.calls.to_dict()})

    def line(self, key: str) -> dict[str, Any]:
        return self._lines[key]

    def update(self, key: str, save: bool = True, **fields: Any) -> None:
        """Changes a stage's line."""
        with self._lock:
            self._lines[key].update(fields)
            if save:
                self.save()

    def took(self, stage: Stage, artefact: Artefact, status: str, why: str = "", account: Any = None) -> None:
        """A stage's artefact is there; `account`: of a stage that ran in another one's tasks, whose artefact it is."""
        manifest = artefact.manifest
        rows = manifest["rows"]
        if artefact.part:
            rows = {
                **rows,
                "kept": artefact.count,
                "filtered": {},
                "failed": {},
                "created": 0,
                "carried": artefact.count,
            }
        fields: dict[str, Any] = {
            "status": status,
            "digest": artefact.digest,
            "path": artefact.path,
            "seconds": manifest["seconds"],
            "rows": rows,
            "calls": manifest["calls"],
            "metrics": manifest["metrics"],
            "ledger": manifest.get("ledger", ""),
            "reproducible": manifest["reproducible"],
            "why": why or manifest["why"] or self._lines[stage.key]["why"],
        }
        if account is not None:
            fields |= {"digest": "", "path": "", "seconds": None, "rows": account, "calls": {}, "metrics": {}}
        elif isinstance(stage, View):
            fields |= {"seconds": None, "calls": {}, "metrics": {}, "ledger": ""}
        self.update(stage.key, **fields)

    def logged(self, key: str, line: Mapping[str, Any]) -> None:
        """Appends to `metrics.jsonl`, and to TensorBoard's events."""
        with self._lock:
            name, told = self._lines[key]["name"], round(time.time(), 3)
            text = json.dumps({"stage": name, "key": key, "time": told, **line})
            self._events.add(name, line, told)
            if self.store.local:
                with open(self.store.local_path(f"{self.folder}/metrics.jsonl"), "a", encoding="utf-8") as stream:
                    stream.write(text + "\n")
                return
            self._metrics.append(text)
            if time.monotonic() - self._flushed > REMOTE_EVERY:
                self._flush()

    def _flush(self) -> None:
        if self._metrics:
            self._flushed = time.monotonic()
            self.store.write_bytes(
                f"{self.folder}/metrics.jsonl", "".join(f"{line}\n" for line in self._metrics).encode()
            )

    def progressed(self, key: str, done: int, total: int) -> None:
        """How far a stage is; written now and then."""
        with self._lock:
            self._lines[key] |= {"done": done, "total": total}
            if time.monotonic() - self._saved > SAVE_EVERY:
                self.save()

    def traceback(self, stage: Stage, text: str) -> str:
        """Keeps an error's traceback; answers with its path."""
        name = f"{self.folder}/traceback-{stage.key[:12]}.txt"
        self.store.write_bytes(name, text.encode())
        return self.store.path(name)

    def save(self) -> None:
        """Writes `run.json`."""
        with self._lock:
            self._saved = time.monotonic()
            fetched = sum(
                float(line["metrics"].get("fetch_seconds") or 0)
                for line in self.run["stages"]
                if line["status"] == "ran" and not line["part"]
            )
            took = time.monotonic() - self._began
            self.run |= {"seconds": round(max(0.0, took - fetched), 3), "fetch_seconds": round(fetched, 3)}
            ran = [line["calls"] for line in self.run["stages"] if line["status"] == "ran"]
            self.run["calls"] = {name: sum(calls.get(name) or 0 for calls in ran) for name in AMOUNTS}
            self.store.write_json(f"{self.folder}/run.json", self.run)

    def finish(self, state: str, error: BaseException | None = None) -> None:
        """The last word on the run."""
        with self._lock:
            if error is not None:
                what = {"what": getattr(error, "what", str(error)), "where": getattr(error, "where", "")}
                self.run["error"] = {"type": type(error).__name__, **what, "do": getattr(error, "do", "")}
            for line in self.run["stages"]:
                if line["status"] == "running":
                    line["status"] = "pending"
            self.run |= {"state": state, "finished": now()}
            self._flush()
            self._events.close()
            self.save()


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (str, int, float, bool))
