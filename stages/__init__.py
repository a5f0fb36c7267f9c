"""What can happen to data and models: the stages of a pipeline, by family."""

if not __name__.startswith("graftline."):
    raise ImportError("import graftline.stages, not stages; run from the repository's root, with python -m")

from graftline.stages.family import family
from graftline.stages.shapes import Made, Mapper, Rounds, RowStage, Scorer, Selector, Source, Verdict
from graftline.stages.specification import Execution, FrozenMapping, Paper, Plug
from graftline.stages.stage import (
    Adapter,
    Context,
    EmbeddingModel,
    Model,
    Report,
    Resources,
    Rows,
    Service,
    Stage,
    View,
)
from graftline.stages.value_graph import replace

__getattr__, __dir__ = family(
    __name__,
    Embedder="lm.embedder",
    Endpoint="lm.endpoint",
    Growing="repeat",
    Llm="lm.llm",
    Previous="repeat",
    Repeat="repeat",
    Round="repeat",
    Until="until",
)

__all__ = [
    "Adapter",
    "Context",
    "EmbeddingModel",
    "Execution",
    "FrozenMapping",
    "Made",
    "Mapper",
    "Model",
    "Paper",
    "Plug",
    "Report",
    "Resources",
    "Rounds",
    "RowStage",
    "Rows",
    "Scorer",
    "Selector",
    "Service",
    "Source",
    "Stage",
    "Verdict",
    "View",
    "replace",
]
