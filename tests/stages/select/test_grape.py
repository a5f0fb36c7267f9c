"""GRAPE: at most one response of a prompt, the likeliest of those that are valid."""

from __future__ import annotations

import contextlib
import json
import math
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
import torch

from graftline.pipelines import run
from graftline.stages import Llm, generate, read
from graftline.stages.errors import InvalidField, MissingColumn
from graftline.stages.rows import FIXED, schema
from graftline.stages.score import Perplexity
from graftline.stages.select import Concat, Grape, Split, Where

HAS = {"logprob_mean": "float64", "verified": "int64"}
NAN = float("nan")


def row(id: str, question: str, score: float | None, verified: int | None = 1, **more: Any) -> dict[str, Any]:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": f"answer {id}"}]
    return {"id": id, "messages": turns, "logprob_mean": score, "verified": verified, **more}


@pytest.fixture
def chosen(given_rows: Any, table: Any, context: Any) -> Any:
    """Id → why it was filtered ("" = kept), in four orders."""

    def select(rows: list[dict[str, Any]], **fields: Any) -> dict[str, str]:
        stage, whole, found = Grape(rows=given_rows(has=HAS), **fields), table(rows, **HAS), []
        for seed in range(4):
            order = random.Random(seed).sample(range(len(rows)), len(rows))
            verdicts = list(stage.select_rows(whole.take(pa.array(order, pa.int64())), context))
            assert len(verdicts) == len(rows)
            assert all((each.outcome == "kept") == (each.reason == "") for each in verdicts)
            found.append({each.id: each.reason for each in verdicts})
        assert all(each == found[0] for each in found)
        return dict(sorted(found[0].items()))

    return select


def test_one_response_of_each_prompt_the_likeliest(chosen: Any) -> None:
    rows = [row("a", "x", -2.0), row("b", "x", -0.5), row("c", "y", -9.0), row("d", "x", NAN), row("e", "x", None)]
    found = chosen(rows)
    assert found == {
        "a": "not the likeliest response", "b": "", "c": "", "d": "no logprob_mean", "e": "no logprob_mean",
    }  # fmt: skip
    for change in (math.exp, lambda score: 3 * score - 1, lambda score: -((-score) ** 0.5)):
        moved = [{**each, "logprob_mean": each["logprob_mean"] and change(each["logprob_mean"])} for each in rows[:3]]
        assert [id for id, why in chosen(moved).items() if not why] == ["b", "c"]


def test_the_gate_comes_before_the_choice_and_lost_prompts_are_counted(chosen: Any) -> None:
    rows = [
        row("a", "x", -0.1, 0), row("b", "x", -3.0, 1), row("c", "x", -0.2, None),
        row("d", "y", -0.1, 0), row("e", "y", NAN, 1), row("f", "z", -1.0, 0),
    ]  # fmt: skip
    assert chosen(rows, gate="verified") == {
        "a": "not valid by verified", "b": "", "c": "not valid by verified",
        "d": "no response to its prompt is left", "e": "no logprob_mean", "f": "no response to its prompt is left",
    }  # fmt: skip
    assert [id for id, why in chosen(rows).items() if not why] == ["a", "d", "f"]


def test_ties_by_preferred_source_then_id(chosen: Any) -> None:
    rows = [row("a", "x", -1.0, source="weak"), row("b", "x", -1.0, source="strong"), row("c", "x", -1.0, source="own")]
    kept = {prefer: [id for id, why in chosen(rows, prefer=prefer).items() if not why] for prefer in
            ((), ("strong",), ("own", "strong"), ("nobody",))}  # fmt: skip
    assert kept == {(): ["a"], ("strong",): ["b"], ("own", "strong"): ["c"], ("nobody",): ["a"]}


@pytest.fixture
def preferred(given_rows: Any, context: Any) -> Any:
    """The answers of the rows kept of tables whose scores are all the same."""

    def keep(tables: list[pa.Table], *prefer: str) -> list[str]:
        whole = pa.concat_tables([each.select(list(FIXED)) for each in tables]).sort_by("id")
        whole = whole.append_column("logprob_mean", pa.array([-1.0] * len(whole)))
        kept = [each.id for each in Grape(rows=given_rows(has=HAS), prefer=prefer).select_rows(whole, context)
                if each.outcome == "kept"]  # fmt: skip
        return sorted(row["answer"] for row in whole.to_pylist() if row["id"] in kept)

    return keep


def test_files_are_preferred_by_their_names(preferred: Any, tmp_path: Path) -> None:
    """Rows of two files as they are read; their sources have a line each."""
    tables = []
    for name in ("crowd.jsonl", "a:1.jsonl", "experts.jsonl"):
        lines = [{"q": f"Q{number}?", "a": f"{name} {number}"} for number in range(8)]
        (tmp_path / name).write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        reader = read.Jsonl(path=str(tmp_path / name), prompt="{q}", answer="{a}")
        made = [each.row for each in reader.read(reader.path)]
        assert made[1]["source"] == f"{name}:2"
        tables.append(pa.Table.from_pylist(made, schema=schema(FIXED)))
    for name in ("crowd.jsonl", "a:1.jsonl", "experts.jsonl"):
        for given in (name, str(tmp_path / name), f"s3://bucket/{name}"):
            assert preferred(tables, given, "crowd.jsonl") == [f"{name} {number}" for number in range(8)]
    by_id = preferred(tables)
    assert len({answer.partition(" ")[0] for answer in by_id}) > 1, "no file is the first by its ids"
    for other in ("nobody", "experts", "jsonl", "perts.jsonl", "experts.jsonl/", "2", ""):
        assert preferred(tables, other) == by_id
    found = preferred(tables, "experts.jsonl:2", "a:1.jsonl")
    assert found == [f"a:1.jsonl {number}" for number in (0, *range(2, 8))] + ["experts.jsonl 1"]


@pytest.mark.real
def test_teachers_are_preferred_by_their_models(preferred: Any, tmp_path: Path) -> None:
    """Rows of two scripted teachers as a run makes them: all of them have the source `generated`."""
    from graftline.stages.lm import tiny

    (tmp_path / "seeds.jsonl").write_text("".join(f'{{"q": "Q{number}?"}}\n' for number in range(8)))
    prompts, teachers = read.Jsonl(path="seeds.jsonl", prompt="{q}"), {}
    for seed, name in enumerate(("weak-1b", "strong-7b")):
        (tmp_path / "models" / name).mkdir(parents=True)
        tiny.write(tmp_path / "models" / name)
        teacher = Llm(str(tmp_path / "models" / name), engine="scripted")
        teachers[name] = generate.TeacherResponses(prompts=prompts, teacher=teacher, max_new_tokens=64, seed=seed)
    made = run(teachers, str(tmp_path / "store"), base=tmp_path, address="here")
    tables = {name: made[name].rows() for name in teachers}
    said = {name: sorted(table["answer"].to_pylist()) for name, table in tables.items()}
    assert {each for table in tables.values() for each in table["source"].to_pylist()} == {"generated"}
    assert [len(each) for each in said.values()] == [8, 8] and not set(said["weak-1b"]) & set(said["strong-7b"])
    both = list(tables.values())
    for name in said:
        for given in (name, f"owner/{name}", str(tmp_path / "models" / name)):
            assert preferred(both, given) == said[name] == preferred(both, given, "generated")
    by_id = preferred(both)
    assert by_id not in said.values() and preferred(both, "generated", "strong-7b") == by_id


def test_what_a_prompt_is(chosen: Any) -> None:
    def turns(*contents: str, system: str = "be kind") -> list[dict[str, str]]:
        roles = ("user", "assistant") * 2
        said = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]
        return [{"role": "system", "content": system}, *said]

    rows = [row(id, "", 0.0) for id in "abcdef"]
    conversations = [turns("x", "1"), turns("x", "2"), turns("x", "1", "y", "3"), turns("x", "1", system="be curt"),
                     turns("x"), []]  # fmt: skip
    for each, messages in zip(rows, conversations, strict=True):
        each["messages"] = messages
    assert [id for id, why in chosen(rows).items() if not why] == ["a", "c", "d", "f"]


STYLES = {"kind": "dear friend, this is about {}, with love", "curt": "REFUSED. See {}. Case closed!"}


@pytest.fixture
def taught(tmp_path: Path) -> Any:
    """Makes a context with the tiny model, after a few steps on answers of a style."""
    from graftline.stages.lm import tiny
    from graftline.stages.lm.chat import render_supervised
    from graftline.stages.lm.open import open_engine

    tiny.write(tmp_path)

    def teach(style: str) -> Any:
        engine: Any = open_engine(Llm("tiny", engine="generate", dtype="float32"), tmp_path)
        model = engine.loaded.model
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        for step in range(12):
            turns = row("", f"question {step}", None)["messages"][:1]
            turns += [{"role": "assistant", "content": STYLES[style].format(f"thing {step}")}]
            ids, trained = render_supervised(engine.loaded.tokenizer, turns)
            labels = torch.tensor([[token if on else -100 for token, on in zip(ids, trained, strict=True)]])
            model(torch.tensor([ids]), labels=labels).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return SimpleNamespace(engine=lambda asked: contextlib.nullcontext(engine))

    return teach


@pytest.mark.parametrize("style", STYLES)
def test_the_style_of_the_model_is_picked(chosen: Any, taught: Any, given_rows: Any, table: Any, style: str) -> None:
    """A model that learned one of two styles finds it likelier, on questions it never saw, whichever it was."""
    rows = []
    for number in range(20):
        for name, answer in STYLES.items():
            asked = row(f"{number:02} {name}", f"what of matter {number}?", None)
            rows.append({**asked, "messages": [asked["messages"][0], {"role": "assistant", "content":
                         answer.format(f"matter {number}")}]})  # fmt: skip
    scorer = Perplexity(rows=given_rows(), model=Llm("tiny"), of="last")
    means = scorer.score_rows(table(rows, **HAS), taught(style))["logprob_mean"]
    by_id = dict(zip(sorted(each["id"] for each in rows), means, strict=True))
    scored = [{**each, "logprob_mean": by_id[each["id"]]} for each in rows]
    kept = [id for id, why in chosen(scored).items() if not why]
    assert len(kept) == 20 and sum(id.endswith(style) for id in kept) >= 19


def test_what_was_said_before_the_response_does_not_count(
    chosen: Any, taught: Any, given_rows: Any, table: Any
) -> None:
    """An earlier turn that the model finds unlikely is shared by both responses. Spread over all of the assistant's
    tokens it weighs less beside the longer response, so that by their mean the less likely response would win."""
    asked = [("user", "hello?"), ("assistant", STYLES["curt"].format("it")), ("user", "what of matter 7?")]
    answers = {"likely": "dear friend", "long": STYLES["kind"].format("matter 7")}
    before = [{"role": role, "content": text} for role, text in asked]
    rows = [
        {**row(id, "", None), "messages": [*before, {"role": "assistant", "content": answer}]}
        for id, answer in answers.items()
    ]
    context = taught("kind")
    with context.engine(None) as engine:
        tokenizer, model = engine.loaded.tokenizer, engine.loaded.model
    by_hand, picked = {}, {}
    for each in rows:
        text = str(tokenizer.apply_chat_template(each["messages"], tokenize=False)).rstrip("\n")
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        start = len(tokenizer(text[: text.rindex(answers[each["id"]])], add_special_tokens=False)["input_ids"])
        with torch.no_grad():
            values = model(torch.tensor([ids])).logits[0].log_softmax(-1)[range(start - 1, len(ids) - 1), ids[start:]]
        by_hand[each["id"]] = float(values.mean())
    for of in ("last", "answer"):
        scorer = Perplexity(rows=given_rows(), model=Llm("tiny"), of=of)
        means = dict(zip(answers, scorer.score_rows(table(rows, **HAS), context)["logprob_mean"], strict=True))
        found = chosen([{**each, "logprob_mean": means[each["id"]]} for each in rows])
        picked[of] = [id for id, why in found.items() if not why]
        if of == "last":
            assert means == pytest.approx(by_hand, abs=1e-4)
    assert by_hand["likely"] > by_hand["long"] + 0.1
    assert picked == {"last": ["likely"], "answer": ["long"]}


@pytest.mark.parametrize("of", ["answer", "alone", "text"])
def test_scores_of_other_tokens_are_refused(given_rows: Any, of: Any) -> None:
    """However far up the graph they were made; what is not known to be one is the user's own."""
    wrong, right = (Perplexity(rows=given_rows(), model=Llm("tiny"), of=each) for each in (of, "last"))
    for rows in (
        wrong,
        Where(rows=wrong, column="logprob_mean", at_least=-7.0),
        Split(rows=wrong, shares=(0.5, 0.25, 0.25)).train,
        Concat(rows=(right, wrong)),
    ):
        with pytest.raises(InvalidField, match=r"Grape\.rows.*last") as caught:
            Grape(rows=rows)
        assert of in caught.value.what
    Grape(rows=Concat(rows=(right, Where(rows=right, column="logprob_mean", at_least=-7.0))))
    other = Perplexity(rows=given_rows(has={"own": "float64"}), model=Llm("tiny"), of=of)
    assert Grape(rows=other, by="own").by == "own"


def test_the_column_is_asked_for_by_name(given_rows: Any) -> None:
    with pytest.raises(MissingColumn, match="'logprob_mean'"):
        Grape(rows=given_rows())
    with pytest.raises(MissingColumn, match="'verified'"):
        Grape(rows=given_rows(has={"logprob_mean": "float64"}), gate="verified")
    assert Grape(rows=given_rows(has={"lp": "float64"}), by="lp").by == "lp"
