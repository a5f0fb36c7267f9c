"""Pairs packed into one row: each answer after its own copy of the prompt, and nothing counted twice."""

import pytest
import torch

from graftline.stages.lm import tiny
from graftline.stages.lm.load import load_model
from graftline.stages.train.pairs import answer_logprobs, pack_pairs, pair_length

ROWS = (
    {"prompt_ids": [5, 6, 7], "chosen_ids": [8, 9], "rejected_ids": [10]},
    {"prompt_ids": [11], "chosen_ids": [12], "rejected_ids": [13, 14, 15]},
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    tiny.write(folder)
    return load_model(folder, "float32")


def test_what_is_packed():
    tensors = pack_pairs(ROWS)
    assert [pair_length(row) for row in ROWS] == [9, 6] and tensors["input_ids"].shape == (1, 15)
    assert tensors["input_ids"][0].tolist() == [5, 6, 7, 8, 9, 5, 6, 7, 10, 11, 12, 11, 13, 14, 15]
    assert tensors["position_ids"][0].tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 0, 1, 0, 1, 2, 3]
    assert tensors["labels"].tolist() == [8, 9, 10, 12, 13, 14, 15]
    assert tensors["positions"].tolist() == [2, 3, 7, 9, 11, 12, 13], "each is predicted by the token before it"
    assert tensors["owner"].tolist() == [0, 0, 1, 2, 3, 3, 3]


def test_an_answer_has_the_log_probability_it_has_alone(model):
    with torch.no_grad():
        sums, tokens = answer_logprobs(model, pack_pairs(ROWS), len(ROWS))
        for row, line, count in zip(ROWS, sums, tokens, strict=True):
            for column, name in enumerate(("chosen_ids", "rejected_ids")):
                ids = torch.tensor([row["prompt_ids"] + row[name]])
                each = model(ids).logits[0].log_softmax(-1)[:-1].gather(1, ids[0, 1:, None])[:, 0]
                alone = each[len(row["prompt_ids"]) - 1 :].sum()
                assert line[column].item() == pytest.approx(alone.item(), abs=1e-4)
                assert count[column].item() == len(row[name])
