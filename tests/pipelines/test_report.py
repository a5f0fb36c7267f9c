"""The page of a run: whole, self-contained, and everything foreign in it escaped."""

import re
from html.parser import HTMLParser
from pathlib import Path

from graftline.pipelines import report

VOID = {"meta"}


def page(run, figures=None, **more):
    return Path(report.write(run.write(**more), figures)).read_text(encoding="utf-8")


class Checked(HTMLParser):
    """Collects tags, checks that they nest, and keeps every attribute."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_has_every_section(quickstart):
    text = page(quickstart, {"base": 0.0, "tuned": 0.853, "http_ok": True, "nested": {"left": "out"}})
    titles = re.findall(r"<h2>([^<]+)</h2>", text)
    assert titles == ["The pipeline", "Evaluation", "Rows", "Training", "Scores", "Generated rows", "Service", "Cost",
                      "Environment"]  # fmt: skip
    for expected in (
        "0.00 → 0.85", "0.756–0.916", "+0.853 over base", "Decoding: temperature 0", "too like another draft",
        "183 rows of Difficulty, 100 kept by TopK", "HTTP 404", "smollm2-135m-instruct", "12 s of downloads",
        "2.13.0", "http ok", "4 min 04 s",
    ):  # fmt: skip
        assert expected in text, expected
    assert "left" not in re.sub(r"<style>.*?</style>", "", text, flags=re.S), "figures are numbers and words"


def test_the_page_loads_nothing_and_runs_nothing(quickstart):
    checked = Checked(page(quickstart))
    assert not {"script", "link", "img", "iframe", "object", "embed", "base"} & set(checked.tags)
    names = {name for name, _ in checked.attributes}
    assert not {name for name in names if name.startswith("on")} and not {"src", "href", "srcset"} & names
    values = [value for _, value in checked.attributes if value]
    assert not [value for value in values if re.search(r"https?:|url\((?!#)|javascript:", value)]


def test_what_a_row_holds_is_escaped(quickstart):
    """The fixture's tickets hold a script, in samples, generated rows and requests."""
    hostile = '"><script>alert(1)</script>'
    for line in quickstart.stages:
        line["name"] += hostile
    rows = next(line["rows"] for line in quickstart.stages if "SelfInstruct" in line["name"])
    rows["filtered"][hostile] = 3
    text = page(
        quickstart, {hostile: hostile}, pipeline=hostile, error={"what": hostile}, parameters={hostile: hostile}
    )
    assert "&lt;script&gt;alert(&#34;row&#34;)&lt;/script&gt;" in text
    assert "script" not in Checked(text).tags


def graph_of(text):
    start = text.index('<svg class="graph"')
    return text[start : text.index("</svg>", start)]


def test_views_are_words_on_arrows_and_a_model_read_everywhere_is_dots(quickstart):
    graph = graph_of(page(quickstart))
    assert graph.count('<g class="node ') == 9
    assert re.findall(r'class="word"[^>]*>([^<]+)<', graph) == ["train", "train", "test"]
    assert graph.count('class="edge from-model') == 0 and graph.count('class="dot model"') == 6
    assert graph.count("reads Llm") == 5


def test_a_model_with_few_readers_has_arrows(quickstart):
    model = quickstart.stages[0]["key"]
    for line in quickstart.stages[-3:]:
        line["inputs"] = [key for key in line["inputs"] if key != model]
    graph = graph_of(page(quickstart))
    assert graph.count('class="edge from-model') == 2 and 'class="dot model"' not in graph


def test_a_hidden_stage_shows_only_what_it_dropped(quickstart):
    hidden = quickstart.stage("Tokenised", "rows", quickstart.stages[0])
    quickstart.hidden.add(hidden["key"])
    quickstart.rows(hidden, [])
    text = page(quickstart)
    assert "Tokenised" not in graph_of(text) and '<div class="name">Tokenised' not in text
    hidden["rows"]["failed"] = {"no trained token": 2}
    text = page(quickstart)
    assert "Tokenised" not in graph_of(text) and '<div class="name">Tokenised' in text


def test_a_failed_run_says_what_stopped_it(quickstart):
    report_line = next(line for line in quickstart.stages if line["kind"] == "report")
    report_line.update(status="failed", digest=None, seconds=None)
    quickstart.stages[-1].update(status="pending", digest=None, seconds=None, rows=None, calls=None)
    text = page(quickstart, state="failed", finished=None, error={"what": "the engine died", "where": "Compare"})
    assert "Compare: the engine died" in text and "1 failed" in text and "1 did not start" in text
    assert "<h2>Evaluation" not in text and "<h2>Service" not in text and "<h2>Training" in text


def test_an_artefact_that_is_gone_leaves_its_section_out(quickstart):
    for line in quickstart.stages:
        Path(line["path"], "artefact.json").unlink(missing_ok=True)
    text = page(quickstart)
    assert "<h2>Evaluation" not in text and "<h2>Rows" in text and "<h2>Training" in text


def test_a_cached_stages_curve_comes_from_its_artefact(quickstart):
    train = next(line for line in quickstart.stages if line["name"] == "Train")
    quickstart.file(train, "log.jsonl", [{"step": step, "loss": 1 / (step + 1)} for step in range(5)])
    quickstart.metrics = []
    text = page(quickstart)
    assert "<h2>Training" in text and text.count("<polyline") == 1


def test_a_step_done_again_after_a_kill_counts_once(quickstart):
    train = next(line for line in quickstart.stages if line["name"] == "Train")
    losses = [(0, 9.0), (1, 8.0), (1, 7.0), (2, 6.0)]
    quickstart.metrics = [{"key": train["key"], "step": step, "loss": loss} for step, loss in losses]
    assert page(quickstart).count('<circle class="dot c0"') >= 3
    points = re.search(r'<polyline class="line c0" points="([^"]+)"', page(quickstart)).group(1).split()
    assert len(points) == 3


def test_a_run_of_nothing_is_a_page():
    record = {"id": "x", "pipeline": "empty", "state": "done", "started": "", "finished": "", "seconds": 0.1,
              "fetch_seconds": 0.0, "error": None, "parameters": {}, "file": "", "store": "", "stages": [],
              "results": {}}  # fmt: skip
    Checked(report.render(record, lambda line: None))


def test_a_sweep_shows_its_trials(quickstart):
    assert "<h2>Sweep" not in page(quickstart)
    train = next(line for line in quickstart.stages if line["name"] == "Train")
    trials = [
        {"values": {"adapter.rank": rank}, "status": "full", "metric": metric, "seconds": 3.0, "why": ""}
        for rank, metric in ((4, 0.75), (8, 0.25), (16, None))
    ]
    train["metrics"] |= {"trials": trials, "best": {"adapter.rank": 8}, "picked_by": "eval_loss"}
    text = page(quickstart)
    Checked(text)
    section = text[text.index("<h2>Sweep") :].partition("<h2>")[2].partition("<h2>")[0]
    assert "3 trials, picked by eval loss" in section and section.count("bar-row") == 3
    assert section.count(">best<") == 1 and "–" in section
