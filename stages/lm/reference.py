"""Which language model lies at the root of a model or adapter."""

from __future__ import annotations

from collections.abc import Mapping

from graftline.stages.errors import AdapterMismatch, InvalidField, WrongKind
from graftline.stages.lm.endpoint import Endpoint
from graftline.stages.stage import Stage


def base_of(model: Stage) -> Stage:
    """The model stage without inputs that a model or adapter stage was made from, through its field `model` (of a
    sweep or a loop: of the stage inside).

    Raises:
        InvalidField: a stage on the way does not say which model it is made from.
    """
    found = _root(model)
    if found is None:
        raise InvalidField(
            f"{model!r} does not say which model it is made from", where=model.name, do="give it a field `model`"
        )
    return found


def pristine_base(model: Stage) -> Stage:
    """The model that an adapter stage is valid on: the nearest one on the way to the root, which may be tuned itself.
    A model is its own.

    Raises:
        InvalidField: a stage on the way does not say which model it is made from.
    """
    found: Stage | None = model
    while found is not None and found.kind != "model":
        found = _made_from(found)
    return base_of(model) if found is None else found  # which says what is missing


def refuse_other_bases(model: Stage, adapters: Mapping[str, Stage], *, where: str) -> None:
    """Refuse, when a pipeline is built, adapters of another model by name. (Two names may hold the same weights, and
    one name others tomorrow, and a stage may not say its base at all: what was made is held to the weights' digests.)

    Raises:
        AdapterMismatch: an adapter's model has another name or revision.
    """
    wanted = _root(model)
    for name, adapter in adapters.items():
        found = _root(adapter)
        if type(found) is type(wanted) and any(
            getattr(found, field, None) != getattr(wanted, field, None) for field in ("model", "revision")
        ):
            raise AdapterMismatch(
                f"was made for {found!r}, not for {wanted!r}",
                where=f"{where}.{name}",
                do="give it the model it was trained on, or train it on this one",
            )


def refuse_endpoint(model: Stage, *, where: str, why: str) -> None:
    """Refuse, when a pipeline is built, a model that lies on a server: it has no weights here.

    Args:
        where: the field.
        why: what would need them.

    Raises:
        WrongKind: the model at the root is an `Endpoint`.
    """
    root = _root(model)
    if isinstance(root, Endpoint):
        raise WrongKind(f"{root!r} is a server's model: {why}", where=where, do="use an Llm")


def _root(model: Stage) -> Stage | None:
    found: Stage | None = model
    while found is not None and (
        found.kind != "model" or any(isinstance(value, Stage) for value in found.__dict__.values())
    ):
        found = _made_from(found)
    return found


def _made_from(stage: Stage) -> Stage | None:
    inner = getattr(stage, "model", None) or getattr(stage, "stage", None) or getattr(stage, "body", None)
    return inner if isinstance(inner, Stage) else None
