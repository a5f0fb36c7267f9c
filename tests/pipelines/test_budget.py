import pytest

from graftline.pipelines.budget import Budget, Purse
from graftline.stages.errors import InvalidField


def test_spent_by_the_first_part_that_is():
    purse = Purse(Budget(tokens=100, money=2.0))
    purse.pay(tokens=99, money=1.9)
    assert purse.spent() == ""
    purse.pay(tokens=1)
    assert "100 tokens" in purse.spent()
    assert "budget of 2 is spent" in Purse(Budget(money=2.0), money=2.5).spent()
    assert "0.5 hours" in Purse(Budget(hours=0.5), begun=0.0).spent()
    assert Purse(Budget(), tokens=10**12).spent() == ""


@pytest.mark.parametrize("field", ["tokens", "money", "hours"])
def test_a_budget_of_nothing_is_refused(field):
    with pytest.raises(InvalidField, match="too small") as caught:
        Budget(**{field: 0})
    assert caught.value.where == f"Budget.{field}"
