import pytest

from graftline.stages import Llm, Source
from graftline.stages.errors import NoTrainedToken, RowFault
from graftline.stages.lm.chat import render_supervised
from graftline.stages.lm.load import load_tokenizer
from graftline.stages.train import Tokenised


class Given(Source):
    """Rows that a test has."""


@pytest.fixture
def stage():
    return Tokenised(rows=Given(), model=Llm("tiny"), max_length=64)


@pytest.fixture
def ready(context, stage, tiny_directory, opened):
    context.artefacts[stage.model] = opened(tiny_directory)
    return context


def test_the_mask_is_render_superviseds(stage, ready, messages, tiny_directory):
    table = messages(5)
    made = stage.map_rows(table, ready)
    tokenizer = load_tokenizer(tiny_directory / "model")
    for row in made.to_pylist():
        assert (row["input_ids"], row["trained"]) == render_supervised(tokenizer, row["messages"])
        assert row["filtered"] is None
        trained = [token for token, yes in zip(row["input_ids"], row["trained"], strict=True) if yes]
        assert tokenizer.decode(trained) == f"{row['answer']}<|im_end|>", "the end-of-turn token is trained"
    assert made["id"].to_pylist() == table["id"].to_pylist()
    assert {name: str(made.schema.field(name).type) for name in ("input_ids", "trained")} == {
        "input_ids": "list<item: int32>",
        "trained": "list<item: bool>",
    }
    assert set(stage.columns) == set(made.column_names) - {"filtered"}


def test_long_rows_are_filtered_whole(stage, ready, messages):
    short = stage.replace("max_length", 12)
    made = short.map_rows(messages(3), ready)
    assert set(made["filtered"].to_pylist()) == {"longer than 12 tokens"}
    assert min(len(ids) for ids in made["input_ids"].to_pylist()) > 12


def test_a_row_with_nothing_to_train_says_so(stage, ready, messages):
    import pyarrow as pa

    rows = messages(2).to_pylist()
    rows[1]["messages"] = rows[1]["messages"][:1]
    table = pa.Table.from_pylist(rows, schema=messages(1).schema)
    with pytest.raises(NoTrainedToken) as error:
        stage.map_rows(table, ready)
    assert isinstance(error.value, RowFault), "so that the row fails alone"
