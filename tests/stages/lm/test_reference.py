"""The model at the root, and adapters of another one."""

import pytest

from graftline.stages.errors import AdapterMismatch, InvalidField
from graftline.stages.lm.llm import Llm
from graftline.stages.lm.reference import base_of, pristine_base, refuse_other_bases
from graftline.stages.stage import Model, Stage


class Tuned(Stage):
    makes = "adapter"
    model: Model


class TunedWhole(Stage):
    makes = "model"
    model: Model


class Baseless(Stage):
    makes = "adapter"


def test_the_base_is_found_through_any_depth() -> None:
    base = Llm("tiny")
    assert base_of(base) == base_of(Tuned(model=Tuned(model=base))) == base
    with pytest.raises(InvalidField, match="which model"):
        base_of(Baseless())


def test_an_adapter_belongs_on_the_nearest_model_not_on_the_root() -> None:
    whole = TunedWhole(model=Tuned(model=Llm("tiny")))
    assert pristine_base(Tuned(model=Tuned(model=whole))) == pristine_base(whole) == whole
    assert base_of(Tuned(model=whole)) == pristine_base(Tuned(model=Llm("tiny"))) == Llm("tiny")
    with pytest.raises(InvalidField, match="which model"):
        pristine_base(Tuned(model=Baseless()))


def test_an_adapter_of_another_model_is_refused() -> None:
    adapters = {"mine": Tuned(model=Llm("tiny"))}
    refuse_other_bases(Llm("tiny", label="the same"), adapters, where="Compare.adapters")
    with pytest.raises(AdapterMismatch, match=r"Compare\.adapters\.mine: was made for .*tiny.*other"):
        refuse_other_bases(Llm("other"), adapters, where="Compare.adapters")
    with pytest.raises(AdapterMismatch):
        refuse_other_bases(Llm("a/b", revision="x"), {"x": Tuned(model=Llm("a/b"))}, where="Compare.adapters")
