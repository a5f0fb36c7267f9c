"""Which code and which versions made an artefact."""

from __future__ import annotations

import ast
import functools
import importlib.metadata
import importlib.util
import inspect
import platform
import sys
import threading
from pathlib import Path

from graftline.stages.rows import digest

PACKAGES = ("graftline", "ray", "torch", "transformers", "peft", "pyarrow", "bitsandbytes")
SHAPES = (
    "graftline.stages", "graftline.stages.family", "graftline.stages.shapes", "graftline.stages.specification",
    "graftline.stages.stage", "graftline.stages.value_graph",
)  # fmt: skip
"""What every stage imports: not part of a stage's own code."""
NOT_CODE = ("pipeline", "figures")
"""Functions of a pipeline file that only put stages together."""


_PARSING = threading.Lock()


def _parsed(source: str | bytes) -> ast.Module:
    """Source as a tree, one at a time: Python 3.11 counts the depth of trees that threads build in turn as one's, and
    fails ("AST constructor recursion depth mismatch")."""
    with _PARSING:
        return ast.parse(source)


@functools.cache
def versions() -> dict[str, str]:
    """Package → version, of those that can change what comes out."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def is_shipped(kind: type) -> bool:
    """Whether Graftline ships a class, and its `version` therefore speaks for its code."""
    return getattr(kind, "qualified", kind.__module__).startswith("graftline.")


def source_digest(kind: type) -> str:
    """A digest of the code of a class: of one that Graftline ships, its module and all it imports from
    `graftline.stages` and `graftline.kernels`; of a user's, its file without comments, without `pipeline` and
    `figures`, and without what runs under `__main__`, and the files of its folder that it imports. "" where there is
    no source (typed into a prompt)."""
    if is_shipped(kind):
        return _shipped(kind.__module__)
    return _own(kind)


@functools.cache
def _own(kind: type) -> str:
    module = sys.modules.get(kind.__module__)
    try:
        path = inspect.getsourcefile(module) if module is not None else None
        if path is None:
            return str(getattr(kind, "source", ""))
        code = _code(Path(path))
        beside = {name: _code(file) for name, file in _beside(Path(path)).items()}
    except (OSError, TypeError, SyntaxError):
        return ""
    return digest([code, sorted(beside.items())] if beside else code)


def _code(path: Path) -> list[str]:
    """A file's statements, without comments and docstrings, and without what only puts stages together."""
    return [
        ast.unparse(node)
        for node in _parsed(path.read_text(encoding="utf-8")).body
        if not (isinstance(node, ast.FunctionDef) and node.name in NOT_CODE)
        and not (isinstance(node, ast.If) and "__main__" in ast.unparse(node.test))
        and not isinstance(node, ast.Expr)
    ]


def _beside(path: Path) -> dict[str, Path]:
    """Module name → file of what a pipeline file imports, and they in turn, from its own folder."""
    found: dict[str, Path] = {}
    waiting = [path]
    while waiting:
        for node in ast.walk(_parsed(waiting.pop().read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            for name in names:
                inner = path.parent.joinpath(*name.split("."))
                for file in (inner.with_suffix(".py"), inner / "__init__.py"):
                    if file.is_file() and file != path and name not in found:
                        found[name] = file
                        waiting.append(file)
    return found


@functools.cache
def _shipped(module: str) -> str:
    seen: dict[str, str] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in seen or name in SHAPES:
            continue
        found = _imports(name)
        if found is None:
            continue
        seen[name], imported = found
        waiting += imported
    return digest(sorted(seen.items()))


@functools.cache
def _imports(module: str) -> tuple[str, list[str]] | None:
    """A module's digest and what it may import from our two lower floors; None where it is no module."""
    path = _path(module)
    if path is None:
        return None
    source = path.read_bytes()
    names = []
    for node in ast.walk(_parsed(source)):
        if isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    return digest(source.decode()), [
        name for name in dict.fromkeys(names) if name.startswith(("graftline.stages.", "graftline.kernels."))
    ]


def _path(module: str) -> Path | None:
    """The file of a module of ours. Found by its name: `find_spec` would import its parents, and so torch."""
    root, floor, *rest = module.split(".")
    spec = importlib.util.find_spec(f"{root}.{floor}")
    for folder in (spec and spec.submodule_search_locations) or ():
        for path in (Path(folder, *rest).with_suffix(".py"), Path(folder, *rest, "__init__.py")):
            if path.is_file():
                return path
    return None
