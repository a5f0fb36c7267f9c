"""The table of methods is complete, and says where each comes from."""

import json
from pathlib import Path

import pytest

from graftline.stages import methods


def test_every_method_says_where_it_comes_from() -> None:
    lines = methods.table()
    assert {"select.top_k"} <= {line.name for line in lines}
    assert len({line.name for line in lines}) == len(lines)
    for line in lines:
        assert line.papers or line.origin, f"{line.qualified} has neither papers nor an origin"
        assert line.summary, f"{line.qualified} has no docstring"


def test_paper_titles_are_the_specifications() -> None:
    file = Path(__file__).parents[3] / "shared/methods/papers.json"
    if not file.exists():
        pytest.skip("the list of papers is not beside this checkout")
    titles = {paper["title"] for paper in json.loads(file.read_text())}
    for line in methods.table():
        assert set(line.papers) <= titles, line.qualified


def test_suppliers_of_a_column() -> None:
    assert "generate.SelfInstruct" in methods.suppliers("max_rouge")
    assert methods.suppliers("ifd") == ["score.Difficulty"]
    assert methods.suppliers("no such column") == []
