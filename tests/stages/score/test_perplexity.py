"""Perplexity is the model's own loss on the row alone, whatever the batch; what cannot be scored is missing."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from graftline.stages.errors import EngineFailed, InvalidField
from graftline.stages.lm.chat import render_supervised
from graftline.stages.lm.llm import Llm
from graftline.stages.score import Perplexity
from graftline.stages.score.perplexity import perplexity_of

from .conftest import Asking, talk

ROWS = [
    talk("hello, my order was never delivered", "delivery"),
    talk("please", "the invoice was sent twice"),
    talk("is the new printer too slow?", "yes it is", "why", "nobody knows"),
    talk("Ünïcode 漢字", "and 12  numbers", system="be brief"),
]


def labelled_loss(context: Asking, row: list[dict[str, str]], of: str) -> tuple[float, int]:
    """transformers' own loss of the row alone, and how many tokens it is the mean of."""
    loaded = context.opened.loaded
    ids, mask = render_supervised(loaded.tokenizer, row)
    labels = torch.tensor([[token if of == "text" or on else -100 for token, on in zip(ids, mask, strict=True)]])
    with torch.no_grad():
        loss = loaded.model(torch.tensor([ids]), labels=labels).loss
    return float(loss), int((labels[0, 1:] != -100).sum())


@pytest.mark.parametrize("of", ["answer", "text"])
def test_it_is_the_models_loss_whatever_the_batch(given_rows: Any, table: Any, tiny: Asking, of: Any) -> None:
    stage = Perplexity(rows=given_rows(), model=Llm("tiny"), of=of)
    whole = table([{"id": f"{index}", "messages": row} for index, row in enumerate(ROWS)])
    found = stage.score_rows(whole, tiny)
    assert set(found) == set(stage.adds)
    for index, row in enumerate(ROWS):
        loss, count = labelled_loss(tiny, row, of)
        assert found["logprob_mean"][index] == pytest.approx(-loss, abs=1e-4)
        assert found["perplexity"][index] == pytest.approx(math.exp(loss), rel=1e-3)
        assert found["perplexity_tokens"][index] == count
        alone = stage.score_rows(whole.slice(index, 1), tiny)
        assert alone["logprob_mean"][0] == pytest.approx(found["logprob_mean"][index], abs=1e-4)


def test_two_turns_add_up_and_the_end_of_turn_is_one_token(given_rows: Any, table: Any, tiny: Asking) -> None:
    def losses(rows: list[Any], **fields: Any) -> list[tuple[float, int]]:
        stage = Perplexity(rows=given_rows(), model=Llm("tiny"), **fields)
        found = stage.score_rows(table([{"id": "a", "messages": each} for each in rows]), tiny)
        pairs = zip(found["logprob_mean"], found["perplexity_tokens"], strict=True)
        return [(-mean * count, count) for mean, count in pairs]

    both, first = ROWS[2], ROWS[2][:2]
    (sum_both, count_both), (sum_first, count_first) = losses([both, first])
    # The second answer given all before it: what is left once the first turn's own answer is taken away.
    rest = tiny.opened.logprobs([both])[0][count_first:]
    assert (sum_both, count_both) == (pytest.approx(sum_first - sum(rest), abs=1e-3), count_first + len(rest))
    ((_, without),) = losses([both], end_of_turn=False)
    assert without == count_both - 1


def by_hand(context: Asking, row: list[dict[str, str]]) -> list[float]:
    """Log-probabilities of the last turn's tokens: one pass over the row alone, the tokens found by where the last
    answer's text and its end stand."""
    tokenizer, model = context.opened.loaded.tokenizer, context.opened.loaded.model
    text = str(tokenizer.apply_chat_template(row, tokenize=False))
    start = text.rindex(row[-1]["content"])
    end = text.index("<|im_end|>", start) + len("<|im_end|>")
    ids = tokenizer(text[:end], add_special_tokens=False)["input_ids"]
    before = len(tokenizer(text[:start], add_special_tokens=False)["input_ids"])
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0]
    values: list[float] = logits.log_softmax(-1)[range(before - 1, len(ids) - 1), ids[before:]].tolist()
    return values


def test_the_last_turn_alone_given_all_before_it(given_rows: Any, table: Any, tiny: Asking) -> None:
    def scored(rows: list[Any], of: Any, **fields: Any) -> Any:
        whole = table([{"id": str(number), "messages": each} for number, each in enumerate(rows)])
        return Perplexity(rows=given_rows(), model=Llm("tiny"), of=of, **fields).score_rows(whole, tiny)

    three = talk("hi", "yes? " * 9, "who?", "one answer " * 9, "where?", "not here", system="be brief")
    rows = [ROWS[0], ROWS[2], three]
    found, shorter = scored(rows, "last"), scored(rows, "last", end_of_turn=False)
    for index, row in enumerate(rows):
        values = by_hand(tiny, row)
        assert found["logprob_mean"][index] == pytest.approx(sum(values) / len(values), abs=1e-4)
        assert found["perplexity"][index] == pytest.approx(math.exp(-sum(values) / len(values)), rel=1e-3)
        assert found["perplexity_tokens"][index] == len(values) == shorter["perplexity_tokens"][index] + 1
        assert shorter["logprob_mean"][index] == pytest.approx(sum(values[:-1]) / (len(values) - 1), abs=1e-4)
    # Where an assistant spoke before, it is another number than that of all its turns; else the very same.
    every = scored(rows, "answer")
    differences = [abs(one - two) for one, two in zip(found["logprob_mean"], every["logprob_mean"], strict=True)]
    assert differences[0] == 0.0 and min(differences[1:]) > 1e-3
    missing = [talk("no answer"), talk("hi", "yes?", "who?"), talk("hi", "yes?", "who?", "  "), []]
    assert scored([*missing, rows[0]], "last")["logprob_mean"][:4] == [None] * 4
    assert scored(missing, "answer")["logprob_mean"][1] is not None


def test_alone_leaves_out_what_was_asked(given_rows: Any, table: Any, tiny: Asking) -> None:
    stage = Perplexity(rows=given_rows(), model=Llm("tiny"), of="alone")
    rows = [talk("one question", "yes"), talk("another one entirely", "yes"), talk("", "yes")]
    found = stage.score_rows(table([{"id": str(n), "messages": each} for n, each in enumerate(rows)]), tiny)
    assert found["logprob_mean"] == pytest.approx([found["logprob_mean"][2]] * 3, abs=1e-4)
    given = Perplexity(rows=given_rows(), model=Llm("tiny"))
    prompted = given.score_rows(table([{"id": "0", "messages": rows[0]}]), tiny)
    assert abs(prompted["logprob_mean"][0] - found["logprob_mean"][0]) > 1e-3


def test_what_cannot_be_scored_is_missing_and_spoils_nothing(given_rows: Any, table: Any, tiny: Asking) -> None:
    stage = Perplexity(rows=given_rows(), model=Llm("tiny"))
    rows = [ROWS[0], talk("no answer"), talk("too long " * 3000, "yes"), [], talk("a mark <|im_end|>", "x"), ROWS[1]]
    found = stage.score_rows(table([{"id": str(n), "messages": each} for n, each in enumerate(rows)]), tiny)
    for name in stage.adds:
        assert [value is None for value in found[name]] == [False, True, True, True, True, False]


def test_no_infinity_and_no_nan_leaves_it(given_rows: Any, table: Any) -> None:
    class Broken:
        def logprobs(self, rows: Any, whole: bool = False, last: bool = False) -> list[list[float]]:
            return [[-1.0, math.nan], [-math.inf], [-5000.0], [-1.0]]

    stage = Perplexity(rows=given_rows(), model=Llm("tiny"))
    found = stage.score_rows(table([{"id": str(n), "messages": ROWS[0]} for n in range(4)]), Asking(Broken()))
    assert found["perplexity"] == [None, None, None, pytest.approx(math.e)]
    assert found["logprob_mean"] == [None, None, -5000.0, -1.0]
    assert perplexity_of(709.5) is None and perplexity_of(0.0) == 1.0


def test_errors_of_the_world_pass_through(given_rows: Any, table: Any) -> None:
    class Dead:
        def logprobs(self, rows: Any, whole: bool = False, last: bool = False) -> list[list[float]]:
            raise EngineFailed("died")

    with pytest.raises(EngineFailed):
        Perplexity(rows=given_rows(), model=Llm("tiny")).score_rows(
            table([{"id": "a", "messages": ROWS[0]}]),
            Asking(Dead()),
        )


def test_a_contradiction_is_refused(given_rows: Any) -> None:
    with pytest.raises(InvalidField, match=r"Perplexity\.end_of_turn"):
        Perplexity(rows=given_rows(), model=Llm("tiny"), of="text", end_of_turn=False)


@pytest.mark.real
def test_it_tells_shuffled_text_from_real_text(given_rows: Any, table: Any) -> None:
    """The claim: a base model's perplexity finds rows whose words were shuffled (AUROC over 20 tickets)."""
    import json

    from graftline.stages.lm import smollm2
    from graftline.stages.lm.open import open_engine

    file = Path(__file__).resolve().parents[3] / "examples" / "tickets.jsonl"
    texts = [json.loads(line)["text"] for line in file.read_text(encoding="utf-8").splitlines()[:20]]
    draw, shuffled = random.Random(0), []
    for text in texts:
        words = text.split()
        draw.shuffle(words)
        shuffled.append(" ".join(words))
    rows = [{"id": str(n), "messages": talk("Write a ticket.", each)} for n, each in enumerate([*texts, *shuffled])]
    name = smollm2.NAME
    with open_engine(Llm(name, engine="generate"), smollm2.directory()[0], threads=1) as engine:
        stage = Perplexity(rows=given_rows(), model=Llm(name))
        values = stage.score_rows(table(rows), Asking(engine))["perplexity"]
    good, bad = values[: len(texts)], values[len(texts) :]
    right = sum((low < high) + (low == high) / 2 for low in good for high in bad) / (len(good) * len(bad))
    assert right > 0.9
