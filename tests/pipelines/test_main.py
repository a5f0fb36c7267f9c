"""The command line as scripts and people use it: what goes to which stream, exit codes, and no traceback for them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from graftline.pipelines.main import app, plain, result

HERE = ("--address", "here")
"""Runs in this process: what is tested here needs no Ray."""

SOURCE = """
from graftline.stages import Made, Scorer, Source, select
from graftline.stages.errors import HeldOutLeak

class Numbers(Source):
    '''Makes rows.'''
    origin = "a test"
    n: int = 10

    def make_rows(self, context):
        print("a stage prints this")
        for index in range(self.n):
            messages = [{"role": "user", "content": "x" * index}, {"role": "assistant", "content": str(index)}]
            made = Made({"messages": messages, "answer": str(index)})
            yield Made(made.row, "filtered", "no sevens") if index == 7 else made

class Length(Scorer):
    '''Counts letters.'''
    origin = "a test"
    adds = {"length": "int64"}
    fault: str = ""

    def score_rows(self, table, context):
        if self.fault == "leak":
            raise HeldOutLeak("row 3 is held out", where="Length.rows", do="split first")
        if self.fault == "all":
            raise ValueError("cannot count")
        if self.fault == "slow":
            import time
            time.sleep(60)
        return {"length": [len(messages[0]["content"]) for messages in table["messages"].to_pylist()]}

def pipeline(n: int = 10, k: int = 3, fault: str = ""):
    return {"best": select.TopK(rows=Length(rows=Numbers(n=n), fault=fault), by="length", k=k)}

def figures(run):
    print("figures print this")
    return {"count": run["best"].count, "share": run["best"].count / run.record["parameters"]["n"]}
"""


@pytest.fixture
def pipeline_file(tmp_path, request):
    """A user's file; a name of its own, since modules are known by their names."""
    name = "".join(letter if letter.isalnum() else "_" for letter in request.node.name)
    path = tmp_path / f"cli_{name}.py"
    path.write_text(SOURCE)
    yield path
    sys.modules.pop(path.stem, None)


@pytest.fixture
def call(tmp_path, monkeypatch):
    """Runs a command with a store of its own."""
    monkeypatch.setenv("GRAFTLINE_STORE", str(tmp_path / "store"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def run(*arguments, code=0):
        result = CliRunner().invoke(app, [str(each) for each in arguments])
        assert result.exit_code == code, (result.exit_code, result.output, result.exception)
        return result

    return run


def last_result(result):
    line = result.stdout.splitlines()[-1]
    assert line.startswith("RESULT ")
    return json.loads(line.removeprefix("RESULT "))


def test_plan_needs_no_store_and_answers_on_stdout(call, pipeline_file, tmp_path):
    planned = json.loads(call("plan", pipeline_file, "--json", "--set", "k=2").stdout)
    assert [(step["name"], step["status"]) for step in planned["steps"]] == [
        ("Numbers", "run"), ("Length", "run"), ("TopK", "run"),
    ]  # fmt: skip
    assert "3 to run" in call("plan", pipeline_file).stdout
    assert not (tmp_path / "store").exists()


def test_run_answers_with_the_result_line_alone(call, pipeline_file, tmp_path):
    done = call("run", pipeline_file, *HERE)
    found = last_result(done)
    assert len(done.stdout.splitlines()) == 1, "all else goes to stderr"
    wanted = {"pipeline": pipeline_file.stem, "cached": 0, "ran": 3, "rows": 21, "adapter_digest": None, "count": 3,
              "share": 0.3}  # fmt: skip
    assert {name: found[name] for name in wanted} == wanted
    assert found["seconds"] > 0 and found["fetch_seconds"] == 0
    for words in ("▸ Numbers: started", "✓ TopK: done", "a stage prints this", "figures print this", "report: "):
        assert words in done.stderr, words
    (folder,) = (tmp_path / "store/runs").glob("2*")
    page = (folder / "report.html").read_text()
    assert "no sevens" in page and "share" in page

    again = call("run", pipeline_file, *HERE)
    assert "taken from the store" in again.stderr and "started" not in again.stderr
    changed = {name: (found[name], value) for name, value in last_result(again).items() if found[name] != value}
    assert set(changed) <= {"seconds", "cached", "ran"} and changed["cached"] == (0, 3)


def test_a_run_is_looked_at_by_its_name(call, pipeline_file):
    call("run", pipeline_file, *HERE)
    run = json.loads(call("show", "--json").stdout)["id"]
    for name in ("latest", run, run[:20]):
        assert json.loads(call("show", name, "--json").stdout)["id"] == run
    assert pipeline_file.stem in call("show").stdout and "TopK" in call("show").stdout
    one = json.loads(call("show", run, "Length", "--json").stdout)
    assert one["artefact"]["rows"]["kept"] == 9
    assert "fingerprint" in call("show", run, one["fingerprint"][:8]).stdout

    shown = call("inspect", run, "TopK", "--rows", "2")
    assert shown.stdout.count("assistant") == 2 and "2 of 3 kept rows of TopK" in shown.stderr
    assert "reason: no sevens" in call("inspect", run, "Numbers", "--outcome", "filtered").stdout
    assert "0 of 0 failed rows" in call("inspect", run, "Numbers", "--outcome", "failed").stderr

    listed = json.loads(call("ls", "--json").stdout)
    assert [each["id"] for each in listed["runs"]] == [run] and len(listed["artefacts"]) == 3
    assert run in call("ls").stdout


def test_retry_makes_a_stage_anew_and_gc_keeps_what_runs_refer_to(call, pipeline_file):
    call("run", pipeline_file, *HERE)
    again = call("retry", "latest", "Length", *HERE)
    run = again.stdout.strip()
    lines = {line["name"]: line for line in json.loads(call("show", run, "--json").stdout)["stages"]}
    assert {name: line["status"] for name, line in lines.items()} == {
        "Numbers": "cached", "Length": "ran", "TopK": "cached",
    }  # fmt: skip
    before = call("ls", "--json").stdout
    assert "nothing" in call("gc").stdout and json.loads(call("gc", "--dry-run", "--json").stdout) == []
    assert call("ls", "--json").stdout == before


def test_a_runs_own_pipeline_runs_again(call, pipeline_file, tmp_path):
    first = last_result(call("run", pipeline_file, *HERE, "--set", "n=8"))
    (folder,) = (tmp_path / "store/runs").glob("2*")
    again = last_result(call("run", folder / "pipeline.json", *HERE))
    assert (again["ran"], again["rows"], again["count"]) == (0, first["rows"], 3)


def test_methods_are_listed(call, pipeline_file):
    lines = json.loads(call("methods", "--json").stdout)
    assert {"name", "slot", "class", "papers", "tier"} <= set(lines[0])
    assert "select.top_k" in {line["name"] for line in lines}
    assert "Counts letters." in call("methods", pipeline_file).stdout
    own = json.loads(call("methods", pipeline_file, "--json").stdout)
    assert [line["class"].rpartition(".")[2] for line in own] == ["Numbers", "Length"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "nowhere.py"], ["nowhere.py", "no such file"]),
        (["plan", "FILE", "--set", "k"], ["'k' is not name=value"]),
        (["plan", "FILE", "--set", "nope=1"], ["no parameter 'nope'", "it has n=10".capitalize()]),
        (["run", "FILE", "--set", "k=0"], ["TopK.k", "greater than or equal to 1"]),
        (["run", "FILE", "--budget", "tokens=many"], ["--budget tokens", "no number"]),
        (["run", "FILE", "--budget", "time=1"], ["no budget of 'time'", "hours"]),
        (["show", "nothing"], ["no run nothing"]),
        (["serve", "latest"], ["no run"]),
        (["methods", "nowhere.py"], ["nowhere.py", "no such file"]),
        (["run", "FILE", "--nope"], ["No such option"]),
        (["inspect", "latest", "--outcome", "lost"], ["--outcome", "lost"]),
        (["fly"], ["No such command"]),
    ],
)
def test_a_wrong_request_exits_2_and_starts_nothing(call, pipeline_file, tmp_path, arguments, words):
    done = call(*(pipeline_file if each == "FILE" else each for each in arguments), code=2)
    for each in words:
        assert each in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and done.stdout == "" and not (tmp_path / "store").exists()


def test_a_failed_run_exits_1_and_keeps_what_was_made(call, pipeline_file, tmp_path):
    done = call("run", pipeline_file, *HERE, "--set", "fault=all", code=1)
    assert "error: Length: " in done.stderr and "cannot count" in done.stderr and "Traceback" not in done.stderr
    assert done.stdout == ""
    record = json.loads(call("show", "--json").stdout)
    assert record["state"] == "failed" and [line["status"] for line in record["stages"]] == ["ran", "failed", "pending"]
    assert "cannot count" in call("show").stdout
    assert "cannot count" in (tmp_path / "store/runs" / record["id"] / "report.html").read_text()


def test_a_wrong_request_found_while_running_exits_1(call, pipeline_file):
    """Exit code 2 means that nothing was started."""
    done = call("run", pipeline_file, *HERE, "--set", "fault=leak", code=1)
    assert "Split first" in done.stderr or "held out" in done.stderr


def test_debug_shows_the_traceback_wherever_it_stands(call, pipeline_file):
    wrong = ["plan", pipeline_file, "--set", "k=0"]
    for arguments in (["--debug", *wrong], [*wrong, "--debug"]):
        assert "Traceback" in call(*arguments, code=2).stderr


def test_a_mistake_in_the_users_code_shows_its_traceback(call, pipeline_file):
    pipeline_file.write_text(SOURCE.replace('print("figures print this")', "1 / 0"))
    done = call("run", pipeline_file, *HERE, code=1)
    assert "Traceback" in done.stderr and "ZeroDivisionError" in done.stderr and "RESULT" not in done.stdout
    assert "report: " in done.stderr, "the run itself is done"


def test_a_budget_stops_the_run(call, pipeline_file):
    done = call("run", pipeline_file, *HERE, "--budget", "hours=1e-9", code=1)
    assert "budget" in done.stderr and json.loads(call("show", "--json").stdout)["state"] == "failed"


def test_the_result_line_is_strict_json():
    import numpy as np

    value = {"nan": float("nan"), "numpy": np.float32(0.5), "list": (1, np.int64(2), None), 3: Path("x")}
    assert json.dumps(plain(value), allow_nan=False) == '{"nan": null, "numpy": 0.5, "list": [1, 2, null], "3": "x"}'


def test_the_result_lines_adapter_is_the_pipelines_own():
    class Done:
        seconds, fetch_seconds, cached, ran = 1.0, 0.0, 0, 2
        record = {
            "stages": [
                {"part": "", "path": "p", "kind": "adapter", "digest": "best", "rows": None, "asked_by": ""},
                {"part": "", "path": "p", "kind": "adapter", "digest": "trial", "rows": None, "asked_by": "k"},
            ]
        }

    class Named:
        name = "p"

    assert result(Named(), Done())["adapter_digest"] == "best"


def test_a_run_without_a_service_cannot_be_served(call, pipeline_file):
    call("run", pipeline_file, *HERE)
    assert "no service" in call("serve", code=2).stderr
    assert "no service" in call("run", pipeline_file, *HERE, "--serve", code=2).stderr


@pytest.mark.real
def test_help_comes_at_once_and_imports_nothing_heavy():
    code = (
        "import sys; from graftline.cluster.main import app\n"
        "try: app(['--help'])\n"
        "finally: print(sorted({'ray', 'torch', 'transformers', 'pyarrow'} & set(sys.modules)), file=sys.stderr)"
    )
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        seconds.append(time.perf_counter() - start)
        assert done.returncode == 0 and done.stderr.strip() == "[]", done.stderr
        assert "inspect" in done.stdout
    assert min(seconds) < 1, seconds


@pytest.mark.real
def test_ctrl_c_exits_130_and_the_run_goes_on_later(pipeline_file, tmp_path):
    environment = {**os.environ, "GRAFTLINE_STORE": str(tmp_path / "store")}
    command = [sys.executable, "-m", "graftline.pipelines", "run", str(pipeline_file), *HERE]
    process = subprocess.Popen(
        [*command, "--set", "fault=slow"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    seen = ""
    for line in process.stderr:
        seen += line
        if "Length: started" in line:
            break
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=30)
    assert process.returncode == 130, seen + error
    assert "interrupted" in error and "Traceback" not in error and out == ""
    (folder,) = Path(tmp_path, "store/runs").glob("2*")
    record = json.loads((folder / "run.json").read_text())
    assert record["state"] == "interrupted" and record["stages"][0]["status"] == "ran"
    again = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert again.returncode == 0 and '"cached": 1, "ran": 2' in again.stdout, again.stderr


@pytest.mark.real
def test_a_run_on_ray_is_watched(pipeline_file, tmp_path):
    environment = {**os.environ, "GRAFTLINE_STORE": str(tmp_path / "store")}
    command = [sys.executable, "-m", "graftline.pipelines", "run", str(pipeline_file)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Ray is up" in done.stderr and "✓ Length: done" in done.stderr and "\x1b" not in done.stderr
    assert len(done.stdout.splitlines()) == 1
    again = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert "Ray" not in again.stderr and '"ran": 0' in again.stdout, "nothing to run, so Ray is not started"
