"""Stages on a real Ray: where they run, the user's own classes, what dies, what a chain and an engine pool do."""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from graftline.pipelines import run
from graftline.stages.errors import WorkerDied

pytestmark = pytest.mark.real

# A pipeline file's own classes: workers cannot import it, so it must travel by value. Its helper module, too.
PIPELINE = '''
import os, time
from typing import Annotated
import {helper}
from graftline.stages import Execution, Made, Mapper, Model, Rounds, Rows, Scorer, Source, Stage
from graftline.stages.shapes import RoundsState


class Numbers(Source):
    count: int = 40
    on_driver_node = True

    def make_rows(self, context):
        for number in range(self.count):
            yield Made({{"answer": str({helper}.double(number))}})


class Even(Mapper):
    batch_size: Annotated[int, Execution] = 8

    def map_rows(self, table, context):
        return table.filter([int(answer) % 4 == 0 for answer in table["answer"].to_pylist()])


class Size(Scorer):
    adds = {{"size": "int64", "threads": "int64", "process": "int64"}}
    batch_size: Annotated[int, Execution] = 8

    def score_rows(self, table, context):
        if "12" in table["answer"].to_pylist():
            raise ValueError("twelve")
        sizes = [int(answer) for answer in table["answer"].to_pylist()]
        threads = int(os.environ["OMP_NUM_THREADS"])
        return {{"size": sizes, "threads": [threads] * len(sizes), "process": [os.getpid()] * len(sizes)}}


class Dies(Source):
    """Its worker dies, always or but once."""

    flag: Annotated[str, Execution] = ""

    def make_rows(self, context):
        if not self.flag or not os.path.exists(self.flag):
            if self.flag:
                open(self.flag, "w").close()
            os._exit(1)
        yield Made({{"answer": "alive"}})


class Crashes(Scorer):
    adds = {{"x": "int64"}}

    def score_rows(self, table, context):
        os._exit(1)


class CrashesAsking(Crashes):
    calls_model = True


def die_once(flag, answers):
    """Ends the process at the first batch that has this answer, in the middle of a shard."""
    if flag and "44" in answers and not os.path.exists(flag):
        open(flag, "w").close()
        os._exit(1)


class Third(Mapper):
    """Leaves out multiples of three."""

    flag: Annotated[str, Execution] = ""
    batch_size: Annotated[int, Execution] = 3

    def map_rows(self, table, context):
        answers = table["answer"].to_pylist()
        die_once(self.flag, answers)
        return table.filter([int(answer) % 3 > 0 for answer in answers])


class Sum(Scorer):
    flag: Annotated[str, Execution] = ""
    adds = {{"sum": "int64"}}
    batch_size: Annotated[int, Execution] = 9

    def score_rows(self, table, context):
        answers = table["answer"].to_pylist()
        die_once(self.flag, answers)
        return {{"sum": [sum(map(int, answer)) for answer in answers]}}


class SumAsking(Sum):
    calls_model = True


class Asks(Stage):
    """Has another stage made while it holds all there is."""

    makes = "report"
    rows: Rows
    whole_node = True

    def make(self, context, out, rows):
        inner = context.run(Size(rows=self.rows, label="asked for", max_failed=0.5))
        context.log(3, loss=0.5)
        return {{"sizes": inner.count, "cpus": context.resources.cpus, "threads": context.resources.threads}}


class Fake(Stage):
    makes = "model"
    model: str = "fake"
    engine: str = "scripted"

    def make(self, context, out):
        import numpy as np
        from safetensors.numpy import save_file

        (out / "model").mkdir()
        save_file({{"weight": np.ones(2, np.float32)}}, out / "model" / "model.safetensors")
        return {{"fetch_seconds": 2.0}}


class Talk(Rounds):
    seeds: Rows
    teacher: Model

    def asks(self):
        return self.teacher

    def start(self, context, seeds, teacher):
        state = RoundsState()
        state.seeds = seeds.rows(["id", "answer"]).to_pylist()
        return state

    def propose(self, state, round):
        from graftline.stages.lm.engine import Request

        said = {{seed["id"]: f"{{seed['answer']}} {{round}}" for seed in state.seeds if round < 2}}
        return [Request(row, ({{"role": "user", "content": text}},)) for row, text in said.items()]

    def absorb(self, state, round, answers):
        state.made += [Made({{"parents": [request.id], "answer": answer.text}}) for request, answer in answers]

    def finish(self, state):
        return state.made


class Judge(Scorer):
    judge: Model
    adds = {{"words": "int64"}}
    calls_model = True
    batch_size: Annotated[int, Execution] = 8

    def score_rows(self, table, context):
        from graftline.stages.lm.engine import Request

        with context.engine(self.judge) as engine:
            requests = [Request(row, ({{"role": "user", "content": row}},)) for row in table["id"].to_pylist()]
            return {{"words": [len(answer.text.split()) for answer in engine.generate(requests)]}}


def pipeline():
    numbers = Numbers()
    talk = Talk(seeds=numbers, teacher=Fake(), concurrency=2)
    return {{
        "sizes": Size(rows=Even(rows=numbers), max_failed=0.1),
        "asks": Asks(rows=numbers),
        "judged": Judge(rows=talk, judge=Fake()),
    }}
'''


@pytest.fixture
def module(tmp_path):
    """The pipeline file, loaded as `graftline run` does."""
    from graftline.pipelines.load_file import load_module

    helper = f"helper_{os.getpid()}"
    (tmp_path / f"{helper}.py").write_text("def double(number):\n    return 2 * number\n")
    file = tmp_path / f"on_ray_{os.getpid()}.py"
    file.write_text(PIPELINE.format(helper=helper))
    yield load_module(file)
    sys.path.remove(str(tmp_path))
    for name in (helper, file.stem):
        del sys.modules[name]


def test_stages_on_ray(ray_cluster, module, tmp_path):
    heard = []
    made = run(module.pipeline(), str(tmp_path / "store"), base=tmp_path, watch=heard.append)
    assert made.state == "done" and made.fetch_seconds == 2.0
    sizes = made["sizes"]
    assert sizes.rows(["size"])["size"].to_pylist() and sizes.count == 19
    assert sizes.manifest["rows"]["failed"] == {"ValueError: twelve": 1}
    assert sizes.manifest["chain"][0]["rows"]["filtered"] == {"left out": 20}
    table = sizes.rows(["threads", "process"])
    assert set(table["threads"].to_pylist()) == {1} and os.getpid() not in table["process"].to_pylist()

    assert made["asks"].metrics == {"sizes": 39, "cpus": 2.0, "threads": 2}
    assert "asked for" in {line["name"] for line in made.record["stages"]}
    metrics = [json.loads(line) for line in (Path(made.path) / "metrics.jsonl").read_text().splitlines()]
    assert [(line["stage"], line["step"], line["loss"]) for line in metrics] == [("Asks", 3, 0.5)]

    judged = made["judged"].manifest
    assert made["judged"].count == 80 and judged["calls"]["requests"] == 80
    talk = next(line for line in made.record["stages"] if line["name"] == "Talk")
    assert talk["calls"]["requests"] == 80 and talk["rows"]["created"] == 80
    assert {event.kind for event in heard} == {"planned", "ray", "started", "progress", "done"}

    here = run(module.pipeline()["judged"], str(tmp_path / "here"), base=tmp_path, address="here")
    assert here["result"].digest == made["judged"].digest, "the same comes out in one process"

    again = run(module.pipeline(), str(tmp_path / "store"), base=tmp_path)
    assert again.ran == 0 and again.fetch_seconds == 0.0


def test_a_worker_that_dies(ray_cluster, module, tmp_path):
    made = run(module.Dies(flag=str(tmp_path / "flag")), str(tmp_path / "store"), base=tmp_path)
    assert made["result"].rows(["answer"])["answer"].to_pylist() == ["alive"], "it is tried again"
    with pytest.raises(WorkerDied) as caught:
        run(module.Dies(label="Always"), str(tmp_path / "other"), base=tmp_path)
    assert caught.value.where == "Always"


@pytest.mark.parametrize("name", ["Third", "Sum", "SumAsking"])
def test_a_worker_that_dies_amid_a_shard_makes_no_row_twice(ray_cluster, module, tmp_path, name):
    """The retried task overwrites what the first wrote. Ray Data's own checkpoints stay off: of rows that are not read
    from files they write those twice that were done."""
    from ray.data import DataContext

    def made(store, **flags):
        third = module.Third(rows=module.Numbers(), **flags.get("Third", {}))
        last = getattr(module, name if name != "Third" else "Sum")
        summed = last(rows=third, **flags.get(last.__name__, {}))
        return run(summed, str(tmp_path / store), base=tmp_path)["result"]

    flag = tmp_path / "flag"
    disturbed, whole = made("disturbed", **{name: {"flag": str(flag)}}), made("whole")
    assert flag.exists(), "no worker died"
    assert disturbed.digest == whole.digest and disturbed.count == 26
    ids = [id for artefact in (disturbed, whole) for id in written(artefact)]
    assert len(ids) == 2 * 40 and set(Counter(ids).values()) == {2}, "each row once in either store"
    assert DataContext.get_current().checkpoint_config is None


def written(artefact):
    """The id of every row in the files that the artefact lists, kept ones and filtered ones of the whole chain."""
    import pyarrow.parquet as pq

    files = {file: Path(artefact.path, file) for file in artefact.manifest["files"] if file.endswith(".parquet")}
    assert len([file for file in files if file.startswith("rows/")]) > 3, "several shards"
    assert any("filtered/" in file for file in files)
    assert set(Path(artefact.path).rglob("*.parquet")) == set(files.values())
    return [id for path in files.values() for id in pq.read_table(path)["id"].to_pylist()]


@pytest.mark.parametrize("name", ["Crashes", "CrashesAsking"])
def test_a_chain_whose_workers_die_ends(ray_cluster, module, tmp_path, name):
    begin = time.monotonic()
    with pytest.raises(WorkerDied) as caught:
        run(getattr(module, name)(rows=module.Numbers()), str(tmp_path / "store"), base=tmp_path)
    assert caught.value.where == name and time.monotonic() - begin < 60


def test_python_file_and_command_have_one_identity(module, tmp_path):
    """A cluster of its own, started and ended; no token is left in the user's home."""
    file = Path(module.__file__)
    text = file.read_text() + (
        "\n\nif __name__ == '__main__':\n"
        "    from graftline.pipelines import run\n"
        "    made = run(Size(rows=Even(rows=Numbers()), max_failed=0.1), store='store')\n"
        "    import ray\n    assert not ray.is_initialized()\n    print(made['result'].path)\n"
    )
    file.write_text(text)
    environment = {name: value for name, value in os.environ.items() if name not in ("RAY_AUTH_MODE", "RAY_ADDRESS")}
    environment["HOME"] = str(tmp_path / "home")
    (tmp_path / "home").mkdir()
    done = subprocess.run(
        [sys.executable, str(file)], capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=120
    )
    assert done.returncode == 0, done.stderr
    loaded = run(
        module.Size(rows=module.Even(rows=module.Numbers()), max_failed=0.1), str(tmp_path / "store"), base=tmp_path
    )
    assert loaded.ran == 0 and loaded["result"].path == done.stdout.strip().splitlines()[-1]
    assert not (tmp_path / "home" / ".ray").exists()
