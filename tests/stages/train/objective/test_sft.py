import copy
import dataclasses

import numpy as np
import pytest
import torch

from graftline.stages.errors import InvalidField
from graftline.stages.lm.faster import faster
from graftline.stages.lm.upper_layers import cut_off
from graftline.stages.train import Continue, Float, Full, Hft, Lora, Nf4, Pissa, Sft
from graftline.stages.train.build import hold
from graftline.stages.train.plugs import LossContext

CONTEXT = LossContext(0, 1, training=True)


def loss(model, rows, places, objective=None, weights=None):
    objective = objective or Sft()
    given = [rows[place] for place in places]
    return objective.loss(model, objective.collate(places, given, weights or [1.0] * len(places)), CONTEXT)


def test_packed_rows_have_the_loss_of_separate_ones(llama, rows):
    model, table = llama(), rows([9, 17, 5, 12])
    packed = loss(model, table, [0, 1, 2, 3])
    apart = [loss(model, table, [place]) for place in range(4)]
    assert packed.weight == sum(each.weight for each in apart) == 3 + 5 + 1 + 4
    assert packed.loss_sum.item() == pytest.approx(sum(each.loss_sum.item() for each in apart), rel=1e-5)
    assert packed.per_row.tolist() == pytest.approx([each.loss_sum.item() / each.weight for each in apart], rel=1e-5)


def test_the_loss_is_the_models_own_on_one_row(llama, rows):
    model, row = llama(), rows([15])[0]
    ids = torch.from_numpy(row["input_ids"].astype(np.int64))[None]
    labels = torch.where(torch.from_numpy(row["trained"].copy())[None], ids, -100)
    own = model(input_ids=ids, labels=labels, use_cache=False).loss.item()
    made = loss(model, rows([15]), [0])
    assert made.loss_sum.item() / made.weight == pytest.approx(own, rel=1e-5)


def test_a_row_does_not_change_its_neighbours_logits(llama, rows):
    model, first, other = llama(), rows([9, 14]), rows([9, 14], seed=1)

    def logits(before):
        batch = Sft().collate([0, 1], [before, first[1]], [1.0, 1.0])
        keep = torch.arange(9, 23)  # all of row 2
        with torch.no_grad():
            return model(
                input_ids=batch.tensors["input_ids"],
                position_ids=batch.tensors["position_ids"],
                use_cache=False,
                logits_to_keep=keep,
            ).logits

    assert not np.array_equal(first[0]["input_ids"], other[0]["input_ids"])
    assert torch.allclose(logits(first[0]), logits(other[0]), atol=1e-6)


def test_the_same_rows_with_a_cache_or_a_mask_would_see_each_other(llama, rows):
    """What the previous test guards against: it must be able to see a leak."""
    model, first, other = llama(), rows([9, 14]), rows([9, 14], seed=1)

    def logits(before, **leaky):
        batch = Sft().collate([0, 1], [before, first[1]], [1.0, 1.0])
        given = {name: batch.tensors[name] for name in ("input_ids", "position_ids")}
        with torch.no_grad():
            return model(**given, **leaky).logits[:, 9:]

    mask = torch.ones(1, 23, dtype=torch.long)
    for leaky in ({"use_cache": True}, {"use_cache": False, "attention_mask": mask}):
        assert not torch.allclose(logits(first[0], **leaky), logits(other[0], **leaky), atol=1e-3)


def test_only_trained_tokens_and_among_them_the_last_get_a_loss(rows):
    table = rows([6, 9])
    batch = Sft().collate([0, 1], [table[0], table[1]], [1.0, 1.0])
    ids = batch.tensors["input_ids"][0]
    assert batch.tensors["positions"].tolist() == [3, 4, 11, 12, 13]  # the position before each trained token
    assert torch.equal(batch.tensors["labels"], ids[[4, 5, 12, 13, 14]])
    assert batch.tensors["position_ids"].tolist() == [[*range(6), *range(9)]]
    assert batch.tokens == 15 and batch.weight == 5 and batch.rows == (0, 1)


def test_a_rows_first_token_is_never_predicted_from_the_row_before(rows):
    table = rows([4, 4])
    every = {**table[1], "trained": np.ones(4, dtype=bool)}
    batch = Sft().collate([0, 1], [table[0], every], [1.0, 1.0])
    assert batch.tensors["positions"].tolist() == [2, 4, 5, 6]


def test_prompt_tokens_have_no_gradient_through_labels(llama, rows):
    model, table = llama(), rows([12])
    changed = {**table[0], "trained": table[0]["trained"].copy()}
    batch = Sft().collate([0], [changed], [1.0])
    out = Sft().loss(model, batch, CONTEXT)
    head = torch.autograd.grad(out.loss_sum, model.lm_head.weight)[0]
    # Each supervised position sends softmax - onehot: rows of labels alone are pushed up (negative sum with hidden).
    logits = model(
        input_ids=batch.tensors["input_ids"], position_ids=batch.tensors["position_ids"], use_cache=False
    ).logits[0]
    logits.retain_grad()
    labels = torch.full((12,), -100)
    labels[batch.tensors["positions"]] = batch.tensors["labels"]
    torch.nn.functional.cross_entropy(logits, labels, ignore_index=-100, reduction="sum").backward()
    assert torch.count_nonzero(logits.grad[: 12 - 4 - 1]) == 0 and torch.count_nonzero(logits.grad[7:11]) > 0
    assert torch.allclose(head, model.lm_head.weight.grad, atol=1e-5)


def test_weights_of_rows_and_of_prompts(llama, rows):
    model, table = llama(), rows([9, 12])
    plain = [loss(model, table, [place]) for place in (0, 1)]
    weighed = loss(model, table, [0, 1], weights=[0.5, 0.0])
    assert weighed.weight == plain[0].weight / 2
    assert weighed.loss_sum.item() == pytest.approx(plain[0].loss_sum.item() / 2, rel=1e-5)
    assert weighed.per_row.isfinite().all()
    both = loss(model, table, [0], Sft(prompt_weight=0.25))
    assert both.weight == 3 + 0.25 * (9 - 3 - 1)
    everything = {**table[0], "trained": np.ones(9, dtype=bool)}
    whole = Sft().loss(model, Sft().collate([0], [everything], [1.0]), CONTEXT).loss_sum.item()
    expected = plain[0].loss_sum.item() + 0.25 * (whole - plain[0].loss_sum.item())
    assert both.loss_sum.item() == pytest.approx(expected, rel=1e-5)


def test_a_batch_moves_whole(rows):
    batch = Sft().collate([0], [rows([5])[0]], [1.0])
    moved = batch.to("meta")
    assert all(each.device.type == "meta" for each in moved.tensors.values())
    assert dataclasses.replace(moved, tensors={}) == dataclasses.replace(batch, tensors={})


# --- a cached prefix --------------------------------------------------------------------------------------------

CACHED = Sft(cached_prefix=True)


def with_states(model, rows):
    """The rows as `PrefixStates` leaves them, where the upper one of two layers trains."""
    lower = copy.deepcopy(model)
    cut_off(lower, 1)
    made = []
    for row in rows:
        given = torch.from_numpy(row["input_ids"].astype(np.int64))[None]
        states = lower.base_model(input_ids=given, use_cache=False).last_hidden_state[0].detach()
        made.append({**row, "prefix_states": states.view(torch.uint8).numpy().tobytes(), "prefix_layers": 1})
    return made


@pytest.mark.parametrize("base", [Float(), Nf4()], ids=["float", "nf4"])
@pytest.mark.parametrize("alike", [0, 6], ids=["nothing in common", "a common prefix"])
def test_a_cached_prefix_changes_no_loss_and_no_gradient(llama, rows, base, alike):
    model = llama()
    hold(model, base, Lora(upper=1))
    faster(model)
    table = [rows([9, 17, 12, 12])[place] for place in range(4)]
    if alike:
        head = table[0]["input_ids"][:alike]
        table = [{**row, "input_ids": np.concatenate([head, row["input_ids"][alike:]])} for row in table]
    table = with_states(model, table)
    attached = Lora(rank=4, upper=1).attach(model, {}, 0)
    torch.manual_seed(5)
    for parameter in attached.parameters.values():
        torch.nn.init.normal_(parameter, std=0.1)
    model.train()
    found = []
    for objective in (Sft(), CACHED):
        out = loss(model, table, [0, 1, 2, 3], objective, [1.0, 0.5, 1.0, 2.0])
        gradients = torch.autograd.grad(out.loss_sum / out.weight, list(attached.parameters.values()))
        found.append([out.loss_sum.detach() / out.weight, out.per_row, *gradients])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)
    assert found[0][2].abs().max() > 1e-4
    assert CACHED.as_served == Sft() and Sft().as_served == Sft()
    assert loss(model, table, [0], CACHED.as_served).loss_sum == loss(model, table, [0]).loss_sum


@pytest.mark.parametrize("adapter", [Lora(), Full(), Hft(), Pissa(), Continue()], ids=lambda each: type(each).__name__)
def test_a_prefix_that_may_train_is_not_cached(adapter):
    CACHED.suits(Lora(upper=4, dropout=0.1))
    with pytest.raises(InvalidField, match=r"objective.cached_prefix: .*may train any layer.*Lora\(upper=8\)"):
        CACHED.suits(adapter)
