"""A finished run's service, started again and kept up."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from graftline.stages.errors import PortInUse, UnknownStage
from graftline.stages.stage import Stage
from graftline.stages.value_graph import walk

if TYPE_CHECKING:
    from graftline.pipelines.running import Run


@dataclass(frozen=True)
class Service:
    """A service that runs.

    Args:
        url: its base URL, with the route prefix and without `/v1`.
        models: the ids it answers to.
    """

    url: str
    models: tuple[str, ...]

    @property
    def told(self) -> str:
        """What to say about it."""
        return f"serving {', '.join(self.models)} at {self.url}/v1 (OpenAI's API); Ctrl-C stops it"


def configuration(done: Run, stage: str | None = None) -> dict[str, Any]:
    """The `serve.yaml` of a run's service.

    Args:
        stage: which service, where the run has several.

    Raises:
        UnknownStage: the run has none, or several.
    """
    import yaml

    lines = [line for line in done.record["stages"] if line["kind"] == "service" and line["path"]]
    if stage is not None:
        lines = [done.line(stage)]
    if len(lines) != 1:
        what = f"the run has {len(lines)} services" if lines else "the run has no service that is made"
        do = "name one as STAGE" if lines else "add a serve.Service to the pipeline, and run it"
        raise UnknownStage(what, where=done.id, do=do)
    artefact = done.opened(lines[0])
    if "serve.yaml" not in artefact.manifest["files"]:
        raise UnknownStage(f"it makes a {artefact.kind}, no service", where=lines[0]["name"], do="name a service")
    with artefact.filesystem.open_input_stream(f"{artefact.path}/serve.yaml") as stream:
        found: dict[str, Any] = yaml.safe_load(stream.read())
    return found


def refuse_unservable(roots: Mapping[str, Stage], port: int | None) -> None:
    """What can be said of serving a pipeline before it is run.

    Raises:
        UnknownStage: it has no service, or several.
        PortInUse: the port is taken.
    """
    from graftline.stages.serve.deploy import LOOPBACK, is_free

    services = [stage for stage in walk(*roots.values()) if isinstance(stage, Stage) and stage.kind == "service"]
    if len(services) != 1:
        what = f"the pipeline has {len(services)} services" if services else "the pipeline has no service"
        do = "run it, then name one: graftline serve RUN STAGE" if services else "add a serve.Service to it"
        raise UnknownStage(what, where="--serve", do=do)
    if port is not None and not is_free(LOOPBACK, port):
        raise PortInUse(f"port {port} is taken", where="--port", do="leave it unset, or choose another")


@contextmanager
def served(config: Mapping[str, Any], port: int | None = None, address: str | None = None) -> Iterator[Service]:
    """The service while inside, on a cluster that is joined, or on a local one that ends with it."""
    import ray

    from graftline.pipelines.ray_workers import connect
    from graftline.stages.serve.app import offered
    from graftline.stages.serve.deploy import start, stop

    application = config["applications"][0]
    ours = not ray.is_initialized()
    if ours:
        connect(address or os.environ.get("RAY_ADDRESS"))
    try:
        url = start(config, name=application["name"], port=port)
        try:
            yield Service(url, tuple(each.id for each in offered(application["args"])))
        finally:
            stop(application["name"])
    finally:
        if ours:
            ray.shutdown()


def wait() -> None:
    """Until Ctrl-C, or a signal to terminate."""
    stopped = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda number, frame: stopped.set())
    try:
        while not stopped.wait(0.5):
            pass
    except KeyboardInterrupt:
        return
    finally:
        signal.signal(signal.SIGTERM, before)
