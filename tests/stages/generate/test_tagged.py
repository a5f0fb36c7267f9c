"""What stands between tags counts, and nothing else."""

from __future__ import annotations

import pytest

from graftline.stages.generate.questions import Unreadable
from graftline.stages.generate.tagged import pairs, tag, tagged


def test_tagged() -> None:
    assert tagged("Sure!\n<answer> one\ntwo </answer> and <answer></answer>, <answer>three") == ["one\ntwo", ""]
    assert tagged("<answer>never closed <answer>closed</answer>") == ["closed"]
    assert tagged(tag("x", "1 < 2") + tag("answer", "no"), "x") == ["1 < 2"]
    for none in ("", "an answer", "<answer>never closed", "</answer><answer>"):
        with pytest.raises(Unreadable, match="between <answer> and </answer>"):
            tagged(none)


def test_pairs() -> None:
    whole = tag("answer", f"\n{tag('instruction', ' Do. ')}\n{tag('response', 'Done.')}\n")
    half = tag("answer", tag("instruction", "Do."))
    assert pairs(f"{whole} {half} {whole}") == [("Do.", "Done."), ("Do.", "Done.")]
    with pytest.raises(Unreadable, match="both"):
        pairs(half)
    with pytest.raises(Unreadable, match="between"):
        pairs("Do. Done.")
