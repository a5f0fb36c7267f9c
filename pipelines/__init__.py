"""Running pipelines: plan, store, run, report, command line."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if __name__ != "graftline.pipelines":
    raise ImportError("import graftline.pipelines, not pipelines; run from the repository's root, with python -m")

if TYPE_CHECKING:
    from graftline.pipelines.budget import Budget
    from graftline.pipelines.planning import Plan, plan
    from graftline.pipelines.running import Run, retry, run

__all__ = ["Budget", "Plan", "Run", "plan", "retry", "run"]

# No file is named after a function: importing `plan.py` would put the module in the place of `plan()`.
HOLDERS = {
    "Budget": "budget",
    "Plan": "planning",
    "plan": "planning",
    "Run": "running",
    "retry": "running",
    "run": "running",
}


def __getattr__(name: str) -> Any:
    if name in HOLDERS:
        return getattr(import_module(f"graftline.pipelines.{HOLDERS[name]}"), name)
    raise AttributeError(f"graftline.pipelines has no {name!r}")
