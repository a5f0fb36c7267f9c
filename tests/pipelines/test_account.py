from collections import Counter

import pytest

from graftline.pipelines.account import Account
from graftline.stages.errors import NothingKept, RunError, TooManyFailed


def test_it_must_add_up():
    Account(4, 4, 2, 3, Counter(short=2), Counter(broken=1)).check("S", max_failed=0.2)
    for wrong in (Account(4, 4, 0, 3), Account(4, 4, 0, 5), Account(1, 1, 1, 1)):
        with pytest.raises(RunError, match="does not add up") as caught:
            wrong.check("Stage", max_failed=1.0)
        assert caught.value.where == "Stage"


def test_too_many_failed():
    account = Account(10, 10, 0, 8, Counter(), Counter({"ValueError: no": 2}))
    account.check("S", max_failed=0.2)
    with pytest.raises(TooManyFailed, match=r"2 of 10 rows failed.*max_failed=0.19.*ValueError: no"):
        account.check("S", max_failed=0.19)


def test_nothing_kept():
    with pytest.raises(NothingKept, match=r"none of 2 rows; most often \(2\): short"):
        Account(2, 2, 0, 0, Counter(short=2)).check("S", max_failed=0.1)
    with pytest.raises(NothingKept):
        Account().check("S", max_failed=0.1)


def test_accounts_are_summed():
    total = Account()
    total.add(Account(2, 2, 1, 1, Counter(a=1), Counter(b=1)))
    total.add(Account(2, 2, 1, 1, Counter(a=2), Counter()))
    assert total == Account(4, 4, 2, 2, Counter(a=3), Counter(b=1))


def test_reasons_are_bounded():
    account = Account(failed=Counter({f"row {number} is wrong": 1 for number in range(70)} | {"x" * 500: 3}))
    failed = account.to_dict()["failed"]
    assert len(failed) == 51 and sum(failed.values()) == 73 and failed["other reasons"] == 21
    assert failed["x" * 199 + "…"] == 3
    assert Account.from_dict(account.to_dict()).failed.total() == 73
