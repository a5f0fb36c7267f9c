"""How a folder of methods becomes a family: a class is found by its file's name, and nothing is imported before.

`near_duplicates.py` holds `NearDuplicates`: the two are equal once lower-cased without underscores, so `adamw.py`
may hold `AdamW`. A family's `__init__` is two lines: the guard and `__getattr__, __dir__ = family(__name__)`.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any


def guard(name: str) -> None:
    """Refuse an import under any name but `graftline.…`: a second identity breaks isinstance and pickling, and
    inside `stages/` the folder `select` would shadow the standard library's module."""
    if not name.startswith("graftline."):
        raise ImportError(f"import graftline.stages, not {name}; run from the repository's root, with python -m")


def module_names(package: str) -> Iterator[str]:
    """Names of the modules of a package that may hold a method, nothing imported."""
    for found in pkgutil.iter_modules(sys.modules[package].__path__):
        if not found.ispkg and not found.name.startswith("_") and not found.name.endswith("_modules"):
            yield found.name


def family(package: str, **functions: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a family.

    Args:
        package: the family's module name.
        functions: name of a function or class that is not named after its file → the module that holds it.
    """

    def attribute(name: str) -> Any:
        if name in functions:
            return getattr(importlib.import_module(f"{package}.{functions[name]}"), name)
        if not name.startswith("_") and name[0].isupper():
            for module in module_names(package):
                if module.replace("_", "") == name.lower():
                    return getattr(importlib.import_module(f"{package}.{module}"), name)
        raise AttributeError(f"{package} has no {name!r}; it has {', '.join(listing())}")

    def listing() -> list[str]:
        return sorted({class_name(package, module) for module in module_names(package)} - {""} | set(functions))

    return attribute, listing


def class_name(package: str, module: str) -> str:
    """The class a module holds by the naming rule, read from its source without importing it ('' if none)."""
    import ast
    from pathlib import Path

    path = Path(next(iter(sys.modules[package].__path__))) / f"{module}.py"
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef) and node.name.lower() == module.replace("_", ""):
            return node.name
    return ""


def members(package: ModuleType) -> Iterator[tuple[str, type]]:
    """Every method class of a family, imported."""
    for module in module_names(package.__name__):
        if name := class_name(package.__name__, module):
            yield module, getattr(importlib.import_module(f"{package.__name__}.{module}"), name)
