"""What every test shares: the process's settings, the time limit of unmarked tests, one Ray, and the data folder."""

import os
import shutil
import signal
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

# Before anything imports ray or torch. Ray 2.60 turns token authentication on for a local cluster, and one thread a
# process keeps two workers on two cores from slowing each other (and their sums equal).
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")
# Triton's kernels are interpreted where there is no GPU to compile them for; it asks once, where a kernel is defined.
os.environ.setdefault("TRITON_INTERPRET", "0" if Path("/dev/nvidiactl").exists() else "1")

# A shell that starts pytest in the background has it ignore Ctrl-C, and so would every process that a test interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parents[1]
MAY_BE_LONG = ("real", "slow")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini("unmarked_seconds", "seconds which a test marked neither real nor slow may take", default="5")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    unmarked = [item.nodeid for item in items if "ray_cluster" in getattr(item, "fixturenames", ()) and _limited(item)]
    if unmarked:
        raise pytest.UsageError(f"these tests use Ray: mark them `real` (or `slow`): {', '.join(unmarked)}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fails a passed but unmarked test whose own body, its fixtures left out, took longer than the limit."""
    report = yield
    limit = float(item.config.getini("unmarked_seconds"))
    if report.when == "call" and report.passed and _limited(item) and call.duration > limit:
        report.outcome = "failed"
        report.longrepr = (
            f"{item.nodeid} took {call.duration:.1f} s; a test marked neither `real` nor `slow` may take {limit:g} s:"
            " make it smaller, or mark it"
        )
    return report


def _limited(item: pytest.Item) -> bool:
    return not any(item.get_closest_marker(name) for name in MAY_BE_LONG)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[Any]:
    """The session's one Ray, of two CPUs and no dashboard; yields ray's context and ends the Ray it started."""
    import ray

    # By name "local": a RAY_ADDRESS in the environment must not turn somebody's cluster into the tests'.
    context = ray.init(
        address="local",
        num_cpus=2,
        num_gpus=0,
        object_store_memory=512 * 1024**2,
        include_dashboard=False,
        log_to_driver=False,
        configure_logging=False,
    )
    with context:  # leaving it disconnects and ends the processes which this init started
        yield context


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real data sets: GRAFTLINE_DATA, else ../shared/data beside the repository; absent: skipped."""
    named = os.environ.get("GRAFTLINE_DATA")
    if named is not None:
        folder = Path(named)
        assert folder.is_dir(), f"GRAFTLINE_DATA={named} is not a folder: point it at the data sets or unset it"
        return folder
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"needs the real data sets: set GRAFTLINE_DATA (there is no {folder})")
    return folder


@pytest.fixture
def copied_tree(tmp_path: Path) -> Path:
    """A copy of what a build reads, to plant faults in; with its parent on PYTHONPATH, graftline is this copy."""
    tree = tmp_path / "linked" / "tree"
    for folder in ("kernels", "stages", "pipelines", "cluster", ".ci"):
        shutil.copytree(ROOT / folder, tree / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "LICENSE", "README.md"):
        shutil.copy(ROOT / name, tree)
    (tree.parent / "graftline").symlink_to(tree)
    return tree
