"""The README's Python, as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def test_the_pipeline_and_its_variant_build() -> None:
    from graftline.stages.value_graph import walk

    names: dict[str, object] = {}
    pipeline, variant = [block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL)][:2]
    exec(pipeline, names)
    exec(variant, names)
    ranks = {stage.rank for stage in walk(*names["wider"].values()) if type(stage).__name__ == "Lora"}  # type: ignore[attr-defined]
    assert ranks == {32}, "in the report and in the service alike"
