import importlib.util
import sys

import pytest

from graftline.pipelines import sources
from graftline.pipelines.sources import is_shipped, source_digest, versions
from graftline.stages import read, select

MINE = '''
"""What it is."""
from graftline.stages import Source

def help():
    return {value}

class Mine(Source):
    def make_rows(self, context):
        yield help()  # {comment}

def pipeline(k={k}):
    return Mine()

def figures(run):
    return {{}}

if __name__ == "__main__":
    print({k})
'''


@pytest.fixture
def mine(tmp_path):
    """The class of a file written with these values."""
    count = iter(range(100))

    def load(**values):
        name = f"sources_{tmp_path.name.replace('-', '_')}_{next(count)}"
        path = tmp_path / f"{name}.py"
        path.write_text(MINE.format(**{"value": 1, "comment": "c", "k": 1, **values}))
        spec = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        return module.Mine

    yield load
    for name in [name for name in sys.modules if name.startswith("sources_")]:
        del sys.modules[name]


def test_a_users_code_counts_and_what_puts_stages_together_does_not(mine):
    one = source_digest(mine())
    assert not is_shipped(mine()) and len(one) == 64
    assert source_digest(mine(k=5, comment="other")) == one
    assert source_digest(mine(value=2)) != one, "a helper of the file is part of it"


def test_modules_beside_the_file_count(mine, tmp_path):
    (tmp_path / "beside.py").write_text("from deeper.rules import rule\n")
    (tmp_path / "deeper").mkdir()
    (tmp_path / "deeper" / "rules.py").write_text("rule = 1\n")
    plain = source_digest(mine())
    own = "1\n\nimport sys\nsys.path.insert(0, r'" + str(tmp_path) + "')\nimport json, beside\ndef more(): pass"
    one = source_digest(mine(value=own))
    assert one != plain and source_digest(mine(value=own)) == one
    (tmp_path / "deeper" / "rules.py").write_text("rule = 2  # changed\n")
    assert source_digest(mine(value=own)) != one


def test_a_class_without_a_source_has_no_digest():
    kind = type("Typed", (), {"__module__": "nowhere", "qualified": "nowhere.Typed"})
    assert source_digest(kind) == ""


def test_shipped_code_counts_with_what_it_imports(monkeypatch):
    assert is_shipped(select.TopK) and source_digest(select.TopK) != source_digest(select.Concat)
    before = source_digest(select.TopK)
    original = sources._imports

    def changed(module):
        found = original(module)
        return ("other", found[1]) if module == "graftline.stages.rows" and found else found

    sources._shipped.cache_clear()
    monkeypatch.setattr(sources, "_imports", changed)
    assert source_digest(select.TopK) != before, "it imports stages/rows.py"
    monkeypatch.undo()
    sources._shipped.cache_clear()
    assert source_digest(select.TopK) == before and read is not None


def test_versions():
    found = versions()
    assert found["python"].startswith("3.") and {"ray", "torch", "pyarrow", "graftline"} <= set(found)


def test_threads_may_ask_at_once():
    """Python's own parser fails where two threads build a tree at once."""
    from concurrent.futures import ThreadPoolExecutor

    source = (
        "x = "
        + "(" * 60
        + "1"
        + ")" * 60
        + "\n" * 50
        + "\n".join(f"def f{n}(a): return [a, {{a: (a,)}}]" for n in range(200))
    )
    with ThreadPoolExecutor(8) as pool:
        assert len({len(tree.body) for tree in pool.map(sources._parsed, [source] * 200)}) == 1
