"""Fields varied, trials made, the best one kept."""

if not __name__.startswith("graftline."):
    raise ImportError("import graftline.stages, not its folders; run from the repository's root, with python -m")

from graftline.stages.family import family

__getattr__, __dir__ = family(
    __name__, grid="domains", choice="domains", uniform="domains", log_uniform="domains", integers="domains"
)
