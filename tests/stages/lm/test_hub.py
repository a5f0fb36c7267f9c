"""A Hub look-up waits once, then the local cache is asked, and what is not there is said."""

import time

import pytest

from graftline.stages.errors import ModelNotFound
from graftline.stages.lm import hub


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A Hub's cache of our own, and a Hub nobody answers at."""
    import huggingface_hub
    from huggingface_hub import _snapshot_download, constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(_snapshot_download.constants, "HF_HUB_CACHE", str(tmp_path))

    class Unreachable:
        def model_info(self, *arguments, **named):
            assert named["timeout"] == hub.SECONDS
            raise ConnectionError("no network")

    monkeypatch.setattr(huggingface_hub, "HfApi", Unreachable)
    return tmp_path


def test_what_is_nowhere_is_said_quickly(cache):
    started = time.monotonic()
    with pytest.raises(ModelNotFound, match=r"no-such/model: it is no built-in and no directory.*ConnectionError"):
        hub.commit("no-such/model", None)
    assert time.monotonic() - started < 4


def test_without_a_network_the_local_cache_is_used(cache):
    folder = cache / "models--some--model"
    (folder / "snapshots" / "abc123").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc123")
    assert hub.commit("some/model", None) == "abc123"
    with pytest.raises(ModelNotFound):
        hub.commit("some/model", "v2")


@pytest.mark.parametrize(
    ("kind", "complaint"),
    [
        ("RepositoryNotFoundError", "no such model"),
        ("RevisionNotFoundError", "no revision 'v2'"),
        ("GatedRepoError", "grant access"),
    ],
)
def test_what_the_hub_refuses_is_said(cache, monkeypatch, kind, complaint):
    import httpx
    import huggingface_hub
    from huggingface_hub import errors

    class Refusing:
        def model_info(self, *arguments, **named):
            response = httpx.Response(404, request=httpx.Request("GET", "http://localhost"))
            raise getattr(errors, kind)("no", response=response)

    monkeypatch.setattr(huggingface_hub, "HfApi", Refusing)
    with pytest.raises(ModelNotFound, match=complaint):
        hub.commit("some/model", "v2")
