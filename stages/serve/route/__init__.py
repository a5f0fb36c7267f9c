"""Choosing which model answers."""

if not __name__.startswith("graftline."):
    raise ImportError("import graftline.stages, not its folders; run from the repository's root, with python -m")

from graftline.stages.family import family

__getattr__, __dir__ = family(__name__)
