"""The Ray Serve application: a gateway in front of one engine for base and adapters, and one for each other model.

`serve.yaml` names `build` as its import path, so `serve deploy` runs what the Service stage tried.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from graftline.stages.serve.chat import Served
from graftline.stages.serve.place import AUTO, BASE
from graftline.stages.serve.replica import EngineReplica
from graftline.stages.serve.routing import RouterReplica

if TYPE_CHECKING:
    from ray.serve import Application


class GatewayReplica:
    """The ingress: it knows the models' ids and the engines' handles, and calls no model itself."""

    def __init__(self, models: Sequence[Mapping[str, Any]], engines: Mapping[str, Any], router: Any = None) -> None:
        self.models, self.engines, self.router = models, engines, router

    def __serve_build_asgi_app__(self) -> Any:  # Ray Serve's name for what builds the web application
        from graftline.stages.serve.api import create_api

        return create_api([Served(**model) for model in self.models], self.engines, self.router)


def build(args: Mapping[str, Any]) -> Application:
    """The application of a `serve.yaml`.

    Args:
        args: `base` (uri, digest, root, llm), `adapters` and `models` (name → the same), `cpus`, `gpus`, `memory`,
            `threads` of a replica, `concurrency` (answers at once), `queue` (requests that may wait, then 429),
            `retry_after_s`; where there is one, the `router` (uri, digest, root, and its `embedder`'s uri and digest).
    """
    from ray import serve
    from ray.serve.config import BackpressureConfig

    busy = BackpressureConfig(status_code=429, retry_after_s=args["retry_after_s"])
    logging = {"log_level": "WARNING", "enable_access_log": False}

    def replica(name: str, kind: type, **actor: Any) -> Any:
        return serve.deployment(
            name=name,
            num_replicas=1,
            ray_actor_options=actor,
            max_ongoing_requests=args["concurrency"],
            max_queued_requests=args["queue"],
            backpressure_config=busy,
            max_constructor_retry_count=1,
            graceful_shutdown_wait_loop_s=0.1,
            graceful_shutdown_timeout_s=5,
            logging_config=logging,
        )(kind)

    def engine(name: str, model: Mapping[str, Any], adapters: Mapping[str, Any]) -> Application:
        deployment = replica(name, EngineReplica, num_cpus=args["cpus"], num_gpus=args["gpus"], memory=args["memory"])
        return deployment.bind(model, dict(adapters), args["threads"], args["concurrency"])

    engines = {"engine": engine("engine", args["base"], args["adapters"])}
    for name, model in args["models"].items():
        engines[f"engine-{name}"] = engine(f"engine-{name}", model, {})
    gateway = serve.deployment(
        name="gateway",
        ray_actor_options={"num_cpus": 0},
        # It only waits for engines: their queues are the limit that clients meet, this one is far behind it.
        max_ongoing_requests=4 * (args["concurrency"] + args["queue"]) * len(engines),
        backpressure_config=busy,
        graceful_shutdown_wait_loop_s=0.1,
        logging_config=logging,
    )(serve.ingress()(GatewayReplica))
    router = args.get("router")
    chooser = None if router is None else replica("router", RouterReplica, num_cpus=0).bind(router)
    return gateway.bind([asdict(model) for model in offered(args)], engines, chooser)


def offered(args: Mapping[str, Any]) -> list[Served]:
    """Every id the service answers to: `base`, then adapters and models by name, then `auto` where it has a router."""
    base, router = args["base"], args.get("router")
    auto = [] if router is None else [Served(AUTO, "router", None, router["root"], router["digest"])]
    return [
        Served(BASE, "engine", None, base["root"], base["digest"]),
        *(
            Served(name, "engine", name, adapter["root"], adapter["digest"], BASE)
            for name, adapter in sorted(args["adapters"].items())
        ),
        *(
            Served(name, f"engine-{name}", None, model["root"], model["digest"])
            for name, model in sorted(args["models"].items())
        ),
        *auto,
    ]
