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
    from graftline.stages.lm.load import CARD, model_digest, refuse_other_base

    if not adapters:
        return held or NONE
    base = model_digest(model.directory("model"))
    said: dict[str, str] = {}
    for id, made in sorted(adapters.items()):
        folder = made.directory("adapter")
        if not (folder / CARD).exists():
            raise AdapterMismatch("does not say which base it belongs to", where=f"{where}.{id}", do="train it again")
        refuse_other_base(folder, base, where=f"{where}.{id}")
        said[id] = json.loads((folder / CARD).read_text(encoding="utf-8"))["base"]["held"]
    return held_by_all(said, where=where) if held is None else held
