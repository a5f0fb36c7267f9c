"""Opening the engine that a model asks for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from graftline.stages.errors import EngineFailed, WrongKind
from graftline.stages.lm.endpoint import Endpoint

if TYPE_CHECKING:
    from graftline.stages.lm.engine import Engine
    from graftline.stages.lm.llm import Llm
    from graftline.stages.lm.pressure import Gate


def open_engine(
    llm: Llm | Endpoint,
    directory: Path | None,
    adapters: Mapping[str, Path] | None = None,
    *,
    threads: int | None = None,
    held: str | None = None,
    gate: Gate | None = None,
) -> Engine:
    """The engine of a model; close it, or use it as a context manager.

    `local` falls back to plain generation where continuous batching cannot run the model; both answer alike.

    Args:
        llm: what was asked for: its name, engine and dtype; or a server's model.
        directory: its Hugging Face directory (the `model/` of its artefact); None for `scripted` and servers alone.
        adapters: name → PEFT directory, loaded from the start.
        threads: of torch, for the whole process (None: as they are).
        held: how the base is held (`none`, `nf4`), whatever the adapters say (None: as all of them say).
        gate: what requests to a server go through (None: one of the engine's own).

    Raises:
        WrongKind: the stage is no language model.
        ModelNotFound, AdapterMismatch, FileMissing: a directory is not what it should be.
        EngineFailed: the model cannot be loaded.
        EndpointRefused: the server's key is not set.
    """
    if isinstance(llm, Endpoint):
        from graftline.stages.lm.endpoint_engine import EndpointEngine

        return EndpointEngine(llm, adapters or {}, gate)
    if not hasattr(llm, "engine"):
        raise WrongKind(f"{llm.name} is no language model, nor made from one", do="name an Llm, or a tuned one")
    if llm.engine == "scripted":
        from graftline.stages.lm.scripted import ScriptedEngine

        return ScriptedEngine(llm.model, directory, adapters or {})
    if directory is None:
        raise EngineFailed("this engine needs the model's directory", where=llm.model)

    import torch

    from graftline.stages.lm.in_memory import Loaded
    from graftline.stages.lm.load import probe_dtype

    if threads is not None:
        torch.set_num_threads(threads)
    dtype = probe_dtype() if llm.dtype == "auto" else llm.dtype
    loaded = Loaded(llm.model, Path(directory), dtype, adapters or {}, held)
    if llm.engine == "local":
        from graftline.stages.lm.local import LocalEngine, unusable

        if not unusable(loaded.model):
            return LocalEngine(loaded)
    from graftline.stages.lm.plain import PlainEngine

    return PlainEngine(loaded)
