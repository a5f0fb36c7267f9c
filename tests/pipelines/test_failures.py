import errno
import pickle

import pytest

from graftline.pipelines.failures import ContractBroken, Failure, is_world, reason
from graftline.stages.errors import (
    BudgetSpent,
    EndpointRefused,
    FileMissing,
    GraftlineError,
    NoTrainedToken,
    RowFault,
    WorldError,
)


class TheirOwn(FileMissing):
    """A user's subclass, which the run's process may not know."""


@pytest.mark.parametrize(
    ("error", "type_", "what"),
    [
        (FileMissing("gone", where="a.txt", do="look"), "FileMissing", "gone"),
        (TheirOwn("gone", where="a.txt", do="look"), "FileMissing", "gone"),
        (ContractBroken("wrong shape"), "ContractBroken", "wrong shape"),
        (ValueError("bad\nvalue"), "RunError", "ValueError: bad value"),
        (MemoryError(), "WorldError", "MemoryError"),
        (OSError(errno.ENOSPC, "No space left on device"), "StoreFailed", "the disk is full"),
    ],
)
def test_errors_cross_processes(error, type_, what):
    failure = pickle.loads(pickle.dumps(Failure.of(error, "Stage")))
    assert failure.type == type_ and type(error).__name__ in failure.traceback
    back = failure.error()
    assert type(back).__name__ == type_ and isinstance(back, GraftlineError) and back.what == what
    assert back.where == (getattr(error, "where", "") or "Stage")


def test_the_traceback_is_pointed_to():
    assert Failure("RunError", "x", do="try").told("/a/b").do == "try; the traceback is in /a/b"


def test_whose_fault():
    for error in (
        WorldError("down"),
        EndpointRefused("the key is wrong"),
        BudgetSpent("spent"),
        MemoryError(),
        OSError(errno.ENOSPC, "full"),
    ):
        assert is_world(error)
    out_of_memory = type("OutOfMemoryError", (RuntimeError,), {})
    assert is_world(out_of_memory("CUDA out of memory"))
    assert is_world(type("RayError", (Exception,), {"__module__": "ray.exceptions"})())
    for error in (ValueError(), RowFault("short"), FileMissing("gone"), OSError(errno.EIO, "io"), ZeroDivisionError()):
        assert not is_world(error)


def test_reasons():
    assert reason(RowFault("the answer is empty", where="row")) == "the answer is empty"
    assert reason(NoTrainedToken("nothing to train")) == "nothing to train"
    assert reason(KeyError("x")) == "KeyError: 'x'" and reason(ValueError()) == "ValueError"
