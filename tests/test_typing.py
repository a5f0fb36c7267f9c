"""The mypy recipe (.ci/typecheck) is clean on the tree, and finds an error planted in a copy of it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("kernels", "stages", "pipelines", "cluster")

pytestmark = pytest.mark.real  # mypy reads torch and ray: 20 s with a cold cache


def typecheck(root: Path) -> subprocess.CompletedProcess[str]:
    """Runs `root`'s recipe, on the repository's own cache: what does not differ is not read again."""
    return subprocess.run(
        [root / ".ci" / "typecheck", "--cache-dir", ROOT / ".mypy_cache"],
        env=os.environ | {"PYTHON": sys.executable},
        capture_output=True,
        text=True,
    )


def test_the_tree_is_clean():
    result = typecheck(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr
    # Every file was read, with its .pyi in place of a .py where there is one; a recipe that finds nothing is clean too.
    sources = {path.with_suffix("") for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")}
    # mypy counts a namespace package (kernels) as a source of its own.
    namespaces = {path.parts[len(ROOT.parts)] for path in sources} - {
        folder for folder in FOLDERS if (ROOT / folder / "__init__.py").exists()
    }
    assert f"no issues found in {len(sources) + len(namespaces)} source files" in result.stdout


def test_a_planted_error_is_found(copied_tree):
    planted = copied_tree / "pipelines" / "planted.py"
    planted.write_text(
        "from graftline.stages.errors import RequestError\n\nwrong: int = RequestError('a fault').what\n",
        encoding="utf-8",
    )
    result = typecheck(copied_tree)
    assert result.returncode == 1, result.stdout + result.stderr
    # The attribute's type is known only where mypy really read graftline.stages.
    assert 'pipelines/planted.py:3: error: Incompatible types in assignment (expression has type "str"' in result.stdout
