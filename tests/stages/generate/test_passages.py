"""Passages: nothing is lost, nothing is too long, and what belongs together stays together."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from graftline.stages.generate.passages import cut

text = st.lists(
    st.sampled_from(["a", "bb.", "ccc!", "|", "d\n", "e\n\n", "f\t", "g,h,i", "\n\n"]), min_size=0, max_size=60
).map(" ".join)


@given(text, st.integers(1, 20))
def test_all_words_in_their_order_and_no_passage_too_long(text: str, most: int) -> None:
    passages = cut(text, most)
    assert " ".join(passages).split() == text.split()
    assert all(1 <= len(passage.split()) <= most for passage in passages)


def test_paragraphs_then_sentences_then_words() -> None:
    assert cut("One two three.\n \nFour five six.\n\n\nSeven eight.", 4) == [
        "One two three.",
        "Four five six.",
        "Seven eight.",
    ]
    assert cut("One two. Three four. Five six.", 4) == ["One two. Three four.", "Five six."]
    assert cut("a b c d e f g", 3) == ["a b c", "d e f", "g"]
    assert cut("One.\n\nTwo.", 10) == ["One.\n\nTwo."]
    assert cut(" \n\n ", 5) == []


def test_lengths_are_about_equal() -> None:
    sentences = " ".join(f"This is sentence number {number}." for number in range(44))  # 220 words
    lengths = [len(passage.split()) for passage in cut(sentences, 200)]
    assert lengths == [110, 110]


def test_a_table_is_cut_between_lines_only() -> None:
    table = "\n".join(f"| row {number} | has, some. Text here |" for number in range(6))
    assert cut(table, 20) == ["\n".join(table.splitlines()[start : start + 2]) for start in (0, 2, 4)]
    assert cut(f"Before it.\n\n{table}\n\nAfter it.", 200) == [f"Before it.\n\n{table}\n\nAfter it."]
