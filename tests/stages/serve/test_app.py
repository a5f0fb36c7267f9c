"""The application of a `serve.yaml`: which ids, which deployments, which limits."""

import pytest
from ray.serve import Application
from ray.serve._private.api import call_user_app_builder_with_args_if_necessary
from ray.serve._private.build_app import build_app

from graftline.stages.serve.app import build, offered

ARGS = {
    "base": {"uri": "file:///base", "digest": "b" * 64, "root": "tiny", "llm": {}},
    "adapters": {"tickets": {"uri": "file:///tickets", "digest": "a" * 64, "root": "Train"}},
    "models": {"full": {"uri": "file:///full", "digest": "f" * 64, "root": "Train", "llm": {}}},
    "cpus": 1.0, "gpus": 0.0, "memory": None, "threads": 1, "concurrency": 4, "queue": 8, "retry_after_s": 2,
}  # fmt: skip


def test_every_id_has_its_engine():
    assert [(model.id, model.engine, model.adapter, model.parent) for model in offered(ARGS)] == [
        ("base", "engine", None, None), ("tickets", "engine", "tickets", "base"), ("full", "engine-full", None, None),
    ]  # fmt: skip


def test_deployments():
    built = {each.name: each for each in build_app(build(ARGS), name="x").deployments}
    assert set(built) == {"gateway", "engine", "engine-full"}
    assert built["gateway"].ray_actor_options["num_cpus"] == 0
    for name in ("engine", "engine-full"):
        assert built[name].ray_actor_options["num_cpus"] == 1.0
        assert (built[name].max_ongoing_requests, built[name]._deployment_config.max_queued_requests) == (4, 8)
        limit = built[name]._deployment_config.backpressure_config
        assert (limit.status_code, limit.retry_after_s) == (429, 2)
    assert built["gateway"].max_ongoing_requests > 2 * (4 + 8)
    model, adapters, threads, concurrency = built["engine"].init_args
    assert (model["digest"], set(adapters), threads, concurrency) == ("b" * 64, {"tickets"}, 1, 4)
    assert built["engine-full"].init_args[1] == {}


def test_ray_serves_own_command_can_build_it():
    """`serve deploy serve.yaml` calls the import path so."""
    assert isinstance(call_user_app_builder_with_args_if_necessary(build, ARGS), Application)


def test_a_router_is_a_deployment_without_a_cpu_of_its_own():
    router = {
        "uri": "file:///r",
        "digest": "r" * 64,
        "root": "LinearRouter",
        "embedder": {"uri": "file:///e", "digest": "e"},
    }
    args = ARGS | {"router": router}
    assert [(model.id, model.engine, model.root) for model in offered(args)][-1] == ("auto", "router", "LinearRouter")
    built = {each.name: each for each in build_app(build(args), name="x").deployments}
    assert set(built) == {"gateway", "engine", "engine-full", "router"}
    assert built["router"].ray_actor_options["num_cpus"] == 0
    assert built["router"].init_args == (router,)


@pytest.mark.parametrize("missing", ["base", "adapters", "concurrency"])
def test_a_file_that_lacks_something_is_refused_at_once(missing):
    with pytest.raises(KeyError, match=missing):
        build({name: value for name, value in ARGS.items() if name != missing})
