"""Starting and stopping one application on Ray Serve, and nothing else that runs there.

Ray Serve has one HTTP port per Ray and silently ignores a second: a running Serve's port is used, whatever was asked.
"""

from __future__ import annotations

import importlib
import logging
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any

from graftline.stages.errors import CannotPlace, EngineFailed, PortInUse

logger = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
POLL = 0.1


def start(config: Mapping[str, Any], *, name: str, port: int | None = None, seconds: float = 600) -> str:
    """Start a `serve.yaml`'s application as `name` and wait until it answers.

    Args:
        config: the contents of a `serve.yaml` (one application).
        name: of the application; it is served under `/<name>`. A running one of this name is replaced.
        port: of HTTP; None: a running Serve's, else a free one.
        seconds: how long to wait for it.

    Returns:
        The base URL, with the prefix: `http://127.0.0.1:8000/tickets`.

    Raises:
        PortInUse: the port is taken, or Serve already listens on another.
        EngineFailed: a replica could not start.
        CannotPlace: the cluster has no room for a replica, or it took longer than `seconds`.
    """
    from ray import serve

    listening = listen(port)
    application = config["applications"][0]
    module, _, builder = application["import_path"].partition(":")
    built = getattr(importlib.import_module(module), builder)(application["args"])
    with _quiet():
        serve.run_many(
            [serve.RunTarget(target=built, name=name, route_prefix=f"/{name}")], wait_for_applications_running=False
        )
        try:
            _wait(name, seconds)
        except BaseException:
            stop(name)
            raise
    return f"http://{listening}/{name}"


def stop(name: str) -> None:
    """Delete one application; others, and Serve itself, keep running."""
    from ray import serve

    with _quiet():
        serve.delete(name)


@contextmanager
def deployed(config: Mapping[str, Any], *, name: str, port: int | None = None) -> Iterator[str]:
    """The application's base URL while inside; then it is deleted, and Serve ends if it was started for it."""
    ours = running() is None
    try:
        url = start(config, name=name, port=port)
        try:
            yield url
        finally:
            stop(name)
    finally:
        if ours:
            _end_if_idle()


def running() -> tuple[str, int] | None:
    """Host and port of the Serve that runs on this Ray, if one does."""
    import ray

    # Asked of the controller itself: Serve's public functions leave the port out, and keep a client a process that
    # does not notice when another process ends Serve.
    try:
        options = ray.get(_controller().get_http_config.remote(), timeout=30)
    except (ValueError, ray.exceptions.RayActorError):
        return None
    return str(options.host), int(options.port)


def listen(port: int | None) -> str:
    """Start Serve if it does not run; `host:port` as this process reaches it."""
    import ray
    from ray import serve

    found = running()
    if found is None:
        single = sum(node["Alive"] for node in ray.nodes()) == 1
        host = LOOPBACK if single else "0.0.0.0"
        found = host, port or free_port(host)
        if not is_free(*found):
            raise PortInUse(f"port {found[1]} is taken", where="port", do="leave it unset, or choose another")
        with _quiet():
            serve.start(http_options={"host": found[0], "port": found[1]}, logging_config={"log_level": "WARNING"})
    elif port not in (None, found[1]):
        raise PortInUse(
            f"Ray Serve already listens on port {found[1]}, and has only one", where="port", do="leave it unset"
        )
    else:
        with _quiet():
            serve.start()  # this process's client joins the Serve that runs now
    host = found[0]
    if host not in (LOOPBACK, "localhost"):
        here, proxies = ray.get_runtime_context().get_node_id(), serve.status().proxies
        addresses = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
        host = LOOPBACK if here in proxies else next((addresses[node] for node in proxies if node in addresses), host)
    return f"{host}:{found[1]}"


def _controller() -> Any:
    """Serve's controller. Raises ValueError where none runs."""
    import ray
    from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE

    return ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)


def _end_if_idle() -> None:
    """End Serve, if it runs and nobody has an application on it."""
    import ray
    from ray import serve
    from ray.serve._private.constants import SERVE_CONTROLLER_NAME

    if running() is None or serve.status().applications:
        return
    with _quiet():
        # serve.shutdown() alone waits in a call to the controller while that kills itself, and Ray then writes on
        # stdout that the call failed.
        ray.get(_controller().graceful_shutdown.remote(wait=False), timeout=30)
        until = time.monotonic() + 30
        while time.monotonic() < until and any(
            actor["name"] == SERVE_CONTROLLER_NAME for actor in ray.util.list_named_actors(all_namespaces=True)
        ):
            time.sleep(POLL)
        serve.shutdown()  # this process's client


def is_free(host: str, port: int) -> bool:
    """Whether a server could listen there. (Ray's own proxies would share the port with each other, unnoticed.)"""
    with closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port in TIME_WAIT is free
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True


def free_port(host: str = LOOPBACK) -> int:
    """A port nobody listens on."""
    with closing(socket.socket()) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def _wait(name: str, seconds: float) -> None:
    """Until the application runs."""
    import ray
    from ray import serve

    until = time.monotonic() + seconds
    while time.monotonic() < until:
        found = serve.status().applications.get(name)
        if found is not None and found.status == "RUNNING":
            return
        if found is not None and found.status in ("DEPLOY_FAILED", "UNHEALTHY"):
            told = [each.message for each in found.deployments.values() if each.message] or [found.message]
            reasons = "; ".join(map(last_line, told))
            what = f"the application could not start: {reasons}"
            raise EngineFailed(what, where=name, do="look at the reason, and start it again")
        time.sleep(POLL)
    raise CannotPlace(
        f"it did not start within {seconds:g} s; of {ray.cluster_resources().get('CPU', 0):g} CPUs"
        f" {ray.available_resources().get('CPU', 0):g} are free",
        where=name,
        do="ask for fewer CPUs (`resources`), or free some",
    )


def last_line(message: str) -> str:
    """What went wrong, of a message that ends in a traceback."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return lines[-1].removeprefix("graftline.stages.errors.") if lines else "no reason was given"


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Serve's own lines on starting and stopping, which would break into a live progress display."""
    theirs = logging.getLogger("ray.serve")
    level = theirs.level
    theirs.setLevel(logging.WARNING)
    try:
        yield
    finally:
        theirs.setLevel(level)
