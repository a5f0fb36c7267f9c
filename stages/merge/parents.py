"""What a merge may combine: adapters of one base and one tokenizer. And what it says of its parents."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftline.stages.errors import AdapterMismatch
from graftline.stages.lineage import TRAINED_ON, together, trained_on
from graftline.stages.lm.reference import pristine_base
from graftline.stages.rows import canonical
from graftline.stages.serve.belonging import refuse_mismatches

if TYPE_CHECKING:
    from graftline.stages.artefact import Artefact
    from graftline.stages.stage import Context, Stage

CARD = "graftline.json"


def refuse_strangers(
    context: Context, model: Artefact, stages: Mapping[str, Stage], adapters: Mapping[str, Artefact], *, where: str
) -> None:
    """Refuse adapters that were not made on this model, held in one way, with its tokenizer.

    Raises:
        AdapterMismatch: another base, other ways to hold it, or another tokenizer or chat template.
    """
    refuse_mismatches(model, adapters, where=where)
    wanted = tokenizer_digest(model.directory("model"))
    for name, made in adapters.items():
        own = tokenizer_digest(made.directory("adapter"))
        found = own or tokenizer_digest(context.opened(pristine_base(stages[name])).directory("model"))
        if found != wanted:
            raise AdapterMismatch(
                "was trained with another tokenizer or chat template than the model's",
                where=f"{where}.{name}",
                do="merge it into the model it was trained on",
            )


def tokenizer_digest(directory: Path) -> str:
    """sha256 over what turns a conversation into tokens: vocabulary, rules and chat template; '' where there is none.
    Not over padding and truncation, which a tokenizer saves as they were last used."""
    found: dict[str, Any] = {}
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if (directory / name).is_file():
            found[name] = json.loads((directory / name).read_text(encoding="utf-8"))
    template = found.pop("tokenizer_config.json", {}).get("chat_template")
    if (directory / "chat_template.jinja").is_file():
        template = (directory / "chat_template.jinja").read_text(encoding="utf-8")
    if "tokenizer.json" in found:
        rules = {name: each for name, each in found["tokenizer.json"].items() if name not in ("padding", "truncation")}
        return hashlib.sha256(canonical([rules, template]).encode()).hexdigest()
    digest = hashlib.sha256()
    files = [file for name in ("vocab.*", "merges.txt", "*.model") for file in sorted(directory.glob(name))]
    for file in files:
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest() if files else ""


def card_of(adapter: Artefact) -> dict[str, Any]:
    """What an adapter says of itself: its base and how that was held, its method, its digest."""
    card: dict[str, Any] = json.loads((adapter.directory("adapter") / CARD).read_text(encoding="utf-8"))
    return card


def parent(adapter: Artefact, weight: float) -> dict[str, Any]:
    """What a merge records of an adapter it was made from."""
    return {"digest": adapter.digest, "fingerprint": adapter.fingerprint, "weight": weight}


def write_trained_on(parents: Iterable[Artefact], out: Path) -> None:
    """The rows that any parent was trained on, so that a merge is refused on its parents' training rows, too."""
    import pyarrow.parquet as pq

    rows = together(trained_on(made) for made in parents)
    if rows is not None:
        pq.write_table(rows, out / TRAINED_ON, compression="zstd")
