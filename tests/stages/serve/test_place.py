"""Artefacts by URI and digest."""

import pytest

from graftline.stages.errors import EngineFailed
from graftline.stages.serve.place import local


def fill(folder):
    (folder / "config.json").write_text("{}")


def test_a_local_artefact_is_read_where_it_is(committed):
    made = committed("model with space", fill)
    assert local(made.uri, made.digest, "model") == made.directory("model")
    assert (local(made.uri, made.digest, "model") / "config.json").read_text() == "{}"


def test_another_content_is_refused(committed):
    made = committed("model", fill)
    with pytest.raises(EngineFailed, match="has the digest"):
        local(made.uri, "0" * 64, "model")


def test_what_is_gone_is_named(tmp_path):
    with pytest.raises(EngineFailed, match=r"nowhere: cannot be opened"):
        local((tmp_path / "nowhere").as_uri(), "0" * 64, "model")
