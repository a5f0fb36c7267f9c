"""The page of a run: whole, self-contained, and everything foreign in it escaped."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from graftline.pipelines import report
from graftline.stages.evaluate.pairs import compared as compared_pairs

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
    titles = re.findall(r'<h2 id="(\w+)">([^<]+)</h2>', text)
    assert [title for _, title in titles] == [
        "The pipeline", "Evaluation", "Rows", "Scores", "Training", "Generated rows", "Service", "Cost", "Environment",
    ]  # fmt: skip
    assert re.findall(r'<a href="#(\w+)">([^<]+)</a>', text) == titles, "the links at the top lead to what is there"
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
    assert not {name for name in names if name.startswith("on")} and not {"src", "srcset"} & names
    assert all(value.startswith("#") for name, value in checked.attributes if name == "href"), "within the page"
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
    assert ">Evaluation</h2>" not in text and ">Service</h2>" not in text and ">Training</h2>" in text


def test_an_artefact_that_is_gone_leaves_its_section_out(quickstart):
    for line in quickstart.stages:
        Path(line["path"], "artefact.json").unlink(missing_ok=True)
    text = page(quickstart)
    assert ">Evaluation</h2>" not in text and ">Rows</h2>" in text and ">Training</h2>" in text


def test_a_cached_stages_curve_comes_from_its_artefact(quickstart):
    train = next(line for line in quickstart.stages if line["name"] == "Train")
    quickstart.file(train, "log.jsonl", [{"step": step, "loss": 1 / (step + 1)} for step in range(5)])
    quickstart.metrics = []
    text = page(quickstart)
    assert ">Training</h2>" in text and text.count("<polyline") == 1


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
    assert ">Sweep</h2>" not in page(quickstart)
    train = next(line for line in quickstart.stages if line["name"] == "Train")
    trials = [
        {"values": {"adapter.rank": rank}, "status": "full", "metric": metric, "seconds": 3.0, "why": ""}
        for rank, metric in ((4, 0.75), (8, 0.25), (16, None))
    ]
    train["metrics"] |= {"trials": trials, "best": {"adapter.rank": 8}, "picked_by": "eval_loss"}
    text = page(quickstart)
    Checked(text)
    section = text.partition('<h2 id="sweep">')[2].partition("<h2")[0]
    assert "3 trials; picked by eval loss: <b>adapter.rank = 8</b>" in section and section.count('class="meter') == 3
    assert section.count(">best<") == 1 and "–" in section
    assert "retry" not in section
    trials[2] |= {"status": "failed", "why": "the loss is nan"}
    assert f"graftline retry {quickstart.id} Train</code> tries the failed ones again" in page(quickstart)


def luminance(colour):
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_words_can_be_read_on_what_they_stand_on(quickstart, theme):
    """WCAG AA: 4.5 to 1 for text, 3 to 1 for marks that mean something."""
    blocks = re.findall(r":root \{(.*?)\}", page(quickstart), re.S)
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", blocks[theme]))

    def contrast(one, other):
        first, second = sorted((luminance(colours[one]), luminance(colours[other])))
        return (second + 0.05) / (first + 0.05)

    words = ("ink", "soft", "faint", "good", "bad", "best-ink", "filtered-ink")
    assert {word: ground for word in words for ground in ("card", "page", "well") if contrast(word, ground) < 4.5} == {}
    marks = ("rows", "model", "adapter", "report", "service", "kept", "failed", "best")
    assert {mark for mark in marks if contrast(mark, "card") < 3} == set()


def test_the_page_stays_a_page_with_twenty_adapters_and_fifty_trials(quickstart):
    """One line a column instead of a column each; what is too much is folded; nothing grows by the square."""
    model, compared = quickstart.stages[0], quickstart.stages[-2]
    names = [f"adapter_{place:02}" for place in range(20)]
    adapters = [quickstart.stage(name, "adapter", model) for name in names]
    for line in adapters:
        quickstart.metrics += [{"key": line["key"], "step": step, "loss": 1 / (step + 1)} for step in range(30)]
    quickstart.stages[-22:] = [*adapters, *quickstart.stages[-22:-20]]  # inputs stand before what reads them
    compared["inputs"] += [line["key"] for line in adapters]
    for line in adapters:
        line["class"] = "graftline.stages.train.train.Train"
    right = {name: [row < 50 + place for row in range(77)] for place, name in enumerate(names)}
    cells = {name: {"value": sum(own) / 77, "n": 77, "ci_low": 0.5, "ci_high": 0.9} for name, own in right.items()}
    verdicts = dict.fromkeys(names, True)
    sample = {"prompt": "p", "reference": "r", "answers": dict.fromkeys(names, "r"), "correct": verdicts}
    quickstart.file(compared, "report.json", {
        "columns": names, "metrics": {"exact_match": cells}, "pairs": {"exact_match": compared_pairs(right, range(77))},
        "samples": [sample] * 20,
    })  # fmt: skip
    trials = [{"values": {"adapter.rank": place, "optimizer.lr": place * 1e-5}, "status": "full", "metric": 1 / place,
               "seconds": 3.0, "why": ""} for place in range(1, 51)]  # fmt: skip
    swept = quickstart.stage("Sweep", "adapter", model)
    swept["metrics"] = {"trials": trials, "best": trials[-1]["values"], "picked_by": "eval_loss"}
    for place in range(50):
        quickstart.stage(f"Fit {place}", "adapter", model, asked_by=swept["key"], seconds=9.0)
        quickstart.hidden.add(quickstart.stages[-1]["key"])
    text = page(quickstart)
    Checked(text)
    assert len(text) < 700_000
    assert "20 × Train" in graph_of(text) and "large" not in graph_of(text)
    evaluated = text.partition('id="evaluation"')[2].partition("<h2")[0]
    assert evaluated.count('class="score') == 20 and "of 20 columns" in evaluated
    assert evaluated.count("<li>") <= 5 and evaluated.count("16 more") == 6, "of 190 pairs a few sentences"
    cells = max(row.count("<td") + row.count("<th") for row in re.findall(r"<tr>.*?</tr>", evaluated, re.S) or [""])
    assert cells <= 8, "no table is as wide as there are adapters"
    assert "The other 38 trials" in text and "50 that other stages asked for" in text
    training = text.partition('id="training"')[2].partition("<h2")[0]
    assert training.partition("<details")[0].count("<svg") == report.MOST_CURVES
