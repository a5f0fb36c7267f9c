"""Imports point down the four floors: kernels <- stages <- pipelines <- cluster. Read from the source, never run."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLOORS = ("kernels", "stages", "pipelines", "cluster")
DYNAMIC = {"import_module", "__import__"}
KERNELS_USE = {"torch", "triton", "graftline", *sys.stdlib_module_names}


def imported(tree: ast.AST, package: str) -> Iterator[tuple[int, str, str]]:
    """Yields line, the full name imported and the text as written, with relative names resolved within `package`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, ast.unparse(node)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:  # `from graftline import pipelines` imports graftline.pipelines
                yield node.lineno, f"{module}.{alias.name}", ast.unparse(node)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            function = node.func
            name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", None)
            if name in DYNAMIC and isinstance(node.args[0].value, str):
                yield node.lineno, node.args[0].value, ast.unparse(node)


def violations(root: Path) -> list[str]:
    """Every import under `root`'s four folders that climbs, or reaches one of the folders by another name."""
    found = []
    for height, floor in enumerate(FLOORS):
        for path in sorted([*(root / floor).rglob("*.py"), *(root / floor).rglob("*.pyi")]):
            where = path.relative_to(root)
            package = ".".join(("graftline", *where.parent.parts))
            for line, name, written in imported(ast.parse(path.read_text(encoding="utf-8")), package):
                first, _, rest = name.partition(".")
                if first in FLOORS:
                    found.append(f"{where}:{line}: {written}: {first} is imported as graftline.{first} only")
                elif floor == "kernels" and first not in KERNELS_USE:
                    found.append(f"{where}:{line}: {written}: kernels are written in torch and triton only")
                elif first == "graftline":
                    target = rest.partition(".")[0]
                    if target not in FLOORS:
                        found.append(f"{where}:{line}: {written}: graftline has no {target or 'modules of its own'}")
                    elif FLOORS.index(target) > height:
                        found.append(f"{where}:{line}: {written}: {floor} must not import {target}, a floor above it")
                    elif target != floor and written.startswith("from ."):
                        found.append(f"{where}:{line}: {written}: name another floor in full, graftline.{target}")
    return found


def test_imports_point_down():
    assert list((ROOT / "stages").rglob("*.py")), "nothing was checked"
    assert violations(ROOT) == []


@pytest.mark.parametrize(
    ("path", "line", "complaint"),
    [
        ("kernels/nf4.py", "import graftline.stages.errors", "kernels must not import stages"),
        ("kernels/nf4.py", "import numpy", "kernels are written in torch and triton only"),
        ("stages/planted.py", "from graftline.pipelines import run", "stages must not import pipelines"),
        ("stages/planted.py", "from graftline import cluster", "stages must not import cluster"),
        ("stages/train/planted.py", "from ...pipelines import run", "stages must not import pipelines"),
        ("stages/planted.py", "importlib.import_module('graftline.pipelines.run')", "stages must not import pipelines"),
        ("stages/planted.py", "def f():\n    import graftline.pipelines", "stages must not import pipelines"),
        ("stages/planted.pyi", "from graftline.pipelines import Plan", "stages must not import pipelines"),
        ("pipelines/planted.py", "from graftline.cluster.main import main", "pipelines must not import cluster"),
        ("pipelines/planted.py", "from ..stages import Stage", "name another floor in full, graftline.stages"),
        ("pipelines/planted.py", "from stages import Stage", "stages is imported as graftline.stages only"),
        ("stages/planted.py", "from graftline.kernel import nf4", "graftline has no kernel"),
    ],
)
def test_a_planted_violation_is_found(tmp_path, path, line, complaint):
    planted = tmp_path / path
    planted.parent.mkdir(parents=True)
    planted.write_text(line + "\n", encoding="utf-8")
    (found,) = violations(tmp_path)
    assert found.startswith(f"{path}:") and complaint in found


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("cluster/main.py", "from graftline.pipelines import run"),
        ("kernels/nf4.py", "import math, torch, triton.language"),
        ("stages/train/__init__.py", "from . import base"),
        ("stages/train/train.py", "from graftline.kernels.nf4 import dequantise"),
        ("stages/planted.py", "import select, torch, pipelines_of_someone_else"),
    ],
)
def test_imports_that_are_fine(tmp_path, path, line):
    planted = tmp_path / path
    planted.parent.mkdir(parents=True)
    planted.write_text(line + "\n", encoding="utf-8")
    assert violations(tmp_path) == []
