"""Each rule catches what it names, and nothing near it."""

from __future__ import annotations

import pytest

from graftline.stages.generate.rules import broken_instruction, broken_rule, phrases
from graftline.stages.generate.self_instruct import ASSISTANT
from graftline.stages.generate.tasks import FORBIDDEN

SHOWN = ("No signal in the street.", "Down again.")
FINE = "The whole house is offline since noon."


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (FINE, ""),
        ("It filed a complaint today.", ""),
        ("Outage: says the map, but nobody tells us more", "repeats the request"),
        ("An outage again, please help", ""),
        ("four words are fine", ""),
        ("three words only", "has fewer than 4 words"),
        ("word " * 150, ""),
        ("word " * 151, "has more than 150 words"),
        ("", "is empty"),
        ("outage", "is the same as its answer"),
        ("Outage.", "is the same as its answer"),
        ("- no signal since this morning", "starts with punctuation or a non-ASCII character"),
        ('"No signal" it said to me', "starts with punctuation or a non-ASCII character"),
        ("Überall kein Netz seit heute", "starts with punctuation or a non-ASCII character"),
        ("Kein Netz für Käthe heute", ""),
        ("These are the open questions:", "ends with a colon"),
        ("Sure! write messages about: outage and so on", "repeats the request"),
        ("Hello, no signal in the street. Thanks a lot.", "repeats an example"),
        ("My FILE is gone since the update", "has a forbidden phrase"),
        ("it is a file, gone since noon", "has a forbidden phrase"),
        ("please go  to the shop with it", ""),  # drafts are on one line with single spaces
        ("please go to the shop with it", "has a forbidden phrase"),
        ("a broken \ufffd character in here", "has broken characters"),
        ("a zero \x00 character in here", "has broken characters"),
    ],
)
def test_rules(text: str, reason: str) -> None:
    forbidden = phrases(("file", "Go to", " "))
    assert broken_rule(text.strip(), "outage", "Write messages about: outage", SHOWN, forbidden) == reason


def test_an_assistants_phrases_are_found_and_none_forbidden_is_no_pattern() -> None:
    found = phrases(ASSISTANT)
    assert broken_rule("I'm unable to assist you with that.", "label", "request", (), found) == "has a forbidden phrase"
    assert broken_rule("I can't assist you with that.", "label", "request", (), found) == "has a forbidden phrase"
    assert broken_rule("Is there assistance for old people?", "label", "request", (), found) == ""
    assert phrases(()) is None and phrases(("",)) is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Name three rivers now", ""),
        ("Name three rivers", "has fewer than 4 words"),
        ("word " * 151, "has more than 150 words"),
        ("- name three long rivers", "starts with punctuation or a non-ASCII character"),
        ("Überlege dir drei Flüsse", "starts with punctuation or a non-ASCII character"),
        ("Write a program that sorts", "asks for a program"),
        ("Describe the picture in words", "has a forbidden phrase"),
        ("They filed a complaint, answer it", ""),
        ("Go to the shop please", "has a forbidden phrase"),
        ("a broken \ufffd character in it", "has broken characters"),
    ],
)
def test_instructions(text: str, reason: str) -> None:
    assert broken_instruction(text, phrases(FORBIDDEN)) == reason
