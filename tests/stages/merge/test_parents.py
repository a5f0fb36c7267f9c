"""What a merge may combine, and what makes two tokenizers the same."""

import json
import shutil

import pytest

from graftline.stages.merge.parents import tokenizer_digest


@pytest.fixture
def copied(base, tmp_path):
    def make(name):
        return shutil.copytree(base.directory("model"), tmp_path / name)

    return make


def test_a_tokenizer_is_what_makes_tokens(base, copied):
    wanted = tokenizer_digest(base.directory("model"))
    same = copied("same")
    rules = json.loads((same / "tokenizer.json").read_text())
    rules["padding"], rules["truncation"] = {"strategy": "BatchLongest"}, {"max_length": 8}
    (same / "tokenizer.json").write_text(json.dumps(rules, indent=3))
    (same / "README.md").write_text("a model")
    assert tokenizer_digest(same) == wanted


def test_another_vocabulary_or_template_is_another_tokenizer(base, copied):
    wanted = tokenizer_digest(base.directory("model"))
    other = copied("vocabulary")
    rules = json.loads((other / "tokenizer.json").read_text())
    rules["model"]["merges"] = rules["model"]["merges"][:-1]
    (other / "tokenizer.json").write_text(json.dumps(rules))
    template = copied("template")
    (template / "chat_template.jinja").write_text("{{ messages }}")
    assert len({wanted, tokenizer_digest(other), tokenizer_digest(template)}) == 3


def test_a_template_may_lie_in_the_tokenizers_settings(base, copied):
    """Where older versions of transformers keep it."""
    older = copied("older")
    settings = json.loads((older / "tokenizer_config.json").read_text())
    settings["chat_template"] = (older / "chat_template.jinja").read_text()
    (older / "tokenizer_config.json").write_text(json.dumps(settings))
    (older / "chat_template.jinja").unlink()
    assert tokenizer_digest(older) == tokenizer_digest(base.directory("model"))


def test_without_a_tokenizer_there_is_nothing_to_compare(tmp_path):
    assert tokenizer_digest(tmp_path) == ""
    (tmp_path / "vocab.txt").write_text("a")
    assert tokenizer_digest(tmp_path) != ""
