"""Drafts are taken in order: exact novelty, conflicts vanish, answers get no more than is wanted."""

from __future__ import annotations

from collections import Counter, defaultdict

from hypothesis import given
from hypothesis import strategies as st

from graftline.stages.generate.drafts import CONFLICT, Drafts, Seed
from graftline.stages.generate.rouge import rouge_l, words

SEEDS = {
    "x": [Seed("s0", "g0", "a b c d e", "x", None), Seed("s1", "g1|g3", "e d c b a", "x", "Be brief.")],
    "y": [Seed("s2", "g2", "f g h i j", "y", None)],
}
candidate = st.tuples(
    st.lists(st.sampled_from(["a", "b", "c", "D", "d", "e", "f", "g", "h"]), min_size=3, max_size=6).map(" ".join),
    st.sampled_from("xy"),
)


def drafts(novelty: float = 0.7, wanted: int = 3) -> Drafts:
    state = Drafts(model="m", seeds=SEEDS, wanted={"x": wanted, "y": wanted}, novelty=novelty)
    for seeds in SEEDS.values():
        for seed in seeds:
            state.pool.add(seed.id, words(seed.text))
    return state


def take(state: Drafts, text: str, answer: str, broken: str = "") -> None:
    state.take(text, answer, SEEDS[answer], {"round": 0, "seed": 1}, broken)


def slow(candidates: list[tuple[str, str]], novelty: float, wanted: int) -> list[bool]:
    """The same, written down plainly: which candidates are kept in the end."""
    pool = [seed.text for seeds in SEEDS.values() for seed in seeds]
    kept = [False] * len(candidates)
    for index, (text, answer) in enumerate(candidates):
        same = [other for other in range(index) if candidates[other][0].casefold() == text.casefold()]
        answers = {candidates[other][1] for other in same} | {
            seed.answer for seeds in SEEDS.values() for seed in seeds if seed.text == text.casefold()
        }
        if answers - {answer}:
            for other in same:
                kept[other] = False
        elif all(rouge_l(words(text), words(other)) <= novelty for other in pool):
            count = sum(kept[other] and candidates[other][1] == answer for other in range(index))
            kept[index] = count < wanted
            if kept[index]:
                pool.append(text)
    return kept


@given(st.lists(candidate, max_size=25), st.sampled_from([0.3, 0.5, 0.7, 1.0]), st.integers(0, 4))
def test_what_is_kept_is_what_the_plain_algorithm_keeps(
    candidates: list[tuple[str, str]], novelty: float, wanted: int
) -> None:
    state = drafts(novelty, wanted)
    for text, answer in candidates:
        take(state, text, answer)
    made = list(state.outcomes())
    assert [each.outcome == "kept" for each in made] == slow(candidates, novelty, wanted)
    kept = [each.row for each in made if each.outcome == "kept"]
    texts = [row["messages"][-2]["content"] for row in kept]
    everything = [seed.text for seeds in SEEDS.values() for seed in seeds] + texts
    for position, text in enumerate(texts, len(everything) - len(texts)):
        others = everything[:position] + everything[position + 1 :]
        assert all(rouge_l(words(text), words(other)) <= novelty for other in others)
    counts = Counter(row["answer"] for row in kept)
    assert (
        counts == Counter({answer: state.kept[answer] for answer in "xy"}) and max(counts.values(), default=0) <= wanted
    )
    answers = defaultdict(set)
    for text, answer in candidates:
        answers[text.casefold()].add(answer)
    assert all(len(answers[text.casefold()]) == 1 for text in texts), "a text with two answers disappears"
    assert len({each.row["id"] for each in made}) == len(made)
    assert all(each.reason for each in made if each.outcome == "filtered")


def test_both_of_a_conflict_go_and_their_place_is_free_again() -> None:
    state = drafts(wanted=1)
    take(state, "q r s t", "x")
    assert state.kept["x"] == 1
    take(state, "Q  r s t", "y")
    take(state, "q r s t", "x")
    take(state, "k l m n", "x")
    assert [each.reason for each in state.outcomes()] == [CONFLICT, CONFLICT, CONFLICT, ""]
    take(state, "A b c d e", "y")
    assert [each.reason for each in state.outcomes()][-1] == CONFLICT, "a seed has it with another answer"


def test_a_rows_columns() -> None:
    state = drafts()
    state.take("a b c k", "x", SEEDS["x"], {"round": 2, "seed": 9}, "")
    state.take("ends here:", "y", SEEDS["y"], {"round": 2, "seed": 9}, "ends with a colon")
    kept, broken = state.outcomes()
    assert {**kept.row, "id": ""} == {
        "id": "",
        "parents": ["s0", "s1"],
        "group": "g0|g1|g3",
        "source": "generated",
        "messages": [{"role": "user", "content": "a b c k"}, {"role": "assistant", "content": "x"}],
        "answer": "x",
        "gen": {"stage": "generate.self_instruct", "model": "m", "round": 2, "seed": 9},
        "max_rouge": 2 * 3 / 9,
        "nearest_id": "s0",
    }
    assert (broken.outcome, broken.reason) == ("filtered", "ends with a colon")
    assert broken.row["max_rouge"] is None and set(broken.row) == set(kept.row)


def test_texts_without_latin_words_have_no_rouge_and_are_not_kept() -> None:
    state = drafts()
    take(state, "это текст без латиницы", "x")
    assert [each.reason for each in state.outcomes()] == ["has no word in a-z and 0-9"]
