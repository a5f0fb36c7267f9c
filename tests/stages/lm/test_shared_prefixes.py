"""What rows begin with alike is computed once, and nobody can tell."""

import pytest
import torch

from graftline.stages.lm.faster import faster
from graftline.stages.lm.label_logprobs import label_logprobs
from graftline.stages.lm.packed_attention import segments
from graftline.stages.lm.segment_attention import NAME as SEGMENTS
from graftline.stages.lm.shared_prefixes import attends_by_positions, came_from, drops, shared_prefixes
from tests.stages.lm.test_label_logprobs import made

HEAD = [7, 8, 9, 10]
ROWS = ([*HEAD, 1, 2, 3], [*HEAD, 4, 5], [30, 31], [*HEAD, 1, 2, 6, 6], [*HEAD, 4, 5], HEAD)


def packed(rows):
    ids = torch.tensor([[token for row in rows for token in row]])
    return ids, torch.cat([torch.arange(len(row)) for row in rows])[None]


def sequences(ids, positions):
    return [ids[0, segment.sequence()].tolist() for segment in segments(positions)]


def test_every_row_is_still_there():
    given = packed(ROWS)
    ids, positions, went = shared_prefixes(*given)
    assert ids.shape == positions.shape == (1, 4 + 3 + 2 + 2 + 2)
    assert ids[0, went].equal(given[0][0]) and positions[0, went].equal(given[1][0])
    told, place = sequences(ids, positions), 0
    for row in ROWS:
        assert any(each[: len(row)] == row for each in told)
        path = went[place : place + len(row)]
        whole = next(each.sequence() for each in segments(positions) if int(path[-1]) in each.sequence())
        assert whole[: len(row)] == path.tolist()
        place += len(row)


def test_a_tree_goes_in_too():
    """A prompt with two choices, beside a row that begins with the prompt."""
    ids = torch.tensor([[*HEAD, 1, 2, 3, 4, *HEAD, 1, 9]])
    positions = torch.tensor([[0, 1, 2, 3, 4, 5, 4, 5, 0, 1, 2, 3, 4, 5]])
    found, places, went = shared_prefixes(ids, positions)
    assert sequences(found, places) == [[*HEAD, 1, 2], [*HEAD, 1, 9], [*HEAD, 3, 4]]
    assert found[0, went].equal(ids[0]) and places[0, went].equal(positions[0])


def test_rows_with_little_in_common_stay_as_they_are():
    assert shared_prefixes(*packed([[1, 2, 3], [2, 3, 4]])) is None
    assert shared_prefixes(*packed([[1, 2, 3]])) is None
    assert shared_prefixes(*packed([[5, *range(10, 60)], [5, *range(20, 70)]])) is None
    ids, positions = packed(ROWS)
    assert shared_prefixes(ids, positions + 3) is None  # a row that begins elsewhere is left where it is


def asked(rows):
    """Every token but each row's first: where it is predicted, and the token."""
    ids, positions = packed(rows)
    places = (positions[0] > 0).nonzero().view(-1) - 1
    return ids, positions, places, ids[0, places + 1]


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize("training", [False, True])
def test_values_and_gradients_are_those_of_separate_rows(kind, training, monkeypatch):
    model = made(kind)
    faster(model)
    model.train(training)
    sizes = []
    embed = model.model.embed_tokens
    embed.register_forward_hook(lambda _, given, __: sizes.append(given[0].shape[1]))
    found = label_logprobs(model, *asked(ROWS))
    assert sizes[-1] == 13
    apart = torch.cat([label_logprobs(model, *asked([row])) for row in ROWS])
    torch.testing.assert_close(found, apart, atol=1e-5, rtol=1e-5)
    weights = torch.rand(len(found), generator=torch.Generator().manual_seed(0))
    parameters = list(model.parameters())
    for one, other in zip(
        *(torch.autograd.grad((each * weights).sum(), parameters) for each in (found, apart)), strict=True
    ):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_what_is_dropped_at_random_is_not_shared():
    model = made("llama")
    faster(model)
    model.model.layers[0].mlp.down_proj = torch.nn.Sequential(
        torch.nn.Dropout(0.5), model.model.layers[0].mlp.down_proj
    )
    sizes = []
    model.model.embed_tokens.register_forward_hook(lambda _, given, __: sizes.append(given[0].shape[1]))
    for training in (False, True):
        model.train(training)
        assert drops(model) is training
        label_logprobs(model, *asked(ROWS))
    assert sizes[-2:] == [13, sum(map(len, ROWS))]


def test_a_model_that_attends_otherwise_keeps_its_rows():
    model, sizes = made("gpt2"), []
    for implementation in ("sdpa", SEGMENTS):  # of continuous batching, which takes this model, too
        model.set_attn_implementation(implementation)
        assert not attends_by_positions(model)
    llama = made("llama")
    assert not attends_by_positions(llama)
    llama.set_attn_implementation(SEGMENTS)
    assert attends_by_positions(llama)
    model.transformer.wte.register_forward_hook(lambda _, given, __: sizes.append(given[0].shape[1]))
    label_logprobs(model, *asked(ROWS))
    assert sizes[-1] == sum(map(len, ROWS))


def test_each_token_that_is_left_is_the_first_of_its_kind():
    given = packed(ROWS)
    ids, positions, went = shared_prefixes(*given)
    came = came_from(went)
    assert given[0][:, came].equal(ids) and given[1][:, came].equal(positions)
    assert all(int(place) == went.tolist().index(new) for new, place in enumerate(came))
