"""Files of a model: copied by pattern, checked, and no embedding model taken for one that writes."""

import json

import pytest

from graftline.stages.errors import ModelNotFound
from graftline.stages.lm.model_files import check_files, copy, looks_like_path, refuse_embedding_model


def test_what_matches_is_copied_with_its_folder_and_links_are_followed(tmp_path):
    source, folder = tmp_path / "source", tmp_path / "folder"
    (source / "inner").mkdir(parents=True)
    folder.mkdir()
    (tmp_path / "blob").write_text("content")
    (source / "config.json").symlink_to(tmp_path / "blob")
    (source / "inner" / "config.json").write_text("inner")
    (source / "stray.py").write_text("no")
    copy(source, folder, ("*.json", "inner/config.json"))
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert found == {"config.json", "inner/config.json"} and not (folder / "config.json").is_symlink()
    with pytest.raises(ModelNotFound, match="no such model directory"):
        copy(tmp_path / "never", folder, ("*",))
    with pytest.raises(ModelNotFound, match="safetensors"):
        check_files(folder, "mine")


@pytest.mark.parametrize(
    ("architectures", "writes"),
    [
        (["LlamaForCausalLM"], True),
        (["GPT2LMHeadModel"], True),
        (["T5ForConditionalGeneration"], True),
        ([], True),
        (["BertModel"], False),
        (["BertForMaskedLM"], False),
        (["LlamaForSequenceClassification"], False),
    ],
)
def test_which_architectures_write(tmp_path, architectures, writes):
    (tmp_path / "config.json").write_text(json.dumps({"architectures": architectures}))
    if writes:
        refuse_embedding_model(tmp_path, "mine")
    else:
        with pytest.raises(ModelNotFound, match=f"is a {architectures[0]}"):
            refuse_embedding_model(tmp_path, "mine")


def test_a_folder_without_config_is_left_to_others(tmp_path):
    refuse_embedding_model(tmp_path, "mine")
    (tmp_path / "config.json").write_text("{")
    refuse_embedding_model(tmp_path, "mine")


def test_what_looks_like_a_path():
    assert [looks_like_path(name) for name in ("./a", "/a", "~/a", "a/b/c", "a/")] == [True] * 5
    assert not looks_like_path("owner/name") and not looks_like_path("tiny")
