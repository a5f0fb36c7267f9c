import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from graftline.stages.errors import InvalidField, RunError
from graftline.stages.train import AdamW, Lora, LossFilter, Sft, Shuffled
from graftline.stages.train.collectives import Alone
from graftline.stages.train.loop import train
from graftline.stages.train.source import IndexPlan


def drive(drawn, losses, steps):
    """What the loop does, with these losses for rows. Answers with batches, and the rows peeked at each step."""
    batches, peeked = [], []
    for step in range(steps):
        seen = []
        while candidates := drawn.peek(step):
            drawn.keep(candidates, [losses(place, step) for place in candidates])
            seen += candidates
        places, weights = drawn.next_batch(step)
        if not places:
            break
        assert weights == [1.0] * len(places)
        batches.append(places)
        peeked.append(seen)
        if drawn.observes:
            drawn.observe(sorted(places), [losses(place, step) for place in sorted(places)])
    return batches, peeked


def half_easy(place, step):
    return 0.0 if place % 2 else 2.0


# --- the sampler alone ------------------------------------------------------------------------------------------


def test_after_the_warmup_batches_are_full_and_of_hard_rows():
    drawn = LossFilter(warmup=0.25).start(16, 4, 0, 64)
    batches, peeked = drive(drawn, half_easy, 16)
    plain = Shuffled().start(16, 4, 0)
    assert batches[:4] == [plain.next_batch(step)[0] for step in range(4)] and peeked[:4] == [[]] * 4
    assert len(batches) == 4 + 6 and all(len(each) == 4 for each in batches)
    assert all(place % 2 == 0 for each in batches[4:] for place in each)
    stream = [place for step in range(4, 16) for place in plain.next_batch(step)[0]]
    assert [place for each in batches[4:] for place in each] == [place for place in stream if place % 2 == 0]
    assert drawn.numbers() == {"rows_seen": 64.0, "rows_skipped": 24.0, "loss_threshold": 1.0}


@settings(deadline=None)
@given(
    n=st.integers(1, 20),
    batch_size=st.integers(1, 9),
    total=st.integers(1, 90),
    warmup=st.floats(0.01, 0.99),
    window=st.integers(1, 12),
    seed=st.integers(0, 99),
)
def test_its_account_holds_whatever_the_losses(n, batch_size, total, warmup, window, seed):
    batch_size = min(n, batch_size)
    draw = np.random.default_rng(seed)
    told = {}

    def losses(place, step):
        told[place] = float(draw.uniform())
        return told[place]

    drawn = LossFilter(warmup=warmup, window=window).start(n, batch_size, seed, total)
    thresholds, free = set(), math.ceil(warmup * total / batch_size)
    trained = looked = 0
    stages = []
    for step in range(1000):
        while candidates := drawn.peek(step):
            assert step >= free
            drawn.keep(candidates, [losses(place, step) for place in candidates])
            looked += len(candidates)
        places, _ = drawn.next_batch(step)
        if not places:
            break
        trained += len(places)
        stages.append(drawn.observes)
        if drawn.observes:
            looked += len(places)
            drawn.observe(places, [losses(place, step) for place in places])
        else:
            assert len(places) == batch_size
        thresholds.add(drawn.threshold)
        assert drawn.numbers()["rows_seen"] == looked <= total
        assert looked == trained + drawn.skipped + len(drawn.waiting)
    assert looked == total and len(drawn.waiting) < batch_size
    assert len(thresholds - {None}) == 1, "the threshold does not move"
    assert stages == sorted(stages, reverse=True), "no way back to training on all"


def test_the_threshold_is_the_mean_of_the_last_losses_of_the_warmup():
    drawn = LossFilter(warmup=0.5, window=3).start(4, 2, 0, 8)
    for step, losses in enumerate(([1.0, 2.0], [3.0, 7.0])):
        assert drawn.threshold is None and drawn.observes
        drawn.next_batch(step)
        drawn.observe([0, 1], losses)
    assert drawn.threshold == 4.0 and not drawn.observes
    drawn.keep(drawn.peek(2), [4.0, 3.99])
    assert len(drawn.waiting) == 1, "a loss of exactly the threshold is hard"


def test_its_state_is_json_and_continues_it():
    whole = LossFilter(warmup=0.25).start(10, 3, 1, 60)
    expected, _ = drive(whole, half_easy, 99)
    for stop in range(1, len(expected)):
        first = LossFilter(warmup=0.25).start(10, 3, 1, 60)
        drive(first, half_easy, stop)
        second = LossFilter(warmup=0.25).start(10, 3, 1, 60)
        second.load(json.loads(json.dumps(first.state())))
        again = []
        for step in range(stop, 99):
            while candidates := second.peek(step):
                second.keep(candidates, [half_easy(place, step) for place in candidates])
            if not (places := second.next_batch(step)[0]):
                break
            again.append(places)
            if second.observes:
                second.observe(places, [half_easy(place, step) for place in places])
        assert again == expected[stop:] and second.numbers() == whole.numbers()


def test_numbers_out_of_range_are_refused():
    for fields in ({"warmup": 0.0}, {"warmup": 1.0}, {"window": 0}):
        with pytest.raises(InvalidField, match=f"LossFilter.{next(iter(fields))}"):
            LossFilter(**fields)


# --- in the loop ------------------------------------------------------------------------------------------------

LENGTHS = [9, 17, 5, 12, 24, 8, 31, 11, 6, 14, 20, 10]


class Watched(IndexPlan):
    """Keeps what was trained on, and what the rows' losses were when they were looked at."""

    def __init__(self, *given):
        super().__init__(*given)
        self.batches, self.looked = [], []

    def keep(self, places, losses):
        self.looked += zip(places, losses, strict=True)
        super().keep(places, losses)

    def next(self, step):
        places, weights = super().next(step)
        self.batches.append(places)
        return places, weights


@pytest.fixture
def run(llama, rows, settings, recorder):
    import peft  # noqa: F401  seconds, which are no test's own

    def go(reporter, sampler=None, objective=None, dropout=0.0, total=72, batch_size=4):
        attached = Lora(rank=4, dropout=dropout).attach(llama(), {}, 0)
        drawn = (sampler or LossFilter(warmup=0.2)).start(len(LENGTHS), batch_size, 0, total)
        plan = Watched(drawn, batch_size, total)
        masters, outcome = train(
            attached,
            objective or Sft(),
            AdamW(lr=0.03, schedule="constant"),
            plan,
            rows(LENGTHS),
            rows([7, 13], seed=1),
            settings(steps=plan.steps, eval_every=0),
            reporter,
            Alone(),
        )
        return {name: each.detach().clone() for name, each in masters.items()}, outcome, plan

    return go


def test_the_loop_trains_on_what_was_hard_when_looked_at(run, recorder):
    reporter = recorder()
    _, outcome, plan = run(reporter)
    free = math.ceil(0.2 * 72 / 4)
    threshold = reporter.values("loss_threshold")
    assert len(set(threshold)) == 1 and free < outcome.step < plan.steps == 18
    hard, batches = [place for place, loss in plan.looked if loss >= threshold[0]], plan.batches[free : outcome.step]
    assert all(len(each) == 4 for each in batches) and len(hard) < len(plan.looked)
    trained = [place for each in batches for place in each]
    assert trained == hard[: len(trained)] and len(hard) - len(trained) < 4
    assert reporter.values("rows_seen")[-1] == 72 and reporter.values("rows_skipped")[-1] > 0
    assert [step for step, numbers in reporter.logged if "eval_loss" in numbers] == [0, outcome.step]


def test_looking_keeps_no_graph_draws_nothing_and_sees_no_dropout(run, recorder):
    seen = []

    class Watching(Sft):
        def loss(self, model, batch, context):
            out = super().loss(model, batch, context)
            seen.append((context.training, model.training, out.loss_sum.requires_grad))
            return out

    run(recorder(), objective=Watching(), dropout=0.2)
    assert set(seen) == {(True, True, True), (False, False, False)}


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_killed_anywhere_it_ends_with_the_same_bits_and_is_not_trained_again(run, recorder, dropout):
    straight, outcome, _ = run(recorder("straight"), dropout=dropout)
    for step in (2, 4, outcome.step):
        with pytest.raises(KeyboardInterrupt):
            run(recorder(f"killed{step}", kill_after=step), dropout=dropout)
        masters, again, _ = run(recorder(f"killed{step}"), dropout=dropout)
        assert all(torch.equal(masters[name], straight[name]) for name in straight)
        assert again.values("loss") == outcome.values("loss")
        assert again.values("eval_loss") == outcome.values("eval_loss")
    reporter = recorder("straight")
    masters, _, _ = run(reporter, dropout=dropout)
    assert reporter.logged == [] and all(torch.equal(masters[name], straight[name]) for name in straight)


def test_a_row_whose_loss_is_not_a_number_is_not_taken_for_an_easy_one(run, recorder):
    class Breaking(Sft):
        def loss(self, model, batch, context):
            out = super().loss(model, batch, context)
            if not context.training and 6 in batch.rows and len(batch.rows) < 3 and context.step > 3:
                out.per_row[batch.rows.index(6)] = math.nan
            return out

    with pytest.raises(RunError, match=r"^rows r006: the loss is not finite before step \d"):
        run(recorder(), objective=Breaking())
