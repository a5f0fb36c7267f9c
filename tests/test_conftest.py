"""The time limit of unmarked tests really fails them, and a test that uses Ray must say so."""

from collections.abc import Callable
from pathlib import Path

import pytest

SLEEPERS = """
import time, pytest

@pytest.fixture
def long_setup():
    time.sleep(0.3)

def test_short(long_setup): pass
def test_unmarked_sleeper(): time.sleep(0.3)
@pytest.mark.real
def test_real_sleeper(): time.sleep(0.3)
@pytest.mark.slow
def test_slow_sleeper(): time.sleep(0.3)
"""


@pytest.fixture
def session(pytester: pytest.Pytester) -> Callable[[str], pytest.RunResult]:
    """Runs a session on one test file with this repository's conftest.py and a limit of 0.2 s."""
    pytester.makeconftest((Path(__file__).parent / "conftest.py").read_text(encoding="utf-8"))
    pytester.makeini("[pytest]\nunmarked_seconds = 0.2\nmarkers =\n    real: long\n    slow: longer\n")

    def run(source: str) -> pytest.RunResult:
        return pytester.runpytest_inprocess("-rA", str(pytester.makepyfile(source)))

    return run


def test_only_the_unmarked_test_past_the_limit_fails(session):
    result = session(SLEEPERS)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(passed=3, failed=1)
    result.stdout.fnmatch_lines(
        "*::test_unmarked_sleeper took 0.* s; a test marked neither `real` nor `slow` may take 0.2 s: make it *"
    )


def test_a_failure_keeps_its_own_report(session):
    result = session("import time\ndef test_wrong():\n    time.sleep(0.3)\n    assert 1 + 1 == 3\n")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines("*assert (1 + 1) == 3*")
    result.stdout.no_fnmatch_line("*may take*")


def test_a_test_on_ray_must_be_marked(session):
    result = session("def test_planted(ray_cluster): pass\n")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines("*mark them `real`*::test_planted")


def test_data_dir_named_by_the_environment(session, tmp_path, monkeypatch):
    source = "def test_planted(data_dir): assert (data_dir / 'rows.jsonl').is_file()\n"
    (tmp_path / "rows.jsonl").touch()
    monkeypatch.setenv("GRAFTLINE_DATA", str(tmp_path))
    session(source).assert_outcomes(passed=1)
    monkeypatch.setenv("GRAFTLINE_DATA", str(tmp_path / "elsewhere"))
    session(source).stdout.fnmatch_lines("*elsewhere is not a folder: point it at the data sets*")


def test_data_dir_absent_skips_with_its_reason(session, monkeypatch):
    monkeypatch.delenv("GRAFTLINE_DATA", raising=False)
    result = session("def test_planted(data_dir): pass\n")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines("*needs the real data sets: set GRAFTLINE_DATA*")


@pytest.mark.real
def test_ray_cluster_is_the_sessions_own(ray_cluster):
    import ray

    assert ray.cluster_resources()["CPU"] == 2
    assert ray.get(ray.remote(lambda: 1 + 1).remote()) == 2
