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
    from graftline.stages.lm.load import model_digest

    if not adapters:
        return
    base = model_digest(model.directory("model"))
    held: dict[str, str] = {}
    for id, made in sorted(adapters.items()):
        card = made.directory("adapter") / "graftline.json"
        if not card.exists():
            raise AdapterMismatch("does not say which base it belongs to", where=f"{where}.{id}", do="train it again")
        belongs = json.loads(card.read_text(encoding="utf-8"))["base"]
        if belongs["weights_digest"] != base:
            raise AdapterMismatch(
                f"was made for {belongs['name']} with the weights {belongs['weights_digest'][:16]}, "
                f"the model's are {base[:16]}",
                where=f"{where}.{id}",
                do="serve it with the base it was trained on",
            )
        held.setdefault(belongs["held"], id)
    if len(held) > 1:
        listed = ", ".join(f"{id} ({how})" for how, id in sorted(held.items()))
        raise AdapterMismatch(
            f"were trained on bases held differently and cannot share an engine: {listed}",
            where=where,
            do="serve them apart",
        )
