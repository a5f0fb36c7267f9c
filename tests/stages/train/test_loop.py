"""The loop on a tiny Llama in fp32, without Ray."""

import json
import math
import threading

import pytest
import torch

from graftline.stages.errors import RunError
from graftline.stages.train import AdamW, Lora, LossFilter, Sft, Shuffled
from graftline.stages.train.collectives import Alone
from graftline.stages.train.loop import collate, evaluate, held_bins, seeded, train
from graftline.stages.train.masters import average_gradients, collect_gradients, masters_of
from graftline.stages.train.plugs import Attached, Bound, Drawn, LossContext, Optimizer
from graftline.stages.train.source import IndexPlan

LENGTHS = [9, 17, 5, 12, 24, 8, 31, 11, 6, 14]


def plan(batch_size=4, steps=6):
    return IndexPlan(Shuffled().start(len(LENGTHS), batch_size, 0), batch_size, steps * batch_size)


@pytest.fixture
def run(llama, rows, settings, recorder):
    """Trains, from a fresh model; answers with masters, outcome and what was attached."""

    def go(
        reporter=None,
        adapter=None,
        optimizer=None,
        source=None,
        held=True,
        ranks=None,
        dtype=None,
        objective=None,
        attached=None,
        **changed,
    ):
        model = llama() if dtype is None else llama().to(dtype)
        attached = attached or (adapter or Lora(rank=2)).attach(model, {}, 0)
        masters, outcome = train(
            attached,
            objective or Sft(),
            optimizer or AdamW(lr=0.02),
            source or plan(),
            rows(LENGTHS),
            rows([7, 13, 10], seed=1) if held else None,
            settings(**changed),
            reporter or recorder(),
            ranks or Alone(),
        )
        return {name: each.detach().clone() for name, each in masters.items()}, outcome, attached

    return go


def same(one, other):
    return set(one) == set(other) and all(torch.equal(one[name], other[name]) for name in one)


def close(one, other, atol):
    return set(one) == set(other) and all(torch.allclose(one[name], other[name], atol=atol) for name in one)


# --- gradients --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bin_tokens", [1, 20, 40])
def test_unequal_bins_have_the_gradient_of_the_whole_batch(llama, rows, settings, bin_tokens):
    table = rows([9, 24, 5, 12])
    gradients = []
    for capacity in (1000, bin_tokens):
        attached = Lora(rank=2).attach(llama(), {}, 0)
        torch.manual_seed(1)
        for parameter in attached.parameters.values():
            torch.nn.init.normal_(parameter, std=0.1)
        masters = masters_of(attached)
        batches = collate(Sft(), table, [(place, 1.0) for place in range(4)], settings(bin_tokens=capacity))
        total = sum(each.weight for each in batches)
        for batch in batches:
            (Sft().loss(attached.model, batch, LossContext(0, 1, True)).loss_sum / total).backward()
            collect_gradients(attached, masters)
        average_gradients(masters, set(masters), Alone())
        gradients.append(({name: each.grad for name, each in masters.items()}, len(batches)))
    (whole, one), (parts, several) = gradients
    assert one == 1 and several >= 2
    assert close(whole, parts, atol=1e-6) and max(each.abs().max() for each in whole.values()) > 1e-3


def test_bins_do_not_change_a_run(run, recorder):
    narrow = run(recorder("a"), bin_tokens=1)[0]
    wide = run(recorder("b"), bin_tokens=1000)[0]
    assert close(narrow, wide, atol=1e-5)


class Threads:
    """Ranks as threads of this process, for the loop's arithmetic; the real process group has its own test."""

    def __init__(self, size):
        self.size, self.barrier, self.slots = size, threading.Barrier(size, timeout=60), [None] * size

    def rank_of(self, rank):
        return Rank(self, rank)


class Rank:
    def __init__(self, threads, rank):
        self.threads, self.rank, self.size = threads, rank, threads.size

    def gather(self, value):
        self.threads.slots[self.rank] = value
        self.threads.barrier.wait()
        values = list(self.threads.slots)
        self.threads.barrier.wait()
        return values

    def sum(self, tensors):
        every = self.gather([each.clone() for each in tensors])
        for index, tensor in enumerate(tensors):
            tensor.copy_(sum(each[index] for each in every))


@pytest.mark.parametrize("batch_size", [4, 2], ids=["shared", "fewer rows than ranks"])
def test_three_ranks_train_as_one(run, recorder, llama, batch_size):
    alone, outcome, _ = run(recorder("one"), source=plan(batch_size))
    threads, results = Threads(3), {}
    # The ranks share one process's generator, so each adapter is made beforehand, and nothing draws later.
    attached = [Lora(rank=2).attach(llama(), {}, 0) for _ in range(3)]

    def work(rank):
        ranks = threads.rank_of(rank)
        results[rank] = run(recorder(f"rank{rank}"), ranks=ranks, attached=attached[rank], source=plan(batch_size))

    running = [threading.Thread(target=work, args=(rank,)) for rank in range(3)]
    for each in running:
        each.start()
    for each in running:
        each.join()
    assert sorted(results) == [0, 1, 2]
    for masters, mine, _ in results.values():
        assert close(masters, alone, atol=1e-5)
        assert mine.values("loss") == pytest.approx(outcome.values("loss"), abs=1e-5)
        assert mine.values("eval_loss") == pytest.approx(outcome.values("eval_loss"), abs=1e-5)
        assert mine.tokens == outcome.tokens


def test_three_ranks_look_at_rows_as_one_and_end_together(run, recorder, llama):
    def filtered():
        return IndexPlan(LossFilter(warmup=0.3).start(len(LENGTHS), 4, 0, 48), 4, 48)

    alone, outcome, _ = run(recorder("one"), source=filtered(), steps=12)
    threads, results = Threads(3), {}
    attached = [Lora(rank=2).attach(llama(), {}, 0) for _ in range(3)]

    def work(rank):
        source = filtered()
        made = run(
            recorder(f"rank{rank}"), ranks=threads.rank_of(rank), attached=attached[rank], source=source, steps=12
        )
        results[rank] = (*made, source.drawn)

    running = [threading.Thread(target=work, args=(rank,)) for rank in range(3)]
    for each in running:
        each.start()
    for each in running:
        each.join()
    assert sorted(results) == [0, 1, 2] and outcome.step < 12
    assert len({json.dumps(drawn.state()) for *_, drawn in results.values()}) == 1, "every rank keeps the same rows"
    for masters, mine, _, _ in results.values():
        assert close(masters, alone, atol=1e-5) and mine.step == outcome.step
        assert mine.values("rows_skipped") == outcome.values("rows_skipped")
        assert mine.values("rows_skipped")[-1] > 0 and mine.values("rows_seen")[-1] == 48


# --- what is logged ---------------------------------------------------------------------------------------------


def test_it_learns_and_says_so(run, recorder):
    reporter = recorder()
    _, outcome, _ = run(
        reporter, optimizer=AdamW(lr=0.05), steps=32, source=plan(steps=32), eval_every=15, checkpoint_every=99
    )
    losses = reporter.values("loss")
    assert len(losses) == 32 and sum(losses[-5:]) < 0.9 * sum(losses[:5])
    assert [step for step, numbers in reporter.logged if "eval_loss" in numbers] == [0, 15, 30, 32]
    assert {"loss", "lr", "grad_norm", "tokens_per_second"} <= set(dict(reporter.logged)[1])
    assert outcome.step == 32 and outcome.seconds > 0
    assert outcome.tokens == sum(LENGTHS[place] for step in range(32) for place in plan().drawn.next_batch(step)[0])


def test_the_first_loss_is_the_pristine_bases(run, llama, rows, settings, recorder):
    reporter = recorder()
    run(reporter)
    held = rows([7, 13, 10], seed=1)
    bins = held_bins(Attached(llama(), {}), Sft(), held, settings(), Alone())
    expected = evaluate(llama(), Sft(), bins, settings(), Alone())
    assert reporter.values("eval_loss")[0] == pytest.approx(expected, abs=1e-6)
    apart = [collate(Sft(), held, [(place, 1.0)], settings())[0] for place in range(3)]
    sums = [Sft().loss(llama(), each, LossContext(0, 1, False)) for each in apart]
    mean = sum(each.loss_sum.item() for each in sums) / sum(each.weight for each in sums)
    assert expected == pytest.approx(mean, rel=1e-5), "per trained token, not per row"


def test_evaluating_changes_nothing(run, recorder):
    often = run(recorder("often"), eval_every=1, adapter=Lora(rank=2, dropout=0.2))[0]
    never = run(recorder("never"), held=False, adapter=Lora(rank=2, dropout=0.2))[0]
    assert same(often, never)


def test_without_held_out_rows_nothing_is_evaluated(run, recorder):
    reporter = recorder()
    run(reporter, held=False)
    assert reporter.values("eval_loss") == []


# --- kill and resume --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "kills"), [(torch.float32, range(1, 7)), (torch.bfloat16, (2, 5))])
def test_killed_after_any_step_it_ends_with_the_same_bits(run, recorder, dtype, kills):
    changed = {"adapter": Lora(rank=2, dropout=0.2), "dtype": dtype, "checkpoint_every": 2}
    reporter = recorder("straight")
    straight, outcome, _ = run(reporter, **changed)
    for step in kills:
        killed = recorder(f"killed{step}", kill_after=step)
        with pytest.raises(KeyboardInterrupt):
            run(killed, **changed)
        resumed = recorder(f"killed{step}")
        masters, again, _ = run(resumed, **changed)
        assert same(masters, straight), f"killed after step {step}"
        assert again.values("loss") == outcome.values("loss")
        assert again.values("eval_loss") == outcome.values("eval_loss")
        done = {number for number, _ in resumed.logged if number}
        assert min(done) == 2 * ((step - 1) // 2) + 1, "it continued from the last checkpoint, not from the start"


def test_a_finished_run_is_not_trained_again(run, recorder):
    first = run(recorder())[0]
    reporter = recorder()
    masters, outcome, _ = run(reporter)
    assert same(masters, first) and reporter.logged == [] and outcome.step == 6


def test_the_process_s_own_generator_is_left_alone(run, recorder):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first = run(recorder("a"), adapter=Lora(rank=2, dropout=0.3))[0]
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(8)
    assert same(run(recorder("b"), adapter=Lora(rank=2, dropout=0.3))[0], first)
    assert not same(run(recorder("c"), adapter=Lora(rank=2))[0], first), "dropout did something"


def test_each_step_and_rank_draws_its_own_numbers(llama, settings):
    model = llama()

    def drawn(seed, step, rank):
        with seeded(model, settings(seed=seed), step, rank):
            assert model.training
            return tuple(torch.rand(3).tolist())

    places = [(seed, step, rank) for seed in (0, 1) for step in (0, 1) for rank in (0, 1)]
    assert len({drawn(*each) for each in places}) == len(places)
    assert drawn(1, 1, 0) == drawn(1, 1, 0) and not model.training


def test_checkpoints_by_time_where_no_number_of_steps_is_given(run, recorder, monkeypatch):
    saved = []
    for name, seconds in (("never", 1e9), ("always", 0.0)):
        monkeypatch.setattr("graftline.stages.train.loop.CHECKPOINT_SECONDS", seconds)
        reporter = recorder(name)
        save = reporter.save
        reporter.save = lambda step, write, name=name, save=save: (saved.append((name, step)), save(step, write))
        run(reporter, checkpoint_every=None)
    assert saved == [("never", 6), *[("always", step) for step in range(1, 7)]]


# --- number formats ---------------------------------------------------------------------------------------------


def test_small_updates_add_up_in_fp32_masters(run, llama):
    """A bf16 parameter alone would lose steps smaller than 2^-9 of itself."""
    slow = AdamW(lr=1e-5, warmup=0.0, schedule="constant")
    masters, _, attached = run(optimizer=slow, dtype=torch.bfloat16)
    start = Lora(rank=2).attach(llama().to(torch.bfloat16), {}, 0).parameters
    name = next(name for name in masters if "lora_A" in name)
    assert masters[name].dtype == torch.float32 and attached.parameters[name].dtype == torch.bfloat16
    assert torch.equal(attached.parameters[name], masters[name].bfloat16()), "the model computes with the rounded ones"
    moved = (masters[name] - start[name].float()).abs()
    lost = start[name].float().abs() * 2**-9 > 1e-5  # where one step changes no bf16 number
    assert lost.any() and (moved[lost] > 1.5e-5).any()


# --- what plugs may ask of it -----------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_names_step_and_rows(run):
    class Breaking(Sft):
        def loss(self, model, batch, context):
            out = super().loss(model, batch, context)
            if context.training and context.step == 2 and 6 in batch.rows:
                out.per_row[batch.rows.index(6)] = math.nan
                return type(out)(out.loss_sum * math.nan, out.weight, out.per_row)
            return out

    with pytest.raises(RunError, match=r"^rows r006: the loss is nan at step 3.*learning rate"):
        run(objective=Breaking(), source=plan(batch_size=10))


def test_rows_of_no_weight_are_refused(run):
    class Weightless(Drawn):
        def next_batch(self, step):
            return [0, 1], [0.0, 0.0]

    with pytest.raises(RunError, match=r"rows r000, r001: no token is trained at step 1"):
        run(source=IndexPlan(Weightless(), 2, 4), steps=2)


def test_a_sampler_sees_each_rows_loss(run, llama, rows, recorder):
    class Watching(Drawn):
        observes = True

        def __init__(self):
            self.seen = []

        def next_batch(self, step):
            return [step, step + 3, step + 5], [1.0] * 3

        def observe(self, places, losses):
            self.seen.append(dict(zip(places, losses, strict=True)))

        def state(self):
            return {"seen": self.seen}

        def load(self, state):
            self.seen = [{int(place): loss for place, loss in each.items()} for each in state["seen"]]

    watching = Watching()
    run(source=IndexPlan(watching, 3, 9), steps=3)
    assert [sorted(each) for each in watching.seen] == [[0, 3, 5], [1, 4, 6], [2, 5, 7]]
    first = Sft().collate([3], [rows(LENGTHS)[3]], [1.0])
    out = Sft().loss(llama(), first, LossContext(0, 1, True))
    assert watching.seen[0][3] == pytest.approx(out.loss_sum.item() / out.weight, rel=1e-4)
    resumed = Watching()
    run(source=IndexPlan(resumed, 3, 9), steps=3)
    assert resumed.seen == watching.seen, "a sampler's state is in the checkpoint"


def test_an_adapter_may_add_to_the_loss_and_touch_masters(run, llama, recorder):
    class Pulled(Attached):
        said = ()

        def extra_loss(self):
            return sum((each**2).sum() for each in self.parameters.values())

        def after_backward(self, step, masters):
            self.said = (*self.said, ("backward", step, all(each.grad is not None for each in masters.values())))

        def after_step(self, step, masters):
            with torch.no_grad():
                masters[min(masters)].zero_()
            self.said = (*self.said, ("step", step, True))

        def state(self):
            return {"count": torch.tensor([len(self.said)])}

    class Pulling(Lora):
        def attach(self, model, factors, seed):
            made = super().attach(model, factors, seed)
            return Pulled(made.model, made.parameters)

    plain = run(recorder("plain"))[0]
    pulled, _, attached = run(recorder("pulled"), adapter=Pulling(rank=2))
    norms = [float(sum((each**2).sum() for each in masters.values())) for masters in (plain, pulled)]
    assert norms[1] < 0.9 * norms[0]
    assert not pulled[min(pulled)].any() and not attached.parameters[min(pulled)].any()
    assert attached.said[:2] == (("backward", 0, True), ("step", 0, True)) and len(attached.said) == 12


def test_the_extra_loss_counts_once_whatever_the_bins(run, recorder):
    class Pulled(Attached):
        def extra_loss(self):
            return sum((each**2).sum() for each in self.parameters.values())

    class Pulling(Lora):
        def attach(self, model, factors, seed):
            made = super().attach(model, factors, seed)
            return Pulled(made.model, made.parameters)

    narrow = run(recorder("narrow"), adapter=Pulling(rank=2), bin_tokens=1)[0]
    assert close(narrow, run(recorder("wide"), adapter=Pulling(rank=2), bin_tokens=1000)[0], atol=1e-5)


def test_an_optimizer_chooses_what_trains(run, recorder):
    class Turns(Bound):
        def __init__(self, bound, names):
            self.bound, self.names = bound, names

        def before_forward(self, step):
            return [name for name in self.names if "lora_B" in name]

        def step(self, step, loss):
            given = {name for name, each in self.bound.masters.items() if each.grad is not None}
            assert given == set(self.before_forward(step))
            return self.bound.step(step, loss)

        def state(self):
            return self.bound.state()

    class Turning(Optimizer):
        def bind(self, masters, steps):
            return Turns(AdamW(lr=0.02).bind(masters, steps), sorted(masters))

    masters, _, _ = run(optimizer=Turning(), steps=1, source=plan(steps=1))
    start, _, _ = run(recorder("none"), optimizer=AdamW(lr=1e-12), steps=1, source=plan(steps=1))
    moved = {name for name in masters if not torch.allclose(masters[name], start[name], atol=1e-6)}
    assert moved == {name for name in masters if "lora_B" in name}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_optimizer_without_gradients_asks_for_losses(run, dtype):
    class Differences(Bound):
        """Central differences along one random direction a step."""

        needs_backward = False

        def __init__(self, masters):
            self.masters, self.asked = masters, []

        def _move(self, direction, by):
            with torch.no_grad():
                for name, each in self.masters.items():
                    each.add_(direction[name], alpha=by)

        def step(self, step, loss):
            assert all(each.grad is None for each in self.masters.values())
            draw = torch.Generator().manual_seed(step)
            direction = {name: torch.randn(each.shape, generator=draw) for name, each in self.masters.items()}
            now = loss()
            self._move(direction, 0.05)
            up = loss()
            self._move(direction, -0.1)
            down = loss()
            self._move(direction, 0.05)
            self.asked.append((now, up, down))
            return {"slope": (up - down) / 0.1}

        def state(self):
            return {}

    made = []

    class Differing(Optimizer):
        def bind(self, masters, steps):
            made.append(Differences(masters))
            return made[-1]

    _, outcome, _ = run(optimizer=Differing(), adapter=Lora(rank=2, dropout=0.3), dtype=dtype)
    (bound,) = made
    assert len(bound.asked) == 6 and all(len(set(each)) == 3 for each in bound.asked)
    assert [each[0] for each in bound.asked] == outcome.values("loss"), "the same randomness at each question"
