"""Specifications import light: building and planning a pipeline needs neither torch, Ray nor transformers."""

import ast
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
QUICKSTART = ROOT / "examples" / "quickstart.py"
HEAVY = ("torch", "ray", "transformers", "peft", "bitsandbytes", "triton")

# Imports every module named on stdin with the packages in argv blocked; prints {module: what went wrong}.
IMPORT_ALL = """
import importlib, json, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in sys.argv[1:]:
            raise ImportError(f"{name} is imported with the module: import it inside the method that uses it")

sys.meta_path.insert(0, Blocked())
failures = {}
for name in json.load(sys.stdin):
    try:
        importlib.import_module(name)
    except Exception as error:
        failures[name] = f"{type(error).__name__}: {error}"
print(json.dumps(failures))
"""

BUILD = """
import runpy, sys
assert runpy.run_path(sys.argv[1])["pipeline"]()
print(*sorted({"torch", "ray", "transformers", "pyarrow"} & set(sys.modules)))
"""


def specifications(root: Path) -> list[str]:
    """The modules of stages/ that building, planning or listing methods may import, found by rule.

    That is every package; every file that defines a specification (a class below Stage or Plug); and every file that
    holds a class of its own name, since the families import those. What is left, the torch classes of a method
    (`<method>_modules.py`), the loop and the like, is imported inside methods and may import what it needs.
    """
    classes = {
        path: [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.ClassDef)]
        for path in sorted((root / "stages").rglob("*.py"))
    }
    known = {"Specification"}
    while True:
        below = {
            node.name
            for nodes in classes.values()
            for node in nodes
            if any(ast.unparse(base).rpartition(".")[2] in known for base in node.bases)
        }
        if below <= known:
            break
        known |= below
    return [
        module_of(path.relative_to(root))
        for path, nodes in classes.items()
        if path.name == "__init__.py"
        or path.parent.name == "stages"
        or any(node.name in known or node.name.lower() == path.stem.replace("_", "") for node in nodes)
    ]


def module_of(path: Path) -> str:
    return ".".join(("graftline", *path.with_suffix("").parts)).removesuffix(".__init__")


def failures(names: list[str], blocked: tuple[str, ...], path: Path | None = None) -> dict[str, str]:
    """What goes wrong when a fresh interpreter imports the modules with the packages blocked."""
    environment = os.environ | {"PYTHONPATH": str(path or "")}
    command = [sys.executable, "-c", IMPORT_ALL, *blocked]
    result = subprocess.run(
        command, input=json.dumps(names), cwd=path, env=environment, capture_output=True, text=True, check=True
    )
    return json.loads(result.stdout.splitlines()[-1])


def test_every_specification_imports_without_torch_ray_and_transformers():
    names = specifications(ROOT)
    assert {"graftline.stages", "graftline.stages.stage", "graftline.stages.select.top_k"} <= set(names)
    assert failures(names, (*HEAVY, "pyarrow")) == {}


def test_the_floor_that_plans_imports_without_torch_ray_and_transformers():
    names = [module_of(path.relative_to(ROOT)) for path in sorted((ROOT / "pipelines").rglob("*.py"))]
    assert failures([name for name in names if not name.endswith("__main__")], HEAVY) == {}


@pytest.mark.parametrize(
    ("name", "source", "found"),
    [
        ("planted", "import torch\nfrom graftline.stages import Selector\nclass Anything(Selector): pass\n", True),
        ("planted_method", "from transformers import AutoTokenizer\nclass PlantedMethod: pass\n", True),
        ("planted_modules", "import torch\nclass Low(torch.nn.Module): pass\n", False),
        ("planted", "import graftline.stages.select.top_k\nclass Planted: pass\n", False),
    ],
)
def test_a_planted_heavy_import_is_found(copied_tree, name, source, found):
    (copied_tree / "stages" / "select" / f"{name}.py").write_text(source, encoding="utf-8")
    module = f"graftline.stages.select.{name}"
    names = [known for known in specifications(copied_tree) if known == module]
    assert (set(failures(names, HEAVY, copied_tree.parent)) == {module}) is found


@pytest.mark.real
def test_building_a_pipeline_takes_under_half_a_second():
    """The whole of a fresh interpreter counts; the best of three, since other processes share the machine."""
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        result = subprocess.run([sys.executable, "-c", BUILD, QUICKSTART], cwd=ROOT, capture_output=True, text=True)
        seconds.append(time.perf_counter() - start)
        assert result.returncode == 0, result.stderr
        assert result.stdout.strip() == "", f"building a pipeline imported {result.stdout}"
    assert min(seconds) < 0.5, f"fresh interpreters took {seconds}"
