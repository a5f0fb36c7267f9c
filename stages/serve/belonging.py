"""Which base an adapter belongs to: its `graftline.json` says so, and a service holds it to that."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

from graftline.stages.errors import AdapterMismatch
from graftline.stages.lm.held import NONE, held_by_all

if TYPE_CHECKING:
    from graftline.stages.artefact import Artefact


def refuse_mismatches(model: Artefact, adapters: Mapping[str, Artefact], *, where: str, held: str | None = None) -> str:
    """Refuse adapters that were not made for this model. Answers with how their base is to be held.

    Args:
        held: how it is to be held, whatever the adapters say (None: as all of them say).

    Raises:
        AdapterMismatch: another base's weights, no word on the base, or bases held differently.
    """
    from graftline.stages.lm.load import model_digest

    if not adapters:
        return held or NONE
    base = model_digest(model.directory("model"))
    said: dict[str, str] = {}
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
        said[id] = belongs["held"]
    return held_by_all(said, where=where) if held is None else held
