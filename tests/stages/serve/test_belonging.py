"""An adapter is served on its own base or not at all."""

import json

import pytest

from graftline.stages.errors import AdapterMismatch
from graftline.stages.lm import tiny
from graftline.stages.lm.load import model_digest
from graftline.stages.serve.belonging import refuse_mismatches


@pytest.fixture
def base(committed):
    return committed("model", tiny.write)


@pytest.fixture
def adapter(committed):
    def make(name, weights_digest, held="none"):
        card = {"base": {"name": "tiny", "weights_digest": weights_digest, "held": held}}
        return committed(name, lambda folder: (folder / "graftline.json").write_text(json.dumps(card)), "adapter")

    return make


def test_its_own_base(base, adapter):
    digest = model_digest(base.directory("model"))
    refuse_mismatches(base, {"a": adapter("a", digest), "b": adapter("b", digest)}, where="Service.adapters")


def test_another_base(base, adapter):
    with pytest.raises(AdapterMismatch, match=r"Service\.adapters\.a: was made for tiny with the weights 000000"):
        refuse_mismatches(base, {"a": adapter("a", "0" * 64)}, where="Service.adapters")


def test_no_word_on_its_base(base, committed):
    bare = committed("bare", lambda folder: None, "adapter")
    with pytest.raises(AdapterMismatch, match="does not say which base"):
        refuse_mismatches(base, {"a": bare}, where="Service.adapters")


def test_bases_held_differently(base, adapter):
    digest = model_digest(base.directory("model"))
    adapters = {"a": adapter("a", digest), "b": adapter("b", digest, held="nf4")}
    with pytest.raises(AdapterMismatch, match=r'^Service\.adapters: .*b \(nf4\), a \(none\)\..*held="none"'):
        refuse_mismatches(base, adapters, where="Service.adapters")
    assert refuse_mismatches(base, adapters, where="Service.adapters", held="none") == "none"


def test_how_the_base_is_to_be_held(base, adapter):
    digest = model_digest(base.directory("model"))
    assert refuse_mismatches(base, {}, where="") == refuse_mismatches(base, {"a": adapter("a", digest)}, where="")
    both = {"b": adapter("b", digest, held="nf4"), "c": adapter("c", digest, held="nf4")}
    assert refuse_mismatches(base, both, where="") == "nf4"
