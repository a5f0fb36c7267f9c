"""A family finds its classes by file name and imports nothing before."""

import subprocess
import sys

import pytest

from graftline.stages import select
from graftline.stages.family import class_name, members


def test_classes_are_found_by_name() -> None:
    assert select.TopK.__name__ == "TopK"
    assert "TopK" in dir(select)
    with pytest.raises(AttributeError, match=r"no 'Nothing'; it has .*TopK"):
        _ = select.Nothing
    assert not hasattr(select, "_private")


def test_the_name_rule_reads_the_source() -> None:
    assert class_name("graftline.stages.select", "top_k") == "TopK"
    assert dict(members(select))["top_k"] is select.TopK


def test_nothing_is_imported_before_it_is_asked_for() -> None:
    code = "import sys; from graftline.stages import select; print('graftline.stages.select.top_k' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


def test_a_sub_folder_is_there_without_being_imported_first() -> None:
    code = "from graftline.stages import train; print(train.base.Nf4.__name__, hasattr(train, 'nothing'))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.split() == [
        "Nf4",
        "False",
    ]
