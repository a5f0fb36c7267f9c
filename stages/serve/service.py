"""A service: one engine for the base and its adapters, tried over HTTP."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from graftline.stages.errors import InvalidField, PortInUse, WrongKind
from graftline.stages.evaluate.requirement import Requirement
from graftline.stages.expected import Expected, Given, average
from graftline.stages.lm.llm import Llm
from graftline.stages.lm.reference import base_of, refuse_endpoint, refuse_other_bases
from graftline.stages.rows import digest
from graftline.stages.serve.belonging import refuse_mismatches
from graftline.stages.serve.place import AUTO, BASE, IMPORT_PATH
from graftline.stages.serve.probing import exchanges
from graftline.stages.serve.route.route import Route
from graftline.stages.specification import Added, Execution
from graftline.stages.stage import Adapter, Context, Model, Resources, Stage

if TYPE_CHECKING:
    from graftline.stages.artefact import Artefact

IDENTIFIER = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
RESERVED = (BASE, AUTO)


class Service(Stage):
    """Serves a base model and its adapters behind an OpenAI-compatible API, each under its name, the base as `base`;
    with a router `auto` is the one it chooses for each request.

    Making it writes `serve.yaml`, starts the application under a route prefix of its own, sends the probes to every
    id, keeps the answers in `transcript.json` and deletes the application again: it never means *running*, which is
    what `graftline serve` does. Requests of all clients and for all adapters share the engine's batch.

    The artefact's digest covers what is served (the models' and adapters' digests), the probes and their statuses;
    not the texts, which a real model may round differently, nor times, ports and places.

    Args:
        model: the base.
        adapters: id → adapter of that base. Ids are lower-case letters, digits, `.`, `_` and `-`, at most 64.
        models: id → another model (merged or fully tuned), with an engine of its own.
        router: chooses among these ids (and `base`) for requests to `auto`.
        requires: figures that must be reached first: `report.at_least("exact_match", 0.8)`.
        probe: user messages sent to every id, greedily.
        system: the system message of the probes (None: none).
        max_new_tokens: of a probe's answer.
        held: how the adapters' base is held (None: as they were trained, and adapters that differ are refused). `none`
            puts all on the float base; the service's metrics then have each one's `loss_on_float_base`.
        route: the route prefix (None: from the label, else from the stage's key).
        port: of HTTP (None: a running Serve's, else a free one).
        concurrency: answers an engine makes at once.
        queue: requests that may wait for an engine; further ones are told 429 with Retry-After.
        resources: of each engine (default: 1 CPU).

    Raises:
        RequirementUnmet: a figure is too small, or not a number.
        AdapterMismatch: an adapter was made for another base, or on bases held differently.
        PortInUse: the port is taken.
        EngineFailed: an engine did not start, or a probe met a server error.
    """

    method = "serve.service"
    origin = "Ray Serve behind OpenAI's API; no paper"
    makes = "service"

    model: Model
    adapters: Mapping[str, Adapter] = {}
    models: Mapping[str, Model] = {}
    router: Annotated[Route | None, Added] = None
    requires: tuple[Requirement, ...] = ()
    probe: Annotated[tuple[str, ...], Field(min_length=1)] = ("Hello!",)
    system: str | None = None
    max_new_tokens: Annotated[int, Field(ge=1)] = 32
    held: Annotated[Literal["none"] | None, Added] = None
    route: Annotated[str | None, Execution] = None
    port: Annotated[int | None, Field(ge=1, le=65535), Execution] = None
    concurrency: Annotated[int, Field(ge=1), Execution] = 16
    queue: Annotated[int, Field(ge=1), Execution] = 64

    def check(self) -> None:
        for field in ("adapters", "models"):
            for id, stage in getattr(self, field).items():
                where = f"Service.{field}.{id}"
                if not IDENTIFIER.fullmatch(id) or id in RESERVED or (field == "models" and id in self.adapters):
                    raise InvalidField(
                        f"{id!r} cannot be a model's id",
                        where=where,
                        do="use lower-case letters, digits, '.', '_' and '-', not 'base' or 'auto', each id once",
                    )
                if field == "models" and stage.kind != "model":
                    raise WrongKind(f"takes a model, {stage.name} makes {stage.kind}", where=where, do="use adapters=")
        if self.model.kind != "model":
            raise WrongKind(
                f"takes a model, {self.model.name} makes {self.model.kind}",
                where="Service.model",
                do="name the base here and the adapter in adapters=",
            )
        refuse_other_bases(self.model, self.adapters, where="Service.adapters")
        known = {BASE, *self.adapters, *self.models}
        if self.router is not None and (unknown := sorted(set(self.router.targets) - known)):
            raise InvalidField(
                f"chooses {unknown[0]!r}, which is not served", where="Service.router",
                do=f"route to {', '.join(sorted(known))}",
            )  # fmt: skip
        for field, model in {"model": self.model, **{f"models.{id}": each for id, each in self.models.items()}}.items():
            refuse_endpoint(model, where=f"Service.{field}", why="it is served already")
        if not re.fullmatch(r"[A-Za-z0-9._-]+", self.app_name):
            raise InvalidField(f"{self.route!r} is no route", where="Service.route", do="use one word: 'tickets'")

    @property
    def app_name(self) -> str:
        """The application's name, which is its route prefix, too."""
        if self.route is not None:
            return self.route.strip("/")
        slug = re.sub(r"[^a-z0-9]+", "-", (self.label or "").lower()).strip("-")
        return slug or f"graftline-{self.key[:8]}"

    def footprint(self) -> tuple[Resources, ...]:
        own = self.resources or Resources()
        engine = Resources(cpus=self._cpus, gpus=own.gpus, memory=own.memory, threads=own.threads)
        router = () if self.router is None else (Resources(cpus=0.0),)
        return (Resources(cpus=0.0), *[engine] * (1 + len(self.models)), *router)

    def expand(self) -> Mapping[str, Stage]:
        return {} if self.router is None else {"embedder": self.router.embedder}

    def preflight(self, file: Callable[[str], str]) -> None:
        from graftline.stages.serve.deploy import LOOPBACK, is_free

        if self.port is not None and not is_free(LOOPBACK, self.port) and not _is_ray_serve(self.port):
            raise PortInUse(f"port {self.port} is taken", where="Service.port", do="leave it unset, or choose another")

    def config(
        self, model: Artefact, adapters: Mapping[str, Artefact], models: Mapping[str, Artefact], held: str = "none",
        router: Artefact | None = None, embedder: Artefact | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """The contents of `serve.yaml`; `held`: how the adapters' base is held."""
        own = self.resources or Resources()

        def entry(stage: Stage, made: Artefact) -> dict[str, Any]:
            return {"root": stage.name, "uri": made.uri, "digest": made.digest}

        def with_llm(stage: Stage, made: Artefact) -> dict[str, Any]:
            llm = base_of(stage)
            if not isinstance(llm, Llm):
                raise WrongKind(f"{stage.name} has no Llm at its root", where="Service.model", do="serve a tuned Llm")
            return {**entry(stage, made), "llm": {"model": llm.model, "engine": llm.engine, "dtype": llm.dtype}}

        args = {
            "base": {**with_llm(self.model, model), "held": held},
            "adapters": {id: entry(self.adapters[id], adapters[id]) for id in sorted(self.adapters)},
            "models": {id: with_llm(self.models[id], models[id]) for id in sorted(self.models)},
            "cpus": self._cpus,
            "gpus": own.gpus,
            "memory": own.memory,
            "threads": own.threads or max(1, int(self._cpus)),
            "concurrency": self.concurrency,
            "queue": self.queue,
            "retry_after_s": 1,
        }
        if self.router is not None and router is not None and embedder is not None:
            args["router"] = {**entry(self.router, router), "embedder": entry(self.router.embedder, embedder)}
        application = {
            "name": self.app_name,
            "route_prefix": f"/{self.app_name}",
            "import_path": IMPORT_PATH,
            "args": args,
        }
        return {"applications": [application]}

    def expected(self, given: Given) -> Expected:
        """The probes, each to every id."""
        reader = given.reader(self.model)
        ids = [BASE, *self.adapters, *self.models, *(() if self.router is None else (AUTO,))]
        requests = self._requests(ids)
        prompt = average([reader.asked(request["messages"]) for request in requests])
        return Expected(usage=reader.usage(len(requests), prompt, reader.written(self.max_new_tokens)))

    def make(self, context: Context, out: Path, **inputs: Any) -> dict[str, Any]:
        import yaml

        from graftline.stages.serve.app import offered
        from graftline.stages.serve.deploy import deployed

        for requirement in self.requires:
            requirement.hold(context.opened(requirement.figure.report))
        adapters = inputs.get("adapters", {})
        held = refuse_mismatches(inputs["model"], adapters, where=f"{self.name}.adapters", held=self.held)
        routed = (inputs.get("router"), inputs.get("embedder"))
        config = self.config(inputs["model"], adapters, inputs.get("models", {}), held, *routed)
        (out / "serve.yaml").write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), encoding="utf-8")
        args = config["applications"][0]["args"]
        requests = self._requests([served.id for served in offered(args)])
        transcript = []
        context.progress(0, len(requests))
        # Under a name of its own: the one in serve.yaml may be running for users on this very cluster.
        with deployed(config, name=f"{self.app_name}-probe", port=self.port) as url:
            for exchange in exchanges(url, requests):
                transcript.append(exchange)
                context.progress(len(transcript), len(requests), seconds=exchange["seconds"])
        (out / "transcript.json").write_text(json.dumps(transcript, indent=1, ensure_ascii=False), encoding="utf-8")
        statuses = [exchange["status"] for exchange in transcript]
        used = [exchange["usage"] for exchange in transcript]
        moved = {id: made.metrics["loss_on_float_base"] for id, made in adapters.items() if self._moves(made)}
        return {
            "http_ok": int(all(status == 200 for status in statuses)),
            "probes": len(requests),
            "held": held,
            **{f"loss_on_float_base/{id}": loss for id, loss in sorted(moved.items())},
            "_calls": {
                "model": self.model.name,
                "requests": len(requests),
                "tokens_in": sum(each.get("prompt_tokens", 0) for each in used),
                "tokens_out": sum(each.get("completion_tokens", 0) for each in used),
            },
            "_digest": digest([[[served.id, served.digest] for served in offered(args)], held, requests, statuses]),
        }

    def _moves(self, adapter: Artefact) -> bool:
        """Whether an adapter is served on a base held otherwise than its own: then its training measured that, too."""
        return self.held is not None and "loss_on_float_base" in adapter.metrics

    def _requests(self, ids: Sequence[str]) -> list[dict[str, Any]]:
        """Each probe to each id, as a chat completion's request."""
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [
            {
                "model": id,
                "messages": [*system, {"role": "user", "content": text}],
                "temperature": 0.0,
                "max_tokens": self.max_new_tokens,
            }
            for id in ids
            for text in self.probe
        ]

    @property
    def _cpus(self) -> float:
        own = self.resources.cpus if self.resources else None
        return 1.0 if own is None else own


def _is_ray_serve(port: int) -> bool:
    """Whether a Ray Serve listens there: perhaps the one this service will join."""
    import httpx

    try:
        return httpx.get(f"http://127.0.0.1:{port}/-/routes", timeout=1, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False
