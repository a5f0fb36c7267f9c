"""Errors read as what, where, what to do, and survive pickling (Ray sends them between processes)."""

import pickle

from graftline.stages.errors import GraftlineError, InvalidField, RequestError, RowFault, RunError, WorldError


def test_the_message_says_where_what_and_what_to_do() -> None:
    error = InvalidField("is too small", where="TopK.k", do="use at least 1")
    assert str(error) == "TopK.k: is too small. Use at least 1"
    assert str(GraftlineError("it broke")) == "it broke"


def test_errors_pickle_whole() -> None:
    error = pickle.loads(pickle.dumps(InvalidField("a", where="b", do="c")))
    assert (type(error), error.what, error.where, error.do) == (InvalidField, "a", "b", "c")


def test_the_families_are_apart() -> None:
    kinds = (RequestError, RowFault, RunError, WorldError)
    assert all(not issubclass(one, two) for one in kinds for two in kinds if one is not two)
