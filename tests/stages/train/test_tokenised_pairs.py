import pyarrow as pa
import pytest

from graftline.stages import Llm, Source
from graftline.stages.errors import RowFault
from graftline.stages.lm.chat import continuation
from graftline.stages.lm.load import load_tokenizer
from graftline.stages.rows import PREFERENCE
from graftline.stages.train import TokenisedPairs


class Pairs(Source):
    """Preference rows that a test has."""

    def columns_made(self):
        return PREFERENCE


@pytest.fixture
def stage():
    return TokenisedPairs(rows=Pairs(), model=Llm("tiny"), max_length=64)


@pytest.fixture
def ready(context, stage, tiny_directory, opened):
    context.artefacts[stage.model] = opened(tiny_directory)
    return context


def test_the_tokens_are_those_of_generation(stage, ready, preferences, tiny_directory):
    made = stage.map_rows(preferences(5), ready)
    tokenizer = load_tokenizer(tiny_directory / "model")
    for row in made.to_pylist():
        asked = tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True)
        assert tokenizer.decode(row["prompt_ids"]) == asked
        for name in ("chosen", "rejected"):
            assert (row["prompt_ids"], row[f"{name}_ids"]) == continuation(tokenizer, row["prompt"], row[name])
            assert tokenizer.decode(row[f"{name}_ids"]) == f"{row[name]}<|im_end|>", "both answers end alike"
        assert row["filtered"] is None
    assert set(stage.columns) == set(made.column_names) - {"filtered"}


def test_a_pair_is_filtered_whole(stage, ready, preferences):
    table = preferences(1).to_pylist()
    whole = stage.map_rows(preferences(1), ready).to_pylist()[0]
    long, short = (len(whole["prompt_ids"]) + len(whole[name]) for name in ("rejected_ids", "chosen_ids"))
    assert long > short
    for limit, reason in ((long, None), (long - 1, f"longer than {long - 1} tokens"), (short, "longer than")):
        cut = stage.replace("max_length", limit).map_rows(preferences(1), ready).to_pylist()[0]
        assert (cut["filtered"] or "").startswith(reason or "") and bool(cut["filtered"]) == bool(reason)
        assert cut["prompt_ids"] == whole["prompt_ids"], "the prompt is never cut on one side"
    table[0]["rejected"] = table[0]["chosen"]
    same = stage.map_rows(pa.Table.from_pylist(table, schema=preferences(1).schema), ready)
    assert same["filtered"].to_pylist() == ["chosen and rejected are the same"]


def test_a_pair_without_an_answer_fails_alone(stage, ready, preferences):
    table = preferences(2).to_pylist()
    table[1]["rejected"] = " "
    with pytest.raises(RowFault):
        stage.map_rows(pa.Table.from_pylist(table, schema=preferences(1).schema), ready)
