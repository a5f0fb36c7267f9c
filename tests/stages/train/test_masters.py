"""Masters: whose they are, and what goes to and fro between them and the model."""

import torch

from graftline.stages.train import Lora
from graftline.stages.train.collectives import Alone
from graftline.stages.train.masters import average_gradients, collect_gradients, masters_of, publish


def attached_to(model):
    return Lora(rank=2).attach(model, {}, 0)


def test_fp32_parameters_are_their_own_masters(llama):
    attached = attached_to(llama())
    masters = masters_of(attached)
    assert all(masters[name] is each for name, each in attached.parameters.items())


def test_gradients_of_bins_are_added_in_fp32_and_leave_the_model(llama):
    attached = attached_to(llama().to(torch.bfloat16))
    masters = masters_of(attached)
    name, parameter = next(iter(attached.parameters.items()))
    for value in (1.0, 2.0**-9):  # whose sum is no bf16 number
        parameter.grad = torch.full_like(parameter, value)
        collect_gradients(attached, masters)
        assert parameter.grad is None
    assert masters[name].dtype == torch.float32 and torch.all(masters[name].grad == 1 + 2.0**-9)


def test_what_trains_has_a_gradient_and_nothing_else(llama):
    masters = masters_of(attached_to(llama()))
    first, second, *_ = masters
    masters[second].grad = torch.ones_like(masters[second])
    average_gradients(masters, {first}, Alone())
    assert torch.all(masters[first].grad == 0) and all(masters[name].grad is None for name in masters if name != first)


def test_the_model_gets_the_masters_rounded(llama):
    attached = attached_to(llama().to(torch.bfloat16))
    masters = masters_of(attached)
    with torch.no_grad():
        for each in masters.values():
            each.fill_(1 + 2.0**-10)
    publish(attached, masters)
    assert all(torch.all(each == 1) for each in attached.parameters.values())
