"""Runs and stages as tables."""

import io

from rich.console import Console

from graftline.pipelines import show
from graftline.stages.expected import Usage


def printed(renderable, width=140):
    console = Console(file=io.StringIO(), width=width)
    console.print(renderable)
    return console.file.getvalue()


def test_a_run_has_a_line_for_each_stage(quickstart):
    text = printed(show.run(quickstart.record()))
    head, _, *lines = text.splitlines()
    assert "quickstart" in head and "done" in head and quickstart.id in head and "12 s of downloads" in head
    by_name = {line.split()[1]: line.split() for line in lines if len(line.split()) > 2}
    assert by_name["SelfInstruct"][2:] == ["ran", "1", "min", "01", "s", "0", "183", "50", "7"]
    assert by_name["Llm"][2] == "cached"
    assert "report = Service" in text


def test_a_failed_run_shows_its_error(quickstart):
    error = {"what": "the disk is full", "where": "Train", "do": "make room"}
    text = printed(show.run(quickstart.record(state="failed", error=error)))
    assert "Train: the disk is full. Make room" in text


def test_one_stage_in_full(quickstart):
    line = quickstart.write().line("SelfInstruct")
    text = printed(show.stage(line, quickstart.manifest(line)))
    for expected in ("tokens_in 41\u2009200", "kept 183", "too short", line["fingerprint"], "torch 2.13.0", "1 min"):
        assert expected in text, expected
    assert "tokens_in" in printed(show.stage(line, None))


def test_a_store_is_listed(quickstart):
    done = quickstart.write()
    found = {"runs": show.records(done.store), "artefacts": show.artefacts(done.store)}
    assert found["runs"][0]["ran"] == 8 and found["runs"][0]["cached"] == 1, "parts are no stages of their own"
    assert {each["stage"] for each in found["artefacts"]} >= {"SelfInstruct", "Train", "Service"}
    text = printed(show.listing(found))
    assert done.id in text and "9 artefacts" in text
    assert "empty" in printed(show.listing({"runs": [], "artefacts": []}))


def test_a_plan_counts_what_will_be_spent():
    step = {"key": "k", "fingerprint": "f" * 64, "kind": "rows", "part": "", "rows": {"kept": None, "mark": ""},
            "calls": {**Usage().to_dict(), "mark": ""}, "why": ""}  # fmt: skip
    steps = [
        {**step, "name": "Jsonl", "status": "cached", "rows": {"kept": 151, "mark": ""}},
        {**step, "name": "Split.train", "status": "cached", "part": "train"},
        {**step, "name": "SelfInstruct", "status": "run",
         "calls": {**Usage(260, None, 9800, money=1.5).to_dict(), "mark": "~"}},
        {**step, "name": "TopK", "status": "unknown inputs", "rows": {"kept": 80, "mark": "<="},
         "why": "in the store, if its inputs come out as before"},
        {**step, "name": "Train", "kind": "adapter", "rows": None, "status": "run",
         "calls": {**Usage(tokens_trained=23970).to_dict(), "mark": "<="}},
    ]  # fmt: skip
    text = " ".join(printed(show.plan({"steps": steps, "store": "place"})).split())
    told = "about 260 model calls, at least 0 tokens read, about 9 800 written, at most about 23 970 trained"
    assert f"1 in the store, 3 to run, {told}, about 1.50 paid; store place" in text.replace("\u2009", " ")
    assert "Split.train" not in text and "if its inputs come out as before" in text
    assert "SelfInstruct run ? ~260 ? ~9 800" in text and "TopK unknown inputs ≤80 in the store" in text
    assert "Train run ≤23 970" in text


def test_what_was_collected_is_told():
    gone = [{"name": "artefacts/x", "bytes": 1000}, {"name": "ledger/y", "bytes": 24}]
    assert "2 things, 1\u2009024 bytes" in printed(show.collected(gone, False))
    assert "would go" in printed(show.collected(gone, True)) and "nothing" in printed(show.collected([], True))


def test_methods_and_their_words():
    line = {"slot": "select", "name": "select.a", "class": "x.A", "summary": "[b]keeps[/b]"}
    lines = [line, {**line, "name": "select.b"}]
    assert printed(show.methods(lines)).count("[b]keeps[/b]") == 2


def test_names_and_errors_cannot_steer_the_terminal(quickstart):
    quickstart.stages[0]["name"] = "[red]\x1b[2J"
    text = printed(show.run(quickstart.record(error="\x1b[31m[bold]")))
    assert "\x1b" not in text and "[red]\\x1b[2J" in text and "\\x1b[31m[bold]" in text
