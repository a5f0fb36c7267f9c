"""The four folders install as graftline.*, whole, and no folder's bare name gets in another package's way."""

import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("kernels", "stages", "pipelines", "cluster")

# What transformers 5.23 takes for the Hugging Face package `kernels`: its metadata, and names that are decorators.
HUGGING_FACE_KERNELS = {
    "kernels/__init__.py": "def __getattr__(name):\n    return lambda *_, **__: lambda decorated: decorated\n",
    "kernels-0.18.2.dist-info/METADATA": "Metadata-Version: 2.1\nName: kernels\nVersion: 0.18.2\n",
}
IMPORT_LLAMA = """
import kernels
from transformers import LlamaForCausalLM
from transformers.utils import is_kernels_available
assert is_kernels_available(), "transformers did not take the planted distribution for the real one"
print(kernels.__file__)
"""


def python(*arguments: str | Path, cwd: Path, path: str | Path = "") -> subprocess.CompletedProcess[str]:
    """Runs this interpreter in `cwd`, which `-c` and `-m` put first on sys.path, before `path`."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    environment["PYTHONPATH"] = str(path)
    return subprocess.run([sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True)


def package_of(folder: Path) -> str:
    return ".".join(("graftline", *folder.parts))


def shipped(root: Path) -> set[str]:
    """Every file of the four folders that belongs to the package, relative to `root`."""
    return {
        path.relative_to(root).as_posix()
        for folder in FOLDERS
        for path in (root / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_graftline_and_kernels_are_namespace_packages():
    assert not (ROOT / "kernels" / "__init__.py").exists(), "it would shadow the Hugging Face package `kernels`"
    assert not (ROOT / "__init__.py").exists() and not (ROOT / "graftline").exists(), "graftline has no module itself"


def test_the_declared_packages_are_the_folders_with_sources():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    folders = {Path(name).parent for name in shipped(ROOT)}
    assert sorted(declared) == sorted(package_of(folder) for folder in folders)


def test_every_folder_but_kernels_is_a_regular_package():
    sources = {Path(name).parent for name in shipped(ROOT) if name.endswith(".py") and not name.startswith("kernels/")}
    assert [str(folder) for folder in sorted(sources) if not (ROOT / folder / "__init__.py").is_file()] == []


@pytest.mark.parametrize("folder", FOLDERS)
def test_types_are_declared(folder):
    assert (ROOT / folder / "py.typed").is_file()


@pytest.mark.real
def test_the_wheel_holds_the_tree(copied_tree, tmp_path):
    # A copy, since setuptools packs what an earlier build left in build/lib as if it were source.
    files = {f"graftline/{name}" for name in shipped(copied_tree)}
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--wheel-dir", tmp_path)
    built = python("-m", "pip", "wheel", copied_tree, *options, cwd=tmp_path)
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = tmp_path.glob("graftline-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    metadata = {name for name in names if name.split("/")[0].endswith(".dist-info")}
    assert names - metadata == files
    assert any(name.endswith("/licenses/LICENSE") for name in metadata)


@pytest.mark.parametrize("folder", ["stages", "pipelines", "cluster"])
def test_a_folder_is_not_imported_by_its_bare_name(folder):
    result = python("-c", f"import {folder}", cwd=ROOT)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("ImportError: ")
    assert f"graftline.{folder}" in result.stderr.splitlines()[-1]


def test_a_family_does_not_pass_for_a_standard_module():
    """Someone working inside stages/ has its folders first on sys.path, where `select` is also the standard one."""
    families = [path.parent.name for path in (ROOT / "stages").glob("*/__init__.py")]
    shadows = sorted(set(families) & sys.stdlib_module_names)
    assert shadows == ["select"]
    for code in ("import select", "import subprocess", "import asyncio"):
        result = python("-c", code, cwd=ROOT / "stages")
        assert result.returncode == 1, f"{code!r} inside stages/ took a family for a standard module"
        assert result.stderr.splitlines()[-1].startswith("ImportError: ")
        assert "graftline.stages" in result.stderr.splitlines()[-1] and "root" in result.stderr.splitlines()[-1]


@pytest.mark.real
@pytest.mark.parametrize("regular", [False, True], ids=["as it is", "with a kernels/__init__.py"])
def test_hugging_faces_kernels_package_keeps_its_name(copied_tree, tmp_path, regular):
    """From the root, transformers finds the real `kernels`; with an __init__.py in ours it would break (the proof)."""
    if regular:
        (copied_tree / "kernels" / "__init__.py").touch()
    for name, text in HUGGING_FACE_KERNELS.items():
        (tmp_path / "site" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "site" / name).write_text(text, encoding="utf-8")
    result = python("-c", IMPORT_LLAMA, cwd=copied_tree, path=tmp_path / "site")
    if regular:
        assert result.returncode == 1 and "from 'kernels'" in result.stderr
    else:
        assert result.returncode == 0, result.stderr
        assert result.stdout.strip() == str(tmp_path / "site" / "kernels" / "__init__.py")


def test_every_module_has_a_test_of_its_own_name():
    """`stages/sweep/asha.py` and `tests/stages/sweep/test_asha.py`: who looks for a test finds it."""
    missing = [
        str(module.relative_to(ROOT))
        for folder in FOLDERS
        for module in sorted((ROOT / folder).rglob("*.py"))
        if module.name != "__init__.py"
        and not (ROOT / "tests" / module.relative_to(ROOT)).with_name(f"test_{module.name}").exists()
    ]
    assert not missing, "write their tests, or give these modules the name of what they are tested by"
