"""Tokens are counted as the model itself counts them, where its tokenizer is here, and by length where it is not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from graftline.stages.expected import Given, Usage
from graftline.stages.lm import smollm2, tiny
from graftline.stages.lm.chat import render, render_whole
from graftline.stages.lm.endpoint import Endpoint
from graftline.stages.lm.engine import Request, Sampling
from graftline.stages.lm.llm import Llm
from graftline.stages.lm.reader import COMPLAINT, estimated
from graftline.stages.lm.scripted import ScriptedEngine
from graftline.stages.train.adapter.full import Full
from graftline.stages.train.train import Train

from ..conftest import Lines

TURNS = (
    {"role": "system", "content": "Name the queue."},
    {"role": "user", "content": "hi, third evening in a row with no signal at all in the flat"},
)


def test_tokens_are_the_models_own(tiny_directory: Path) -> None:
    tokenizer = tiny.build_tokenizer()
    for reader in (
        Given().reader(Llm("tiny")),
        Given(directory=lambda model: tiny_directory).reader(Llm("./elsewhere")),
    ):
        assert reader.whole(TURNS) == len(render_whole(tokenizer, TURNS))
        assert reader.whole(TURNS, ask=True) == reader.asked(TURNS) == len(render(tokenizer, TURNS))
        prefix = " the mill"
        assert reader.asked(TURNS, prefix) == len(render(tokenizer, TURNS, prefix=prefix))
        assert reader.asked((), prefix) == reader.text(prefix) == len(tokenizer(prefix)["input_ids"])


def test_without_a_tokenizer_length_counts() -> None:
    reader = Given().reader(Llm("someone/model"))
    assert (
        reader.text("x" * 40) == 10 and reader.asked(TURNS) == sum(len(turn["content"]) / 4 + 5 for turn in TURNS) + 3
    )
    assert estimated("слово") == 2.5 and estimated("言葉") == 2 and estimated("où") == 0.5
    assert Given().reader(Lines()).text("x" * 40) == 10, "a stage that says no model"


def test_a_template_that_refuses_is_reckoned_with(tmp_path: Path) -> None:
    tiny.backend().save(str(tmp_path / "tokenizer.json"))
    template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}[{{ messages[0]['content'] }}]"
    )
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    reader = Given(directory=lambda model: tmp_path).reader(Llm("./elsewhere"))
    assert reader.whole(TURNS[1:]) == reader.text(f"[{TURNS[1]['content']}]")
    assert reader.whole(TURNS) == sum(reader.text(turn["content"]) + 5 for turn in TURNS)


def test_computed_answers_are_counted_in_words() -> None:
    reader, engine = Given().reader(Llm("tiny", engine="scripted")), ScriptedEngine("tiny", None, {})
    sampling = Sampling(max_new_tokens=64)
    answers = engine.generate([Request("1", TURNS, Sampling(max_new_tokens=64, seed=seed)) for seed in range(200)])
    assert reader.asked(TURNS) == answers[0].tokens_in
    mean = sum(answer.tokens_out for answer in answers) / len(answers)
    assert reader.written(64) == pytest.approx(mean, rel=0.05) and reader.written(6) == 6
    assert engine.generate([Request("1", TURNS, sampling, prefix="a b")])[0].tokens_in == reader.asked(TURNS, "a b")
    row = {"messages": TURNS, "answer": "x"}
    assert reader.rewritten(row)["messages"][0] == TURNS[0] != reader.rewritten(row)["messages"][1]
    assert Given().reader(Llm("tiny")).rewritten(row) == row


def test_answers_are_as_long_as_what_they_are_like() -> None:
    reader = Given().reader(Llm("tiny"))
    assert (reader.written(64), reader.written(64, like=10), reader.written(8, like=10)) == (32, 11, 8)


def test_what_cannot_be_read_goes_back() -> None:
    reader = Given().reader(Llm("tiny"))
    assert reader.usage(10, 100.0, 20.0) == Usage(10, 1000, 200)
    again = reader.usage(100, 100.0, 20.0, retries=1)
    never, always = 100, 200
    assert never < again.requests < always and again.requests**2 == pytest.approx(never * always, rel=0.02)
    assert 100 * 100 < again.tokens_in < 100 * (100 + 100 + 20 + COMPLAINT) and again.mark == "~"
    assert reader.usage(None, 100.0, 20.0).requests is None and reader.usage(10, None, 20.0).tokens_in is None


def test_a_servers_answers_have_a_price() -> None:
    endpoint = Endpoint("m", url="http://localhost/v1", price_in=2.0, price_out=10.0)
    assert Given().reader(endpoint).usage(10, 100.0, 20.0).money == pytest.approx((2 * 1000 + 10 * 200) / 1e6)
    assert Given().reader(endpoint).usage(10, None, 20.0).money is None


def test_a_tuned_model_reads_as_its_base() -> None:
    given = Given()
    tuned = Train(model=Llm("tiny"), rows=Lines(), adapter=Full())
    assert given.reader(tuned) is given.reader(Llm("tiny"))


def test_where_a_models_files_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAFTLINE_CACHE", str(tmp_path))
    built_in = Llm(smollm2.NAME)
    assert built_in.at_hand(str) is None
    (tmp_path / smollm2.FOLDER).mkdir()
    assert built_in.at_hand(str) == tmp_path / smollm2.FOLDER
    assert Llm("someone/model").at_hand(str) is None
    assert Llm("mine").at_hand(lambda path: str(tmp_path)) == tmp_path


def test_counting_waits_for_no_model() -> None:
    code = (
        "import sys\n"
        "from graftline.stages.lm.llm import Llm; from graftline.stages.expected import Given\n"
        "reader = Given().reader(Llm('tiny'))\n"
        "print(reader.asked(({'role': 'user', 'content': 'hello'},)) > 3,"
        " sorted({'torch', 'transformers', 'ray', 'pyarrow', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True []\n"
