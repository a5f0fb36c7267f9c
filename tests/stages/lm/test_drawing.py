"""Tokens are drawn from the distribution asked for, by the request's own seed, wherever it stands in a batch."""

import math
from collections import Counter

import pytest
import torch

from graftline.stages.lm import tiny
from graftline.stages.lm.drawing import Turn, decide, draw, held_back, keep_nucleus
from graftline.stages.lm.engine import Sampling

TOKENIZER = tiny.build_tokenizer()
END = TOKENIZER.eos_token_id


def turn(prompt: int = 3, limit: int = 100, **sampling) -> Turn:
    return Turn(Sampling(**sampling), prompt, limit, (END,), TOKENIZER)


def tokens(text: str) -> list[int]:
    return TOKENIZER(text)["input_ids"]


def test_draws_follow_the_distribution():
    """Chi-square over 20,000 positions of one seed."""
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    each = turn(temperature=1.0, seed=7)
    uniform = [each.uniform(position) for position in range(20_000)]
    drawn = draw(probabilities.log().expand(20_000, 4), [1.0] * 20_000, [1.0] * 20_000, uniform)
    counts = torch.bincount(drawn, minlength=4)
    statistic = float(((counts - 20_000 * probabilities) ** 2 / (20_000 * probabilities)).sum())
    assert statistic < 16.27  # 3 degrees of freedom, 0.001


@pytest.mark.parametrize(("temperature", "first"), [(0.5, 0.9), (2.0, math.sqrt(3) / (1 + math.sqrt(3)))])
def test_temperature_sharpens_and_flattens(temperature, first):
    """Odds of 3 to 1 become 9 to 1 at 0.5, and the square root of 3 to 1 at 2."""
    uniform = [index / 1000 for index in range(1000)]
    logits = torch.tensor([3.0, 1.0]).log().expand(1000, 2)
    drawn = draw(logits, [temperature] * 1000, [1.0] * 1000, uniform)
    assert Counter(drawn.tolist())[0] / 1000 == pytest.approx(first, abs=0.01)


def test_the_last_number_below_one_draws_a_possible_token():
    logits = torch.tensor([[0.0, 1.0, -torch.inf]])
    assert draw(logits, [1.0], [1.0], [1 - 2**-53]).item() == 1
    assert draw(logits.flip(1), [1.0], [1.0], [0.0]).item() == 1


@pytest.mark.parametrize(
    ("top_p", "kept"), [(0.5, [1]), (0.51, [1, 3]), (0.8, [1, 3]), (0.82, [0, 1, 3]), (1.0, [0, 1, 2, 3])]
)
def test_a_nucleus_is_the_fewest_tokens_that_hold_enough(top_p, kept):
    probabilities = torch.tensor([0.125, 0.5, 0.0625, 0.3125])
    if top_p < 1:
        keep_nucleus(probabilities, top_p)
    assert probabilities.nonzero().squeeze(1).tolist() == kept


def test_a_flat_nucleus_is_larger_than_the_first_look():
    probabilities = torch.full((1000,), 0.001)
    probabilities[:600] += torch.arange(600) * 1e-9
    keep_nucleus(probabilities, 0.5)
    assert 490 <= int((probabilities > 0).sum()) <= 510


def test_a_row_does_not_depend_on_its_batch_mates():
    torch.manual_seed(0)
    logits = torch.randn(5, 50)
    turns = [turn(temperature=1.0, top_p=0.9, seed=seed) for seed in range(5)]
    answers = [[5] * length for length in (0, 3, 1, 9, 2)]
    together = decide(logits.clone(), turns, answers).argmax(1)
    for row in range(5):
        assert (
            decide(logits[row : row + 1].clone(), turns[row : row + 1], answers[row : row + 1]).argmax()
            == together[row]
        )


PENALISED = torch.tensor([[1.0, 2.5, 3.0, 2.9, -1.0]])


@pytest.mark.parametrize(
    ("presence", "so_far", "following"),
    [(0.0, [2], 2), (0.05, [2], 2), (0.2, [2], 3), (0.2, [2] * 9, 3), (0.2, [2, 3], 2), (0.6, [3, 2, 2], 1),
     (2.0, [2, 3, 1], 0), (-1.0, [1], 1), (2.0, [], 2)],
)  # fmt: skip
def test_a_presence_penalty_is_taken_off_once_from_what_is_there(presence, so_far, following):
    """Greedy: the two likeliest are 0.1 apart, the third 0.4 behind; how often a token is there does not matter."""
    assert decide(PENALISED.clone(), [turn(presence=presence)], [so_far]).argmax() == following


def test_a_drawn_token_is_penalised_before_the_temperature():
    """Odds of 1 to 1, and a penalty of the logarithm of 3 at temperature 0.5: 1 to 9, of two that are 1 to 1 still."""
    turns = [turn(temperature=0.5, presence=math.log(3), seed=seed) for seed in range(3_000)]
    scores = torch.tensor([0.0, 0.0, -torch.inf]).expand(3_000, 3)
    drawn = Counter(decide(scores.clone(), turns, [[0, 0]] * 3_000).argmax(1).tolist())
    assert drawn[0] / 3_000 == pytest.approx(0.1, abs=0.02) and drawn[2] == 0
    both = Counter(decide(scores.clone(), turns, [[0, 1]] * 3_000).argmax(1).tolist())
    assert both[0] / 3_000 == pytest.approx(0.5, abs=0.03)


def test_a_penalised_row_does_not_depend_on_its_batch_mates():
    torch.manual_seed(0)
    logits = torch.randn(6, 50)
    turns = [turn(temperature=row % 2, presence=(0.0, 2.0, -1.0)[row // 2], seed=row) for row in range(6)]
    answers = [logits[row].topk(row).indices.tolist() for row in range(6)]
    together = decide(logits.clone(), turns, answers)
    for row in range(6):
        alone = decide(logits[row : row + 1].clone(), turns[row : row + 1], answers[row : row + 1])
        assert torch.equal(alone[0], together[row])
    assert torch.equal(together[0], logits[0]), "who asks for none is left alone"
    assert together[2].argmax() not in answers[2] and together[4].argmax() in answers[4]


def test_seed_and_position_both_matter():
    uniform = {turn(temperature=1.0, seed=seed).uniform(position) for seed in range(10) for position in range(10)}
    assert len(uniform) == 100


def test_greedy_rows_and_rows_nobody_waits_for_are_left_alone():
    logits = torch.randn(2, 50)
    assert torch.equal(decide(logits.clone(), [turn(), None], [[], []]), logits)


def test_a_stop_text_ends_the_turn():
    stopping = turn(stop=("order.",), temperature=1.0)
    assert not stopping.stopped(tokens("my order"))
    assert stopping.stopped(tokens("this is my order."))
    assert decide(torch.zeros(1, 800), [stopping], [tokens("my order.")]).argmax() == END


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("my order. ok", ("order",), ("my ", "stop")),
        ("my order", ("er", "my"), ("", "stop")),
        ("my order", ("x",), ("my order", "length")),
        ("my order", (), ("my order", "length")),
        ("my order<|im_end|>", (), ("my order", "stop")),
    ],
)
def test_how_an_answer_ends(text, stop, expected):
    assert turn(stop=stop).finish(tokens(text))[:2] == expected


def test_tokens_after_a_stop_text_are_not_counted():
    before = tokens("ab|")
    assert turn(stop=("|",)).finish([*before, END])[2] == len(before)


@pytest.mark.parametrize(
    ("text", "stops", "held"), [("my or", ("order",), 2), ("my", ("x",), 0), ("a###", ("####",), 3), ("my", (), 0)]
)
def test_what_may_become_a_stop_text_is_held_back(text, stops, held):
    assert held_back(text, stops) == held
