import json
import sys
from pathlib import Path

import pytest

from graftline.pipelines import run
from graftline.pipelines.load_file import arguments, load
from graftline.stages.errors import FileMissing, InvalidField, RequestError

PIPELINE = """
from typing import Literal
from graftline.stages import Made, Plug, Source, select
import helping_{tag}

class Numbers(Source):
    count: int

    def columns_made(self):
        return {{**super().columns_made(), "n": "int64"}}

    def make_rows(self, context):
        yield from (Made({{"answer": str(n), "n": helping_{tag}.double(n)}}) for n in range(self.count))

def pipeline(count: int = 3, best: float = 1.0, deep: bool = False, name: str = "x", limit: int | None = None):
    return {{"top": select.TopK(rows=Numbers(count=count), by="n", k=2)}}

def figures(run):
    return {{"rows": run["top"].count}}
"""


@pytest.fixture
def file(tmp_path):
    """A pipeline file under a name of its own (modules stay in this process), and a module beside it."""
    tag = tmp_path.name.replace("-", "_")
    (tmp_path / f"helping_{tag}.py").write_text("def double(n):\n    return 2 * n\n")
    path = tmp_path / f"mine_{tag}.py"
    path.write_text(PIPELINE.format(tag=tag))
    yield path
    sys.path[:] = [entry for entry in sys.path if entry != str(tmp_path)]
    for name in (path.stem, f"helping_{tag}"):
        sys.modules.pop(name, None)


def test_a_pipeline_file(file, tmp_path):
    loaded = load(file, {"count": "5"})
    assert list(loaded.roots) == ["top"] and loaded.base == str(tmp_path) and loaded.name == file.stem
    assert loaded.parameters == {"count": 5, "best": 1.0, "deep": False, "name": "x", "limit": None}
    numbers = loaded.roots["top"].rows
    assert numbers.count == 5 and type(numbers).qualified == f"{file.stem}.Numbers" in loaded.classes
    assert load(file, {"count": "5"}).roots == loaded.roots, "loaded twice, it is the same value"


def test_a_runs_pipeline_comes_back(file, tmp_path):
    loaded = load(file, {"count": "4"})
    made = run(
        loaded.roots, str(tmp_path / "store"), base=loaded.base, name=loaded.name, address="here", file=loaded.file
    )
    again = load(Path(made.path) / "pipeline.json")
    assert again.roots == loaded.roots and again.base == loaded.base and again.name == loaded.name
    assert again.figures(made) == {"rows": 2} and again.lock["schema"] == 1
    assert load(made.path).roots == loaded.roots, "the run's folder will do"
    assert run(again.roots, str(tmp_path / "store"), base=again.base, address="here").ran == 0
    with pytest.raises(RequestError, match="set already"):
        load(Path(made.path) / "pipeline.json", {"count": "1"})


def test_texts_become_what_the_annotations_say():
    def pipeline(a: int, b: float = 0.5, c: bool = False, d: str = "", e: int | None = None, f=3): ...

    given = {"a": "1", "b": "2", "c": "yes", "d": "4", "e": "none", "f": "7"}
    assert arguments(pipeline, given, "x.py") == {"a": 1, "b": 2.0, "c": True, "d": "4", "e": None, "f": 7}
    assert arguments(pipeline, {"a": "1", "e": "5", "c": "False"}, "x.py") == {"a": 1, "e": 5, "c": False}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"a": "1", "z": "2"}, r"no parameter 'z'. It has a, b=0.5"),
        ({"a": "one"}, r"a: 'one' is not int"),
        ({"a": "1", "b": "x"}, "'x' is not float"),
        ({"a": "1", "c": "perhaps"}, "'perhaps' is not bool"),
        ({}, r"needs a. Add --set a="),
    ],
)
def test_bad_parameters(given, says):
    def pipeline(a: int, b: float = 0.5, c: bool = False): ...

    with pytest.raises(InvalidField, match=says):
        arguments(pipeline, given, "x.py")


def test_a_missing_file(tmp_path):
    with pytest.raises(FileMissing, match="no such file"):
        load(tmp_path / "nothing.py")


@pytest.mark.parametrize(
    ("name", "source", "says"),
    [
        ("no_pipeline", "x = 1", "no function pipeline"),
        ("syntax", "def pipeline(:", "line 1: it raises SyntaxError"),
        ("raises", "x = 1\n1 / 0", "line 2: it raises ZeroDivisionError"),
        ("builds", "def pipeline():\n    return nothing", "line 2: it raises NameError"),
        ("returns", "def pipeline(): return 3", "a pipeline is int"),
        ("empty", "def pipeline(): return {}", "a pipeline is dict"),
        ("with-dash", "", "is not a Python name"),
        ("json", "", "is another module's"),
        ("pydantic", "", "is another module's"),
    ],
)
def test_a_file_that_is_no_pipeline(tmp_path, name, source, says):
    path = tmp_path / f"{name}.py"
    path.write_text(source)
    with pytest.raises(RequestError, match=says):
        load(path)
    sys.modules.pop(name, None) if name not in ("json", "pydantic") else None


def test_a_broken_pipeline_json(tmp_path):
    path = tmp_path / "pipeline.json"
    path.write_text('{"schema": ')
    with pytest.raises(FileMissing, match="not JSON"):
        load(path)
    path.write_text(json.dumps({"schema": 1}))
    with pytest.raises(RequestError, match="is no pipeline"):
        load(path)
