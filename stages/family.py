"""How a folder of methods becomes a family: a class is found by its file's name, and nothing is imported before.

`near_duplicates.py` holds `NearDuplicates`: the two are equal once lower-cased without underscores, so `adamw.py`
may hold `AdamW`. A family's `__init__` refuses any name but `graftline.…`, then says `__getattr__, __dir__ =
family(__name__)`; a second identity would break isinstance and pickling, and inside `stages/` the folder `select` would
shadow the standard library's module.
"""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any


def module_names(package: str, deep: bool = False) -> Iterator[str]:
    """Names, relative to the package, of the modules that may hold a method (`deep`: those of its folders, too, as
    `adapter.lora`); nothing is imported."""

    def found(folder: Path, prefix: str) -> Iterator[str]:
        for entry in sorted(folder.iterdir()):
            if entry.is_dir() and deep and (entry / "__init__.py").exists():
                yield from found(entry, f"{prefix}{entry.name}.")
            elif entry.suffix == ".py" and entry.name[0] != "_" and not entry.stem.endswith("_modules"):
                yield f"{prefix}{entry.stem}"

    yield from found(_folder(package), "")


def family(package: str, **functions: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a family: its own classes, its sub-folders (`train.base`) and their classes
    (`train.Lora`).

    Args:
        package: the family's module name.
        functions: name of a function or class that is not named after its file → the module that holds it.
    """

    def attribute(name: str) -> Any:
        if name in functions:
            return getattr(importlib.import_module(f"{package}.{functions[name]}"), name)
        if name[0].isupper():
            for module in module_names(package, deep=True):
                if module.rpartition(".")[2].replace("_", "") == name.lower():
                    return getattr(importlib.import_module(f"{package}.{module}"), name)
            raise AttributeError(f"{package} has no {name!r}; it has {', '.join(listing())}")
        # `from graftline.stages import select` comes here, too.
        if not name.startswith("_") and (_folder(package) / name / "__init__.py").exists():
            return importlib.import_module(f"{package}.{name}")
        raise AttributeError(f"{package} has no {name!r}")

    def listing() -> list[str]:
        return sorted(
            {class_name(package, module) for module in module_names(package, deep=True)} - {""} | {*functions}
        )

    return attribute, listing


def class_name(package: str, module: str) -> str:
    """The class a module holds by the naming rule, read from its source without importing it ('' if none)."""
    path = _folder(package).joinpath(*module.split(".")).with_suffix(".py")
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef) and node.name.lower() == path.stem.replace("_", ""):
            return node.name
    return ""


def members(package: ModuleType) -> Iterator[tuple[str, type]]:
    """Every method class of a family's own folder, imported, with its module's name."""
    for module in module_names(package.__name__):
        if name := class_name(package.__name__, module):
            yield module, getattr(importlib.import_module(f"{package.__name__}.{module}"), name)


def _folder(package: str) -> Path:
    return Path(next(iter(sys.modules[package].__path__)))
