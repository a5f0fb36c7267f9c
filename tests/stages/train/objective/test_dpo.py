import math

import numpy as np
import pyarrow as pa
import pytest
import torch

from graftline.stages import Llm, Source, train
from graftline.stages.errors import InvalidField, MissingColumn
from graftline.stages.rows import PREFERENCE
from graftline.stages.train import Dpo, Float, Lora, Shuffled
from graftline.stages.train import adapter as adapters
from graftline.stages.train import base as bases
from graftline.stages.train.build import build
from graftline.stages.train.collectives import Alone
from graftline.stages.train.loop import recalled
from graftline.stages.train.loop import train as run_loop
from graftline.stages.train.packing import bins
from graftline.stages.train.pairs import answer_logprobs, pack_pairs
from graftline.stages.train.plugs import LossContext
from graftline.stages.train.prepared import PreparedRows
from graftline.stages.train.source import IndexPlan
from graftline.stages.value_graph import inputs

CONTEXT = LossContext(0, 1, training=True)
LENGTHS = ((7, 3, 5), (4, 6, 2), (9, 1, 4), (5, 5, 5))


class Pairs(Source):
    """Preference rows that a test has."""

    number: int = 0

    def columns_made(self):
        return PREFERENCE


def stage(**fields):
    given = {"model": Llm("tiny"), "rows": Pairs(), "objective": Dpo(), "dtype": "float32"}
    return train.Train(**{**given, **fields})


@pytest.fixture
def made(llama):
    """Pairs of random tokens, with the reference that this model is."""
    import peft  # noqa: F401  seconds, which are no test's own

    draw = np.random.default_rng(0)
    rows = []
    for lengths in LENGTHS:
        parts = [draw.integers(3, 64, length).astype(np.int32) for length in lengths]
        row = dict(zip(("prompt_ids", "chosen_ids", "rejected_ids"), parts, strict=True))
        with torch.no_grad():
            sums, _ = answer_logprobs(llama(), pack_pairs([row]), 1)
        rows.append(row | dict(zip(("reference_chosen", "reference_rejected"), sums[0].tolist(), strict=True)))
    return rows


def dpo(**fields):
    """DPO with the reference that the rows have."""
    return Dpo(precomputed=True, **fields)


def loss(model, rows, objective=None, weights=None):
    objective = objective or dpo()
    batch = objective.collate(range(len(rows)), rows, weights or [1.0] * len(rows))
    return objective.loss(model, batch, CONTEXT)


def beside(attached, rows, objective=None, settings=None):
    """The loss with the reference computed in the same bin."""
    objective = objective or Dpo()
    batch = objective.collate(range(len(rows)), rows, [1.0] * len(rows))
    return objective.loss(attached.model, recalled(attached, objective, batch, settings), CONTEXT)


def moved(model, std=0.02):
    """The same model, a little trained."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        for each in model.parameters():
            each.add_(torch.randn_like(each) * std)
    return model


def shipped(slot):
    """Every class of a slot that can be made of its defaults."""
    found = []
    for name in dir(slot):
        kind = getattr(slot, name)
        if isinstance(kind, type) and not any(field.is_required() for field in kind.model_fields.values()):
            found.append(kind)
    return found


def swapped(row):
    names = {"chosen_ids": "rejected_ids", "reference_chosen": "reference_rejected"}
    names |= {there: here for here, there in names.items()}
    return {names.get(name, name): value for name, value in row.items()}


# --- the loss ---------------------------------------------------------------------------------------------------


def test_at_the_start_the_loss_is_log_2(llama, made):
    out = loss(llama(), made)
    assert out.per_row.tolist() == pytest.approx([math.log(2)] * 4, abs=1e-5)
    assert out.loss_sum.item() == pytest.approx(4 * math.log(2), abs=1e-5) and out.weight == 4.0
    smooth = loss(llama(), made, dpo(smoothing=0.3))
    assert smooth.per_row.tolist() == pytest.approx([math.log(2)] * 4, abs=1e-5)
    assert out.metrics["margin"] == pytest.approx(0, abs=1e-4)


def test_at_the_start_the_loss_of_ipo_is_a_quarter_over_beta_squared(llama, made):
    for beta in (0.1, 0.5):
        out = loss(llama(), made, dpo(form="ipo", beta=beta))
        assert out.per_row.tolist() == pytest.approx([1 / (4 * beta**2)] * 4, rel=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("adapter", shipped(adapters), ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("base", shipped(bases), ids=lambda kind: kind.__name__)
def test_at_the_start_the_loss_is_log_2_to_the_last_bit(tiny_directory, settings, made, base, adapter, dtype):
    """Whoever shares the bin, and with gradients or without: other kernels compute it there, which round otherwise."""
    import peft  # noqa: F401  seconds, which are no test's own

    try:
        plugs = stage(base=base(), adapter=adapter())
    except InvalidField:
        return  # the two do not go together
    attached = build(tiny_directory / "model", dtype, plugs.base, plugs.adapter, 3, "cpu")
    attached.keep_start()
    for gradients in (True, False):
        for rows in (made, made[1:3]):
            with torch.set_grad_enabled(gradients):
                out = beside(attached, rows, settings=settings())
            assert out.metrics["margin"] == 0.0 and out.metrics["accuracy"] == 0.0
            assert out.per_row.tolist() == [torch.tensor(2.0).log().item()] * len(rows)
    with torch.no_grad():
        for each in attached.parameters.values():
            each.add_(torch.randn_like(each) * 0.05)
    assert abs(beside(attached, made, settings=settings()).metrics["margin"]) > 1e-3, "the policy moves alone"


def test_beside_the_policy_the_reference_gives_what_it_gives_precomputed(llama, settings, made):
    """In fp32, where the passes' shapes matter little."""
    attached = Lora(rank=2).attach(llama(), {}, 0)
    attached.keep_start()
    with torch.no_grad():
        for each in attached.parameters.values():
            each.add_(torch.randn_like(each) * 0.05)
    now, before = beside(attached, made, settings=settings()), loss(attached.model, made)
    assert now.per_row.tolist() == pytest.approx(before.per_row.tolist(), abs=1e-6)
    assert (now.per_row - math.log(2)).abs().max() > 1e-3


def test_dpo_sums_over_tokens_and_ipo_takes_their_mean(llama, made):
    model = moved(llama())
    with torch.no_grad():
        logprobs, tokens = answer_logprobs(model, pack_pairs(made), 4)
    reference = torch.tensor([[row["reference_chosen"], row["reference_rejected"]] for row in made])
    assert tokens.tolist() == [[float(chosen), float(rejected)] for _, chosen, rejected in LENGTHS]
    gaps = logprobs - reference
    h = gaps[:, 0] - gaps[:, 1]
    assert loss(model, made, dpo(beta=0.3)).per_row.tolist() == pytest.approx(
        (1 + (-0.3 * h).exp()).log().tolist(), rel=1e-4
    )
    smoothed = 0.8 * (1 + (-0.3 * h).exp()).log() + 0.2 * (1 + (0.3 * h).exp()).log()
    assert loss(model, made, dpo(beta=0.3, smoothing=0.2)).per_row.tolist() == pytest.approx(
        smoothed.tolist(), rel=1e-4
    )
    means = gaps / tokens
    expected = ((means[:, 0] - means[:, 1]) - 1 / 0.6) ** 2
    assert loss(model, made, dpo(beta=0.3, form="ipo")).per_row.tolist() == pytest.approx(expected.tolist(), rel=1e-4)
    assert (h - (means[:, 0] - means[:, 1])).abs().max() > 0.1, "the two could be told apart"


def test_the_forms_that_share_its_core(llama, made):
    model = moved(llama())
    with torch.no_grad():
        logprobs, tokens = answer_logprobs(model, pack_pairs(made), 4)
    reference = torch.tensor([[row["reference_chosen"], row["reference_rejected"]] for row in made])
    sums, means = logprobs - reference, logprobs / tokens
    h, m = sums[:, 0] - sums[:, 1], means[:, 0] - means[:, 1]

    def sigmoid(margin):
        return (1 + (-margin).exp()).log()

    def found(**fields):
        return loss(model, made, Dpo(**fields, precomputed=fields["form"] != "simpo")).per_row.tolist()

    close = lambda values: pytest.approx(values.tolist(), rel=1e-4, abs=1e-5)  # noqa: E731
    hinged = (1 - 0.3 * h).clamp(min=0)
    assert found(form="hinge", beta=0.3) == close(hinged)
    assert found(form="sigmoid", beta=0.3, gamma=0.5) == close(sigmoid(0.3 * h - 0.5))
    assert found(form="hinge", beta=0.3, gamma=0.5) == close((1.5 - 0.3 * h).clamp(min=0))
    robust = (0.8 * sigmoid(0.3 * h) - 0.2 * sigmoid(-0.3 * h)) / 0.6
    assert found(form="robust", beta=0.3, smoothing=0.2) == close(robust)
    assert found(form="simpo", beta=2.5, gamma=0.5) == close(sigmoid(2.5 * m - 0.5))
    assert found(form="sigmoid", beta=0.3, likelihood=0.7) == close(sigmoid(0.3 * h) - 0.7 * means[:, 0])


def test_the_robust_loss_is_unbiased_where_so_many_labels_are_wrong(llama, made):
    """Rafailov's loss of the true labels is its mean over wrong ones; the smoothed loss is not."""
    model, wrong, objective = moved(llama()), 0.3, dpo(form="robust", smoothing=0.3)
    right, flipped = (loss(model, each, objective).per_row for each in (made, [swapped(row) for row in made]))
    plain = loss(model, made).per_row
    assert ((1 - wrong) * right + wrong * flipped).tolist() == pytest.approx(plain.tolist(), rel=1e-4)


def test_packed_pairs_have_the_loss_of_separate_ones(llama, made):
    model = moved(llama())
    packed = loss(model, made)
    apart = [loss(model, [row]) for row in made]
    assert packed.per_row.tolist() == pytest.approx([each.per_row.item() for each in apart], rel=1e-4)
    for name in ("margin", "logprob_chosen", "logprob_rejected", "accuracy"):
        assert packed.metrics[name] == pytest.approx(sum(each.metrics[name] for each in apart), rel=1e-4)


def test_an_answer_sees_neither_the_other_nor_another_pair(llama, made):
    model = moved(llama())
    alone = answer_logprobs(model, pack_pairs([made[0]]), 1)[0]
    other = {**made[0], "rejected_ids": made[0]["rejected_ids"][::-1].copy()}
    beside = answer_logprobs(model, pack_pairs([made[2], other]), 2)[0][1]
    assert beside[0].item() == pytest.approx(alone[0, 0].item(), rel=1e-5)
    assert beside[1].item() != pytest.approx(alone[0, 1].item(), rel=1e-3)


def test_swapped_answers_turn_the_gradient_round(llama, made):
    model = llama()
    gradients = []
    for rows in (made, [swapped(row) for row in made]):
        model.zero_grad()
        loss(model, rows).loss_sum.backward()
        gradients.append(model.lm_head.weight.grad.clone())
    assert torch.allclose(gradients[0], -gradients[1], atol=1e-5) and gradients[0].abs().max() > 1e-3


def test_prompt_tokens_are_not_predicted(made):
    tensors = pack_pairs(made[:2])
    ids = tensors["input_ids"][0]
    assert torch.equal(ids[tensors["positions"] + 1], tensors["labels"])
    assert tensors["positions"].tolist()[:3] == [6, 7, 8] and tensors["positions"].tolist()[3:8] == [16, 17, 18, 19, 20]
    assert tensors["owner"].tolist() == [0] * 3 + [1] * 5 + [2] * 6 + [3] * 2
    assert tensors["position_ids"].tolist() == [[*range(10), *range(12), *range(10), *range(6)]]
    assert Dpo().length(made[0]) == 22 and Dpo().collate([0], made[:1], [1.0]).tokens == 22


def test_the_head_runs_where_an_answer_is_predicted_alone(llama, made):
    model, seen = llama(), []
    model.lm_head.register_forward_hook(lambda module, given, out: seen.append(given[0].shape[-2]))
    loss(model, made)
    assert seen == [sum(chosen + rejected for _, chosen, rejected in LENGTHS)]


@pytest.mark.parametrize("bin_tokens", [1, 40])
def test_unequal_bins_have_the_gradient_of_the_whole_batch(llama, made, bin_tokens):
    objective, gradients = dpo(), []
    for capacity in (1000, bin_tokens):
        model = moved(llama())
        packed = bins([objective.length(row) for row in made], capacity)
        batches = [objective.collate(each, [made[place] for place in each], [1.0] * len(each)) for each in packed]
        total = sum(each.weight for each in batches)
        for batch in batches:
            (objective.loss(model, batch, CONTEXT).loss_sum / total).backward()
        gradients.append((model.lm_head.weight.grad, len(batches)))
    (whole, one), (parts, several) = gradients
    assert one == 1 and several > 1 and torch.allclose(whole, parts, atol=1e-6) and whole.abs().max() > 1e-3


def test_weights_are_of_pairs(llama, made):
    model = moved(llama())
    plain = loss(model, made)
    weighed = loss(model, made, weights=[0.5, 0.0, 2.0, 1.0])
    expected = (plain.per_row * torch.tensor([0.5, 0.0, 2.0, 1.0])).sum().item()
    assert weighed.weight == 3.5 and weighed.loss_sum.item() == pytest.approx(expected, rel=1e-5)
    assert weighed.per_row.tolist() == pytest.approx(plain.per_row.tolist(), rel=1e-5)


# --- the value --------------------------------------------------------------------------------------------------


def test_what_cannot_be_is_refused():
    with pytest.raises(InvalidField, match=r"^Dpo.smoothing"):
        Dpo(form="ipo", smoothing=0.1)
    with pytest.raises(InvalidField, match=r"^Dpo.beta"):
        Dpo(beta=0.0)
    with pytest.raises(InvalidField, match=r"^Dpo.smoothing.*the sigmoid"):
        Dpo(form="robust")
    with pytest.raises(InvalidField, match=r"^Dpo.gamma.*IPO has a margin"):
        Dpo(form="ipo", gamma=0.5)
    with pytest.raises(InvalidField, match=r"^Dpo.precomputed.*no reference"):
        dpo(form="simpo")
    with pytest.raises(InvalidField, match=r"^Dpo.reference.*no reference"):
        Dpo(form="simpo", reference="base")
    with pytest.raises(InvalidField, match=r"^Train\.adapter\.dropout"):
        stage(adapter=Lora(dropout=0.1))
    with pytest.raises(MissingColumn, match=r"Train.rows.*'(prompt|chosen)'"):
        stage(rows=Given())


class Given(Source):
    """Rows without preferences."""


class Elsewhere(Lora):
    """An adapter that does not start as the base."""

    identity_at_start = False


def references(made):
    return {each for each in inputs(made) if isinstance(each, train.ReferenceLogprobs)}


def test_trials_share_a_reference_that_does_not_depend_on_them():
    one = stage(held_out=Pairs(number=1), objective=dpo())
    assert len(references(one)) == 2
    for other in (one.replace("adapter.rank", 32), one.replace("seed", 5), one.replace("objective.beta", 0.5)):
        assert references(other) == references(one)
    assert references(one.replace("max_length", 99)) != references(one)
    (found,) = references(stage(objective=dpo()))
    assert found.adapter is None and found.base == Float()


def test_the_reference_is_the_adapters_start_or_the_pristine_base():
    (found,) = references(stage(adapter=Elsewhere(rank=3), seed=4, objective=dpo()))
    assert found.adapter == Elsewhere(rank=3) and found.seed == 4
    (pristine,) = references(stage(adapter=Elsewhere(rank=3), seed=4, objective=Dpo(reference="base")))
    assert pristine.adapter is None and pristine == next(iter(references(stage(objective=dpo()))))
    assert not references(stage()) and not references(stage(objective=Dpo(form="simpo", beta=2.0)))


# --- whole runs -------------------------------------------------------------------------------------------------


@pytest.fixture
def run(context, tmp_path, tiny_directory, opened, preferences):
    import peft  # noqa: F401  seconds, which are no test's own

    def go(made):
        given = {"model": opened(tiny_directory)}
        context.artefacts[made.model] = given["model"]
        for field, hidden in made.expand().items():
            rows = preferences(9) if field == "prepared" else preferences(4, start=50)
            scored = isinstance(hidden, train.ReferenceLogprobs)
            tokenised = hidden.rows if scored else hidden
            rows = tokenised.map_rows(rows, context).drop_columns(["filtered"])
            for name, values in hidden.score_rows(rows, context).items() if scored else ():
                rows = rows.append_column(name, [values])
            given[field] = opened(tmp_path / field, "rows", rows)
        out = tmp_path / "attempt"
        out.mkdir()
        return made.make(context, out, **given)

    return go


def test_margins_grow_from_a_loss_of_log_2(run, context):
    metrics = run(
        stage(
            held_out=Pairs(number=1),
            adapter=Lora(rank=4),
            optimizer=train.AdamW(lr=0.01),
            steps=12,
            batch_size=9,
            bin_tokens=128,
            eval_every=4,
        )
    )
    assert metrics["eval_loss_before"] == pytest.approx(math.log(2), abs=1e-7)
    assert context.values("loss")[0] == pytest.approx(math.log(2), abs=1e-7)
    margins, evaluated = context.values("margin"), context.values("eval_loss")
    assert margins[0] == 0 and margins[-1] > 1 and margins[-1] > margins[4] > 0.01
    assert context.values("accuracy")[-1] == 1.0 and evaluated[-1] < evaluated[1] < evaluated[0]
    assert context.values("logprob_rejected")[-1] < context.values("logprob_rejected")[0]
    assert metrics["loss_as_served"] == pytest.approx(metrics["loss_as_trained"], abs=1e-5)


@pytest.mark.parametrize(("objective", "dtype"), [(Dpo(), "bfloat16"), (Dpo(), "float32"), (dpo(), "float32")])
def test_an_adapter_that_starts_elsewhere_still_starts_at_log_2(run, context, objective, dtype):
    class Moved(Lora):
        identity_at_start = False

        def attach(self, model, factors, seed):
            attached = super().attach(model, factors, seed)
            generator = torch.Generator().manual_seed(seed % 2**31)
            with torch.no_grad():
                for each in attached.parameters.values():
                    each.copy_(torch.randn(each.shape, generator=generator) * 0.3)
            return attached

    run(stage(adapter=Moved(rank=2), steps=1, batch_size=9, bin_tokens=128, objective=objective, dtype=dtype))
    exact = 1e-4 if objective.precomputed else 1e-7
    assert context.values("loss")[0] == pytest.approx(math.log(2), abs=exact)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_resumed_run_still_knows_its_start(llama, settings, recorder, made, dtype):
    """Which is the adapter's, not the checkpoint's."""
    table = PreparedRows(
        pa.table({"id": [f"r{index}" for index in range(4)], **{name: [row[name] for row in made] for name in made[0]}})
    )

    def go(reporter):
        attached = Lora(rank=2).attach(llama().to(dtype), {}, 0)
        plan = IndexPlan(Shuffled().start(4, 2, 0), 2, 8)
        changed = settings(steps=4, checkpoint_every=1, eval_every=2)
        return run_loop(attached, Dpo(), train.AdamW(lr=0.05), plan, table, table, changed, reporter, Alone())

    masters, straight = go(recorder("straight"))
    with pytest.raises(KeyboardInterrupt):
        go(recorder("killed", kill_after=2))
    again, resumed = go(recorder("killed"))
    for name in ("loss", "margin", "eval_loss"):
        assert resumed.values(name) == straight.values(name)
    assert all(torch.equal(again[name], masters[name]) for name in masters) and straight.values("margin")[-1] > 0.01


@pytest.mark.parametrize("adapter", shipped(adapters), ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("base", shipped(bases), ids=lambda kind: kind.__name__)
def test_the_policy_starts_as_its_reference(base, adapter, context, tiny_directory, opened, preferences):
    """Which an adapter that is no identity, but says so, would break."""
    import peft  # noqa: F401  seconds, which are no test's own

    try:
        made = stage(base=base(), adapter=adapter(), seed=3, objective=dpo())
    except InvalidField:
        return  # the two do not go together
    (found,) = references(made)
    context.artefacts[made.model] = opened(tiny_directory)
    rows = found.rows.map_rows(preferences(2), context)
    scores = found.score_rows(rows, context)
    policy = build(tiny_directory / "model", "float32", made.base, made.adapter, made.seed, "cpu").model.eval()
    arrays = [{name: np.array(ids) for name, ids in row.items()} for row in rows.select(list(found.needs)).to_pylist()]
    with torch.no_grad():
        sums, _ = answer_logprobs(policy, pack_pairs(arrays), 2)
    for index, name in enumerate(scores):
        assert sums[:, index].tolist() == pytest.approx(scores[name], abs=1e-4)
