"""The console script `graftline`: the pipelines' commands."""

from graftline.pipelines.main import app
from graftline.pipelines.main import main as pipelines_main

__all__ = ["app", "main"]


def main() -> None:
    """Runs the command line."""
    pipelines_main()
