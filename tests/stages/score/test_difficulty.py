"""IFD compares the same tokens with and without the prompt; 1 where there is no prompt, low where it is copied."""

from __future__ import annotations

from typing import Any

import pytest

from graftline.stages.lm.chat import continuation
from graftline.stages.lm.llm import Llm
from graftline.stages.score import Difficulty
from graftline.stages.score.difficulty import answers
from graftline.stages.score.perplexity import unprompted

from .conftest import Asking, talk

ROWS = [
    talk("hello, my order was never delivered", "delivery"),
    talk("please", "the invoice was sent twice", system="be brief"),
    talk("is the new printer too slow?", "yes it is", "why", "nobody knows"),
    talk("another question", "delivery"),
]


def scored(given_rows: Any, table: Any, context: Any, rows: list[Any], **fields: Any) -> dict[str, Any]:
    stage = Difficulty(rows=given_rows(), model=Llm("tiny"), **fields)
    found = stage.score_rows(table([{"id": str(n), "messages": each} for n, each in enumerate(rows)]), context)
    return dict(found)


def test_the_answer_has_the_same_tokens_in_both_passes(given_rows: Any, table: Any, tiny: Asking) -> None:
    tokenizer = tiny.opened.loaded.tokenizer
    for row in ROWS:
        _, prompted = continuation(tokenizer, row[:-1], row[-1]["content"])
        _, alone = continuation(tokenizer, unprompted(row)[:-1], row[-1]["content"])
        assert prompted == alone
        # Earlier answers are emptied, too, so that the last one's tokens are all that is left.
        assert len(tiny.opened.logprobs([unprompted(row)])[0]) == len(alone)


def test_it_is_the_ratio_of_the_mean_losses(given_rows: Any, table: Any, tiny: Asking) -> None:
    found = scored(given_rows, table, tiny, ROWS)
    by_perplexity = scored(given_rows, table, tiny, ROWS, ratio_of="perplexity")["ifd"]
    for index, row in enumerate(ROWS):
        ((prompted,),) = tiny.opened.choice_logprobs([row[:-1]], [[row[-1]["content"]]])
        ((alone,),) = tiny.opened.choice_logprobs([unprompted(row)[:-1]], [[row[-1]["content"]]])
        assert found["ifd"][index] == pytest.approx(prompted / alone, rel=1e-4)
        (one,) = scored(given_rows, table, tiny, [row])["ifd"]
        assert one == pytest.approx(found["ifd"][index], rel=1e-4)
        assert by_perplexity[index] == pytest.approx(
            2.718281828459045 ** (found["ifd_prompted"][index] - found["ifd_alone"][index])
        )


def test_without_a_prompt_it_is_exactly_one(given_rows: Any, table: Any, tiny: Asking) -> None:
    beside = talk("a", "b")
    assert scored(given_rows, table, tiny, [beside, talk("", "the invoice was sent twice")])["ifd"][1] == 1.0


def test_what_cannot_be_scored_is_missing(given_rows: Any, table: Any, tiny: Asking) -> None:
    rows = [ROWS[0], talk("no answer"), [], talk("", " "), talk("too long " * 3000, "yes"), ROWS[1]]
    found = scored(given_rows, table, tiny, rows)
    for name in Difficulty.adds:
        assert [value is None for value in found[name]] == [False, True, True, True, True, False]
    assert not answers(())


def test_each_conversation_is_asked_once(given_rows: Any, table: Any) -> None:
    class Counting:
        asked: list[Any] = []

        def logprobs(self, rows: Any, whole: bool = False) -> list[list[float]]:
            self.asked += rows
            return [[-1.0]] * len(rows)

    engine = Counting()
    assert scored(given_rows, table, Asking(engine), [ROWS[0], ROWS[3], ROWS[0]])["ifd"] == [1.0] * 3
    assert len(engine.asked) == 3  # two conversations, and "delivery" without a prompt


def test_a_loss_of_zero_is_no_number(given_rows: Any, table: Any) -> None:
    class Sure:
        def logprobs(self, rows: Any, whole: bool = False) -> list[list[float]]:
            return [[0.0]] * len(rows)

    assert scored(given_rows, table, Asking(Sure()), [ROWS[0]])["ifd"] == [None]


@pytest.mark.real
def test_a_copy_is_easy_and_a_stranger_is_not(given_rows: Any, table: Any) -> None:
    from graftline.stages.lm import smollm2
    from graftline.stages.lm.open import open_engine

    with open_engine(Llm(smollm2.NAME, engine="generate"), smollm2.directory()[0], threads=1) as engine:
        text = "the parcel from Lisbon was left behind the neighbour's green shed on Tuesday"
        copied = talk(f"Repeat this sentence: {text}", text)
        stranger = talk("How many moons has Jupiter, and who found the first four?", text)
        easy, hard = scored(given_rows, table, Asking(engine), [copied, stranger])["ifd"]
    assert easy < 0.3
    assert hard > 0.95
