"""What the rules find and what they leave, a labelled corpus, and texts made to take long."""

from __future__ import annotations

import random
import time
from collections import Counter

import pytest

from graftline.stages.score.personal_data import IBAN_LENGTHS, KINDS, Found, findings, luhn, mod97

YES = [
    ("write to jane.doe+x@mail.example.org, please", "email", "jane.doe+x@mail.example.org"),
    ("<a@b.co>", "email", "a@b.co"),
    ("Mail: büro@müller.de.", "email", "büro@müller.de"),
    ("my server 8.8.8.8 is down", "ip", "8.8.8.8"),
    ("from 203.12.45.67 today", "ip", "203.12.45.67"),
    ("at 2a00:1450:4001:81b::200e now", "ip", "2a00:1450:4001:81b::200e"),
    ("call +49 (0)30 901820 now", "phone", "+49 (0)30 901820"),
    ("ring me: 020 7946 0958", "phone", "020 7946 0958"),
    ("(415) 555-2671 is mine", "phone", "(415) 555-2671"),
    ("phone 5551234567", "phone", "5551234567"),
    ("paid with 4111 1111 1111 1111.", "card", "4111 1111 1111 1111"),
    ("amex 378282246310005", "card", "378282246310005"),
    ("IBAN DE89 3704 0044 0532 0130 00 THANKS", "iban", "DE89 3704 0044 0532 0130 00"),
    ("GB82WEST12345698765432", "iban", "GB82WEST12345698765432"),
    ("SSN 123-45-6789", "ssn", "123-45-6789"),
    ("ghp_" + "a1B2" * 9, "key", "ghp_" + "a1B2" * 9),
    ("aws AKIAIOSFODNN7EXAMPLE", "key", "AKIAIOSFODNN7EXAMPLE"),
    ('api_key = "f3Kq9ZpX27LmWv8RtB1c"', "key", "f3Kq9ZpX27LmWv8RtB1c"),
    ("my password is hunter2!x", "password", "hunter2!x"),
    ("postgres://bob:s3cret@db/x", "password", "s3cret"),
    ("-----BEGIN PRIVATE KEY-----\nMIIB\nabc=\n-----END PRIVATE KEY-----", "private_key", None),
]
NO = [
    "version 1.2.3.4 is out", "v10.20.30.40", "numpy==1.26.4.1", "it is 1.2.3.4", "10.0.0.1 and 192.168.1.1, 127.0.0.1",
    "999.1.1.1", "1.2.3.4.5", "at 12:30:45", "std::vector<int> a::b", "2001:db8::1", "::1", "fe80::1",
    "@decorator and @app.route('/x')", "user@localhost", "a@b", "4111 1111 1111 1112", "DE89 3704 0044 0532 0130 01",
    "d670460b4b4aece5915caf5c68d12f560a9fe3e4", "commit a94a8fe5ccb19ba61c4c0873d391e987982fbbd3", "2024-01-02 10:00",
    "01.02.2024", "order 1234567", "it cost 1,234,567.89", "isbn 978-3-16-148410-0", "token budget of 4096 tokens",
    "the secret ingredient is love", "my password is wrong.", "password reset", "000-12-3456", "12345-67-8901",
    "1234567890123", "0000 0000 0000 0000", "3.14159265358979", "2024/05/06", "pages 100-200", "call me at 10",
    "<EMAIL> <PHONE> <KEY-12ab34cd> password: <PASSWORD>", "10.40.3.9", "fd00::11", "see section 2.3.4.5",
    "1-2-3-4-5-6",
]  # fmt: skip


@pytest.mark.parametrize(("text", "kind", "value"), YES)
def test_it_is_found(text: str, kind: str, value: str | None) -> None:
    (found,) = findings(text)
    assert (found.kind, text[found.start : found.end]) == (kind, text if value is None else value)


@pytest.mark.parametrize("text", NO)
def test_it_is_left(text: str) -> None:
    assert findings(text) == []


def test_only_what_is_asked_for_and_the_longest_of_two() -> None:
    text = "https://bob:a@b.example.org@host/x and a@b.example.org"
    assert {found.kind for found in findings(text, ("email",))} == {"email"}
    assert [found.kind for found in findings("ftp://me:jane@example.org/x")] == ["password"]
    assert findings("x", ()) == []


def _card(draw: random.Random) -> str:
    digits = [4, *(draw.randrange(10) for _ in range(14))]
    digits.append(next(last for last in range(10) if luhn([*digits, last])))
    text = "".join(map(str, digits))
    return draw.choice((text, " ".join(text[at : at + 4] for at in range(0, 16, 4))))


def _iban(draw: random.Random) -> str:
    country = draw.choice(sorted(IBAN_LENGTHS))
    body = "".join(draw.choice("0123456789") for _ in range(IBAN_LENGTHS[country] - 4))
    return next(iban for check in range(100) if mod97(iban := f"{country}{check:02}{body}"))


MAKERS = {
    "email": lambda draw: f"{draw.choice(('ann', 'bob.k', 'x_1'))}{draw.randrange(99)}@{draw.choice(('a', 'b-c'))}.org",
    "ip": lambda draw: (
        f"{draw.randrange(11, 100)}.{draw.randrange(256)}.{draw.randrange(256)}.{draw.randrange(1, 256)}"
    ),
    "phone": lambda draw: f"+{draw.choice((1, 44, 49))} {draw.randrange(200, 999)} {draw.randrange(10**6, 10**7)}",
    "card": _card,
    "iban": _iban,
    "ssn": lambda draw: f"{draw.randrange(100, 600)}-{draw.randrange(10, 99)}-{draw.randrange(1000, 9999)}",
    "key": lambda draw: "sk-" + "".join(draw.choice("abcdefXYZ0123456789") for _ in range(32)),
    "password": lambda draw: f"p{draw.randrange(10**6)}w",
}
AROUND = (
    "I wrote from {} yesterday.", "Please use {}, not the old one.", "({})", "{} is what I have; order 4711-{n}.",
    "Since 2024-03-0{d} nothing works, version 2.{d}.1: {}", "{}", "My details:\n{}\nThanks, room {n}",
)  # fmt: skip


def test_precision_and_recall_on_a_synthetic_corpus() -> None:
    """Seeded, 800 lines: each kind in texts that also hold order numbers, dates and versions."""
    draw = random.Random(7)
    right, missed, wrong = Counter[str](), Counter[str](), 0
    for _ in range(100):
        for kind, make in MAKERS.items():
            value = make(draw)
            inside = f"https://me:{value}@host.org" if kind == "password" else value
            text = draw.choice(AROUND).replace("{n}", str(draw.randrange(9999))).replace("{d}", str(draw.randrange(9)))
            text = text.replace("{}", inside)
            found = {(each.kind, text[each.start : each.end]) for each in findings(text)}
            hit = (kind, value) in found
            right[kind] += hit
            missed[kind] += not hit
            wrong += len(found) - hit
    for kind in MAKERS:
        assert right[kind] / (right[kind] + missed[kind]) >= 0.95, (kind, right[kind])
    assert right.total() / (right.total() + wrong) >= 0.95


def test_no_text_takes_long() -> None:
    parts = ("a@", "1.", "1-", "(1) ", "::", "a.", "A1", "DE00 ", "4 ", "password: ", "key=", "x://a:", "+1 ",
    "-----BEGIN ",
             "-----BEGIN PRIVATE KEY-----\n", "%", "0-", "eyJaaaaaaaaaaaaa.")  # fmt: skip
    for part in parts:
        start = time.perf_counter()
        findings(part * (50_000 // len(part)))
        assert time.perf_counter() - start < 2, part


def test_overlaps_are_resolved_and_order_is_kept() -> None:
    text = "b@c.de 4111111111111111 a@b.de"
    found = findings(text)
    assert found == sorted(found) and [each.kind for each in found] == ["email", "card", "email"]
    assert found[0] == Found(0, 6, "email")
    assert len(KINDS) == len(set(KINDS))
