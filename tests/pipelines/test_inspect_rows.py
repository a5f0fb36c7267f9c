"""Rows on a terminal: turns, scores and reasons; with a tokenizer, exactly the trained tokens in colour."""

import io
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from graftline.pipelines.inspect_rows import TRAINED, choose, rendered, supervised, taken
from graftline.stages.errors import UnknownStage


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The directory of the built-in random model."""
    from graftline.stages.lm.tiny import write

    folder = tmp_path_factory.mktemp("model")
    write(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(model):
    from graftline.stages.lm.load import load_tokenizer

    return load_tokenizer(model)


def printed(renderable):
    console = Console(file=io.StringIO(), width=120)
    console.print(renderable)
    return console.file.getvalue()


def artefact(run, name):
    done = run.write()
    return done.opened(done.line(name))


def colours(text):
    """The parts of a text in the trained style."""
    return [text.plain[span.start : span.end] for span in text.spans if span.style == TRAINED]


def test_trained_tokens_are_the_answers_and_their_ends(tokenizer):
    messages = [
        {"role": "system", "content": "Name the queue."},
        {"role": "user", "content": "charged twice"},
        {"role": "assistant", "content": "billing"},
        {"role": "user", "content": "and my parcel?"},
        {"role": "assistant", "content": "delivery, sorry – ünïcode 👩‍🔧"},
    ]
    text = supervised(messages, tokenizer)
    assert colours(text) == ["billing<|im_end|>", "delivery, sorry – ünïcode 👩‍🔧<|im_end|>"]
    assert text.plain.startswith("<|im_start|>system\nName the queue.<|im_end|>\n<|im_start|>user")
    counted = text.plain.splitlines()[-1]
    assert counted.endswith("tokens are trained")
    trained, whole = int(counted.split()[0]), int(counted.split()[2])
    assert trained == sum(len(tokenizer.encode(part)) for part in colours(text)) < whole


def test_a_row_that_cannot_be_trained_says_why(tokenizer):
    text = supervised([{"role": "user", "content": "no answer"}], tokenizer)
    assert colours(text) == [] and "not trained: " in text.plain and "no answer" in text.plain


def test_a_row_shows_its_turns_scores_and_reason():
    row = {
        "id": "ab12", "source": "tickets.jsonl", "ifd": 0.51234, "reason": "too short",
        "gen": {"stage": "SelfInstruct", "model": "m", "round": 2, "seed": 1},
        "messages": [{"role": "user", "content": "two\nlines"}, {"role": "assistant", "content": "[bold]ok[/bold]"}],
    }  # fmt: skip
    text = printed(rendered(row))
    for expected in ("ab12", "tickets.jsonl", "by SelfInstruct, round 2", "ifd 0.512", "reason: too short",
                     "user  two", "assistant  [bold]ok[/bold]"):  # fmt: skip
        assert expected in text, expected
    assert text.splitlines()[3].strip() == "lines"


def test_long_lines_reach_a_file_whole(tokenizer):
    text = " ".join(f"word{index}" for index in range(100))
    row = {"id": "1", "messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "yes"}]}
    for shown in (rendered(row), rendered(row, tokenizer)):
        console = Console(file=io.StringIO(), width=80)
        console.print(shown, soft_wrap=True)
        assert text in console.file.getvalue()


def test_a_preference_row_shows_both_answers():
    row = {"id": "1", "prompt": [{"role": "user", "content": "why?"}], "chosen": "because", "rejected": "no idea"}
    text = printed(rendered(row))
    assert "why?" in text and "chosen  because" in text and "rejected  no idea" in text


def test_a_row_cannot_steer_the_terminal(tokenizer):
    messages = [{"role": "user\x1b[2J", "content": "\x1b[31mred\x07"}, {"role": "assistant", "content": "\x1b[0m"}]
    assert "\x1b" not in printed(rendered({"id": "\x1b[1m", "messages": messages}))
    assert "\\x1b[31mred" in supervised([{"role": "user", "content": "\x1b[31mred"}, messages[1]], tokenizer).plain


def test_rows_come_sorted_by_id_and_counted(quickstart):
    made = artefact(quickstart, "SelfInstruct")
    rows, total = taken(made, 3)
    assert [row["id"][-3:] for row in rows] == ["3e8", "3e9", "3ea"] and total == 183
    dropped, total = taken(made, 100, "filtered")
    assert (len(dropped), total) == (50, 50) and {row["reason"] for row in dropped} == {
        "too like another draft", "too short",
    }  # fmt: skip
    assert taken(artefact(quickstart, "Split"), 5, "failed") == ([], 0)


def test_a_stage_without_rows_is_refused(quickstart):
    with pytest.raises(UnknownStage, match="makes a report, not rows"):
        taken(artefact(quickstart, "Compare"), 3)


def with_model(run, model):
    """The run with a model in its model's artefact."""
    line = next(each for each in run.stages if each["kind"] == "model")
    shutil.copytree(model, Path(line["path"], "model"))
    run._manifest(line)
    return run.write()


def test_a_training_stage_shows_the_rows_it_reads_for_its_model(quickstart, model):
    done = with_model(quickstart, model)
    for stage in ("Train", None):
        found = choose(done, stage)
        assert found.name == "TopK" and found.rows.count == 100
        row = taken(found.rows, 1)[0][0]
        assert colours(supervised(row["messages"], found.tokenizer)) == [f"{row['answer']}<|im_end|>"]


def test_other_rows_are_shown_as_they_are_unless_asked(quickstart, model):
    done = with_model(quickstart, model)
    assert choose(done, "SelfInstruct").tokenizer is None
    assert choose(done, "SelfInstruct", mask=True).tokenizer is not None
    assert choose(done, "Split.test").rows.part == "test"


def test_a_run_without_training_shows_its_last_rows(fake_run):
    run = fake_run()
    first = run.stage("Jsonl", "rows")
    run.rows(first, [])
    run.rows(run.stage("TopK", "rows", first), [])
    assert choose(run.write()).name == "TopK"
    with pytest.raises(UnknownStage, match="no model"):
        choose(run.write(), mask=True)
    with pytest.raises(UnknownStage, match="no stage 'Nothing'"):
        choose(run.write(), "Nothing")


def test_a_run_without_rows_says_so(fake_run):
    run = fake_run()
    run.stage("Llm", "model")
    with pytest.raises(UnknownStage, match="no rows yet"):
        choose(run.write())
