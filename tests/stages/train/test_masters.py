"""fp32 copies of what trains: where they come from, what they add up, and what the model gets of them."""

import pytest
import torch

from graftline.stages.train import Lora
from graftline.stages.train.collectives import Alone
from graftline.stages.train.masters import average_gradients, collect_gradients, masters_of, publish
from graftline.stages.train.plugs import Attached


@pytest.fixture
def rounded():
    """Two bf16 parameters, the first of which started from a number that bf16 has not."""
    module = torch.nn.ParameterDict({name: torch.nn.Parameter(torch.ones(2).bfloat16()) for name in "ab"})
    return Attached(module, dict(module), {"a": torch.full((2,), 1.001)})


def test_fp32_parameters_are_their_own_masters(llama):
    attached = Lora(rank=2).attach(llama(), {}, 0)
    masters = masters_of(attached)
    assert all(masters[name] is each for name, each in attached.parameters.items())


def test_a_master_starts_from_the_exact_number_where_that_is_known(rounded):
    masters = masters_of(rounded)
    assert masters["a"].tolist() == torch.full((2,), 1.001).tolist() and masters["b"].tolist() == [1.0, 1.0]
    with torch.no_grad():
        masters["a"].add_(1.0)
    assert rounded.exact["a"].max() < 1.01, "it is a copy"


def test_gradients_of_several_bins_add_up_in_fp32(rounded):
    masters = masters_of(rounded)
    for value in (1.0, 2**-9):  # whose sum bf16 has not
        rounded.parameters["a"].grad = torch.full((2,), value).bfloat16()
        collect_gradients(rounded, masters)
        assert rounded.parameters["a"].grad is None
    assert masters["a"].grad.tolist() == [1 + 2**-9] * 2 and masters["b"].grad is None
    average_gradients(masters, {"a", "b"}, Alone())
    assert masters["b"].grad.tolist() == [0.0, 0.0], "trained, but no row reached it"
    average_gradients(masters, {"a"}, Alone())
    assert masters["b"].grad is None and masters["a"].grad is not None


def test_the_model_gets_them_rounded(rounded):
    masters = masters_of(rounded)
    with torch.no_grad():
        masters["b"].fill_(1 + 2**-9)
    publish(rounded, masters)
    assert rounded.parameters["b"].tolist() == [1.0, 1.0] and masters["b"].tolist() == [1 + 2**-9] * 2
