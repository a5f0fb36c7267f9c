"""Artefacts by URI and digest."""

import pyarrow.fs as fs
import pytest

from graftline.stages.artefact import Artefact
from graftline.stages.errors import EngineFailed
from graftline.stages.serve.place import local, uri


def fill(folder):
    (folder / "config.json").write_text("{}")


def test_a_local_artefact_is_read_where_it_is(committed):
    made = committed("model with space", fill)
    assert uri(made).startswith("file:///")
    assert local(uri(made), made.digest, "model") == made.directory("model")
    assert (local(uri(made), made.digest, "model") / "config.json").read_text() == "{}"


def test_a_remote_artefact_is_named_by_its_filesystem(committed):
    made = committed("model", fill)
    remote = fs.SubTreeFileSystem("/", fs.LocalFileSystem())
    assert uri(Artefact(made.manifest, remote, "bucket/model")) == "subtree://bucket/model"


def test_another_content_is_refused(committed):
    made = committed("model", fill)
    with pytest.raises(EngineFailed, match="has the digest"):
        local(uri(made), "0" * 64, "model")


def test_what_is_gone_is_named(tmp_path):
    with pytest.raises(EngineFailed, match=r"nowhere: cannot be opened"):
        local((tmp_path / "nowhere").as_uri(), "0" * 64, "model")
