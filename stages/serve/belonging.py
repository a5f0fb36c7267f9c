"""Which base an adapter belongs to: its `graftline.json` says so, and a service holds it to that."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

from graftline.stages.errors import AdapterMismatch

if TYPE_CHECKING:
    from graftline.stages.artefact import Artefact


def refuse_mismatches(model: Artefact, adapters: Mapping[str, Artefact], *, where: str) -> None:
    """Refuse adapters that were not made for this model.

    Raises:
        AdapterMismatch: another base's weights, no word on the base, or bases held differently in training.
    """
    from graftline.stages.lm.load import CARD, model_digest, refuse_other_base

    if not adapters:
        return
    base = model_digest(model.directory("model"))
    held: dict[str, str] = {}
    for id, made in sorted(adapters.items()):
        folder = made.directory("adapter")
        if not (folder / CARD).exists():
            raise AdapterMismatch("does not say which base it belongs to", where=f"{where}.{id}", do="train it again")
        refuse_other_base(folder, base, where=f"{where}.{id}")
        belongs = json.loads((folder / CARD).read_text(encoding="utf-8"))["base"]
        held.setdefault(belongs["held"], id)
    if len(held) > 1:
        listed = ", ".join(f"{id} ({how})" for how, id in sorted(held.items()))
        raise AdapterMismatch(
            f"were trained on bases held differently and cannot share an engine: {listed}",
            where=where,
            do="serve them apart",
        )
