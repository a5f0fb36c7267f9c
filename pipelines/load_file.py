"""A user's pipeline file, or a run's `pipeline.json`, as roots; and how its classes reach Ray's workers."""

from __future__ import annotations

import importlib.util
import inspect
import json
import sys
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, NoneType, UnionType
from typing import Any

from graftline.pipelines.graph import roots_of
from graftline.stages.errors import FileMissing, GraftlineError, InvalidField, RequestError
from graftline.stages.specification import Specification
from graftline.stages.stage import Stage
from graftline.stages.value_graph import from_json, walk

WORDS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


@dataclass(frozen=True)
class Loaded:
    """What a file holds.

    Args:
        roots: name → stage.
        base: the folder from which its relative paths count.
        name: of the pipeline, in runs.
        file: the pipeline file ("" where there is none).
        parameters: what `pipeline` was called with.
        figures: the file's `figures(run) -> dict`, if it has one.
        classes: stage and plug classes of its own, by qualified name.
        lock: of the run it was taken from.
    """

    roots: Mapping[str, Stage]
    base: str
    name: str
    file: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    figures: Callable[[Any], Mapping[str, Any]] | None = None
    classes: Mapping[str, type[Specification]] = field(default_factory=dict)
    lock: Mapping[str, Any] | None = None


def load(path: str | Path, parameters: Mapping[str, str] | None = None) -> Loaded:
    """Loads a pipeline file (`.py`), or a run's `pipeline.json`.

    Args:
        parameters: values for the parameters of its function `pipeline`, as text.

    Raises:
        FileMissing: there is no such file.
        RequestError: it cannot be run, has no `pipeline`, or a parameter is not one of its own.
    """
    place = Path(path).absolute()
    if place.is_dir() and (place / "pipeline.json").exists():
        place /= "pipeline.json"
    if not place.is_file():
        raise FileMissing("there is no such file", where=str(place), do="give a pipeline file or a run's pipeline.json")
    if place.suffix == ".json":
        if parameters:
            raise RequestError(
                "its parameters are set already", where=str(place), do="give the pipeline file to change them"
            )
        try:
            table = json.loads(place.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise FileMissing(f"it is not JSON: {error}", where=str(place), do="give a run's pipeline.json") from error
        lock = place.with_name("lock.json")
        return from_table(table, str(place), json.loads(lock.read_text(encoding="utf-8")) if lock.exists() else None)
    module = load_module(place)
    build = getattr(module, "pipeline", None)
    if not callable(build):
        raise RequestError(
            "it has no function pipeline()",
            where=str(place),
            do="define one that returns a stage or a mapping of stages",
        )
    given = arguments(build, parameters or {}, str(place))
    with _their_own(place):
        built = build(**given)
    roots = roots_of(built)
    figures = getattr(module, "figures", None)
    signature = inspect.signature(build)
    defaults = {
        name: each.default for name, each in signature.parameters.items() if each.default is not inspect.Parameter.empty
    }
    return Loaded(
        roots,
        str(place.parent),
        place.stem,
        str(place),
        {**defaults, **given},
        figures if callable(figures) else None,
        classes_of(module),
    )


def from_table(table: Mapping[str, Any], where: str, lock: Mapping[str, Any] | None = None) -> Loaded:
    """A run's `pipeline.json`, which lies at `where`."""
    if "stages" not in table or "roots" not in table:
        raise RequestError("it is no pipeline", where=where, do="give a run's pipeline.json")
    classes = _in_memory({entry["class"] for entry in table["stages"].values()})
    figures = None
    file = table.get("file") or ""
    if file.endswith(".py") and Path(file).is_file():
        there = [module for module in list(sys.modules.values()) if getattr(module, "__file__", None) == file]
        module = there[0] if there else load_module(Path(file))
        classes, figures = {**classes_of(module), **classes}, getattr(module, "figures", None)
    return Loaded(
        from_json(table, classes),
        table.get("base") or str(Path(where).parent),
        table.get("pipeline") or "pipeline",
        file,
        table.get("parameters") or {},
        figures if callable(figures) else None,
        classes,
        lock,
    )


def _in_memory(names: Iterable[str]) -> dict[str, type[Specification]]:
    """Classes outside Graftline that modules of this process hold, by qualified name."""
    found = {}
    for name in names:
        module, _, own = name.rpartition(".")
        kind = getattr(sys.modules.get(module), own, None)
        if not name.startswith("graftline.") and isinstance(kind, type) and issubclass(kind, Specification):
            found[name] = kind
    return found


def load_module(path: Path) -> ModuleType:
    """Runs a pipeline file as the module of its stem; modules beside it can be imported, as with `python file.py`.

    Raises:
        RequestError: it raises, or its name is another module's.
    """
    name = path.stem
    there = sys.modules.get(name)
    taken = there is not None and getattr(there, "__file__", None) != str(path)
    if not name.isidentifier() or taken or (there is None and _is_installed(name, path)):
        why = "is not a Python name" if not name.isidentifier() else "is another module's"
        raise RequestError(f"the name {name!r} {why}", where=str(path), do="rename the file")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    try:
        with _their_own(path):
            spec.loader.exec_module(module)
    except GraftlineError:
        sys.modules.pop(name)
        raise
    return module


@contextmanager
def _their_own(path: Path) -> Iterator[None]:
    """What a pipeline file raises is a fault of the request, said with its line."""
    try:
        yield
    except GraftlineError:
        raise
    except Exception as error:
        line = _line_in(error, path)
        raise RequestError(
            f"it raises {type(error).__name__}: {error}",
            where=f"{path}{f', line {line}' if line else ''}",
            do="mend the file",
        ) from error


def _is_installed(name: str, path: Path) -> bool:
    if name in sys.stdlib_module_names:
        return True
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return False
    return spec is not None and spec.origin is not None and Path(spec.origin).absolute() != path


def _line_in(error: BaseException, path: Path) -> int | None:
    if isinstance(error, SyntaxError):
        return error.lineno
    found, trace = None, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path):
            found = trace.tb_lineno
        trace = trace.tb_next
    return found


def classes_of(module: ModuleType) -> dict[str, type[Specification]]:
    """The stage and plug classes a module defines or imports from elsewhere than Graftline, by qualified name."""
    found = {}
    for value in vars(module).values():
        ours = getattr(value, "__module__", "").startswith("graftline.")
        if isinstance(value, type) and issubclass(value, Specification) and not ours:
            found[value.qualified] = value
    return found


def arguments(build: Callable[..., Any], given: Mapping[str, str], where: str) -> dict[str, Any]:
    """Texts as the arguments a function's annotations ask for (int, float, bool, str, or one of them or None).

    Raises:
        InvalidField: a parameter the function does not have, or a text that is not of its type; it lists them all.
    """
    parameters = inspect.signature(build).parameters
    hints = typing.get_type_hints(build)
    listing = ", ".join(
        f"{name}{'' if each.default is inspect.Parameter.empty else f'={each.default!r}'}"
        for name, each in parameters.items()
    )
    found = {}
    for name, text in given.items():
        if name not in parameters:
            raise InvalidField(
                f"pipeline() has no parameter {name!r}",
                where=where,
                do=f"it has {listing}" if listing else "it has none",
            )
        hint = hints.get(name, type(parameters[name].default))
        try:
            found[name] = _value(text, hint)
        except ValueError:
            raise InvalidField(
                f"{text!r} is not {getattr(hint, '__name__', hint)}", where=f"{where}: {name}", do=f"it has {listing}"
            ) from None
    if missing := [
        name
        for name, each in parameters.items()
        if name not in found
        and each.default is inspect.Parameter.empty
        and each.kind not in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    ]:
        raise InvalidField(
            f"pipeline() needs {', '.join(missing)}", where=where, do=f"add --set {missing[0]}=…; it has {listing}"
        )
    return found


def _value(text: str, hint: Any) -> Any:
    if typing.get_origin(hint) in (typing.Union, UnionType):
        options = [each for each in typing.get_args(hint) if each is not NoneType]
        if text.lower() == "none" and len(options) < len(typing.get_args(hint)):
            return None
        for option in options:
            try:
                return _value(text, option)
            except ValueError:
                continue
        raise ValueError(text)
    if hint is bool:
        if text.lower() not in WORDS:
            raise ValueError(text)
        return WORDS[text.lower()]
    if hint in (int, float):
        return hint(text)
    if typing.get_origin(hint) is typing.Literal:
        if text not in map(str, typing.get_args(hint)):
            raise ValueError(text)
        return next(each for each in typing.get_args(hint) if str(each) == text)
    return text


def send_by_value(stages: Iterable[Stage], base: str) -> None:
    """Has the user's own modules travel to Ray's workers by value: those of the stages' classes, and those that lie
    below the pipeline's folder. (`__main__` always does.)"""
    from ray import cloudpickle

    names = {type(node).__module__ for node in walk(*stages)}
    below = {
        name
        for name, module in list(sys.modules.items())
        if (file := getattr(module, "__file__", None)) and Path(file).is_relative_to(base)
    }
    for name in sorted(names | below):
        if name != "__main__" and not name.startswith("graftline") and not _is_library(name) and name in sys.modules:
            cloudpickle.register_pickle_by_value(sys.modules[name])


def _is_library(name: str) -> bool:
    """Whether a module is installed, and workers therefore have it too."""
    file = getattr(sys.modules.get(name), "__file__", None) or ""
    return "site-packages" in file or "dist-packages" in file or name.partition(".")[0] in sys.stdlib_module_names
