import errno

import pytest
from safetensors import SafetensorError

from graftline.stages.errors import StoreFailed
from graftline.stages.train.reporting import STATE, TENSORS, FolderReporter


@pytest.fixture
def reporter(tmp_path):
    return FolderReporter(tmp_path / "checkpoints", lambda *_, **__: None, lambda *_, **__: None)


def writer(text):
    def write(folder):
        (folder / STATE).write_text(text)
        (folder / TENSORS).write_text(text)

    return write


def latest(reporter):
    with reporter.latest() as folder:
        return None if folder is None else (folder / STATE).read_text()


def test_the_newest_is_kept(reporter):
    assert latest(reporter) is None
    for step in (9, 10, 100):
        reporter.save(step, writer(f"after {step}"))
        assert latest(reporter) == f"after {step}"
    assert [path.name for path in reporter.folder.iterdir()] == ["step-000000100"]
    reporter.save(100, writer("again"))
    assert latest(reporter) == "again"


def test_a_kill_while_writing_leaves_the_one_before(reporter):
    reporter.save(1, writer("first"))

    def killed(folder):
        (folder / STATE).write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reporter.save(2, killed)
    assert latest(reporter) == "first"
    reporter.save(3, writer("third"))
    assert latest(reporter) == "third" and len(list(reporter.folder.iterdir())) == 1


def test_a_folder_that_a_store_copied_half_is_passed_over(reporter):
    reporter.save(1, writer("first"))
    (reporter.folder / "step-000000002").mkdir()
    (reporter.folder / "step-000000002" / STATE).write_text("half")
    assert latest(reporter) == "first"


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("No space left on device")]
)
def test_a_full_disk_is_the_worlds_fault(reporter, error):
    def full(folder):
        raise error

    with pytest.raises(StoreFailed, match=r"step-000000005: cannot write: .*No space.*Free some space"):
        reporter.save(5, full)
