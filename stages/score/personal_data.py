"""Where personal data and secrets stand in a text: rules with checks, no model.

Every rule is bounded (no pattern backtracks over more than a few characters), and what a rule finds is checked: card
numbers and IBANs by their checksums, addresses by `ipaddress`, keys by their prefix or their entropy.
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, get_args

Kind = Literal["email", "ip", "phone", "card", "iban", "ssn", "key", "password", "private_key"]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""Of two findings of one length the earlier kind here wins."""

IBAN_LENGTHS = {
    "AD": 24, "AE": 23, "AT": 20, "BE": 16, "BG": 22, "CH": 21, "CY": 28, "CZ": 24, "DE": 22, "DK": 18, "EE": 20,
    "ES": 24, "FI": 18, "FR": 27, "GB": 22, "GR": 27, "HR": 21, "HU": 28, "IE": 22, "IL": 23, "IS": 26, "IT": 27,
    "LI": 21, "LT": 20, "LU": 20, "LV": 21, "MC": 27, "MT": 31, "NL": 18, "NO": 15, "PL": 28, "PT": 25, "RO": 24,
    "SA": 24, "SE": 24, "SI": 19, "SK": 24, "SM": 27, "TR": 26,
}  # fmt: skip
MOST_DIGITS = 15
"""Of a telephone number, by E.164."""
NEAR = 40
"""Characters before and after a finding that tell what it is."""
ENTROPY = 3.5
"""Bits a character that a value named a key has at least; words of a language have fewer."""

EMAIL = re.compile(r"(?<![\w.+%-])[\w.+%-]{1,64}@(?:[^\W_](?:[\w-]{0,61}[^\W_])?\.){1,8}[^\W\d_]{2,24}(?![\w-])")
IPV4 = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w]|\.\d)")
IPV6 = re.compile(r"(?<![\w:.])(?:[0-9a-fA-F]{0,4}:){2,7}[0-9a-fA-F]{0,4}(?![\w:])")
PHONE = re.compile(r"(?<![\w.+/-])(?:\+|00)?\(?\d{1,4}\)?(?:[ ./-]{0,2}\(?\d{1,5}\)?){1,7}(?![\w/-]|[.,]\d)")
PHONE_WORD = re.compile(r"\b(?:tel|phone|call|mobile|cell|fax|whatsapp|dial|ring|text me)\b[^\n]{0,20}$", re.IGNORECASE)
NORTH_AMERICAN = re.compile(r"(?:1[ .-])?(?:\([2-9]\d{2}\) ?|[2-9]\d{2}[ .-])[2-9]\d{2}[ .-]\d{4}")
DATE = re.compile(r"(?:\d{4}[-./]\d{1,2}[-./]\d{1,2}|\d{1,2}[-./]\d{1,2}[-./]\d{2,4})(?:\s.*)?")
CARD = re.compile(r"(?<![\w.+-])[2-6]\d{3}(?:[ -]?\d){9,15}(?![\w]|[-.]\d)")
ISSUED = re.compile(r"4(?:\d{12}|\d{15}|\d{18})|5[1-5]\d{14}|2[2-7]\d{14}|3[47]\d{13}|3[068]\d{12}|6\d{15,18}")
"""Lengths of card numbers by their first digits."""
IBAN = re.compile(r"(?<!\w)[A-Z]{2}\d{2}(?: ?[A-Z0-9]){11,30}")
SSN = re.compile(r"(?<![\w-])(?!000|666|9\d\d)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\w-])")
PREFIXED = re.compile(
    r"(?<![\w-])(?:sk-[\w-]{20,200}|sk_live_\w{16,200}|rk_live_\w{16,200}|gh[pousr]_\w{30,255}|github_pat_\w{22,255}"
    r"|glpat-[\w-]{20,64}|hf_[A-Za-z0-9]{30,64}|npm_[A-Za-z0-9]{30,64}|xox[abprs]-[\w-]{10,200}|A(?:KIA|SIA)[A-Z0-9]{16}"
    r"|AIza[\w-]{35}|eyJ[\w-]{10,2000}\.eyJ[\w-]{10,4000}\.[\w-]{10,2000})(?![\w-])"
)
NAMED = re.compile(
    r"\b(?:(?P<key>(?:api|access|secret|auth|private|client)[_ -]?(?:key|token|secret)|token|secret)"
    r"|pass(?:word|wd|phrase)?|pwd)[\"']?(?: is| ?[:=]>?) ?[\"']?(?P<value>[^\s\"'<>,;`]{6,200})",
    re.IGNORECASE,
)
IN_URL = re.compile(r"\b[a-z][a-z0-9+.-]{1,20}://[^\s:/@<>]{1,64}:(?P<value>[^\s:/@<>]{1,128})@", re.IGNORECASE)
PRIVATE_KEY = re.compile(r"-----BEGIN (?P<of>[A-Z ]{0,30}PRIVATE KEY)-----[\s\w+/=:,.-]{0,20000}?-----END (?P=of)-----")


@dataclass(frozen=True, slots=True, order=True)
class Found:
    """One finding: `text[start:end]`."""

    start: int
    end: int
    kind: Kind


def findings(text: str, kinds: tuple[Kind, ...] = KINDS) -> list[Found]:
    """What there is, in order, without overlaps: the longest wins, then the first kind of `KINDS`; a telephone number
    is only what is nothing else. With what was found taken out, nothing more is found."""
    taken: list[Found] = []
    while found := _found(text, tuple(kind for kind in KINDS if kind in kinds)):
        taken += found
        text = _blanked(text, found)
    return sorted(taken)


def _found(text: str, kinds: tuple[Kind, ...]) -> list[Found]:
    taken: list[Found] = []
    found = [each for kind in kinds if kind != "phone" for each in RULES[kind](text)]
    for each in sorted(found, key=lambda one: (one.start - one.end, KINDS.index(one.kind), one.start)):
        if all(each.end <= other.start or other.end <= each.start for other in taken):
            taken.append(each)
    return taken + list(_phones(_blanked(text, taken)) if "phone" in kinds else ())


def _blanked(text: str, found: list[Found]) -> str:
    """The text with the findings taken out, everything else in its place."""
    for each in found:
        text = f"{text[: each.start]}{'<' * (each.end - each.start - 1)}>{text[each.end :]}"
    return text


def _emails(text: str) -> Iterator[Found]:
    for match in EMAIL.finditer(text) if "@" in text else ():
        # What stands between the user and the host of a URL is a password.
        if not re.search(r"://[^\s:/@<>]{1,64}:$", text[max(0, match.start() - 70) : match.start()]):
            yield Found(*match.span(), "email")


def _ips(text: str) -> Iterator[Found]:
    for pattern in (IPV4, IPV6):
        for match in pattern.finditer(text):
            try:
                address = ipaddress.ip_address(match[0])
            except ValueError:
                continue
            if address.version == 6:
                real = address in ipaddress.ip_network("2000::/3") and address.is_global
            else:
                real = address.is_global and not _is_version(text, match)
            if real:
                yield Found(*match.span(), "ip")


def _is_version(text: str, match: re.Match[str]) -> bool:
    """Whether four numbers count releases: they are said to, or all have one digit and nothing speaks of a host."""
    before, after = text[max(0, match.start() - NEAR) : match.start()], text[match.end() : match.end() + NEAR]
    if re.search(r"(?:\bversion|\bv|\brelease|\bbuild|==|>=|~=|section|chapter)[ :.-]{0,2}$", before, re.IGNORECASE):
        return True
    host = re.search(
        r"\b(?:dns|server|host|ip|address|ping|gateway|router|proxy|nameserver)", before + " " + after, re.I
    )
    return len(match[0]) == 7 and not host


def _phones(text: str) -> Iterator[Found]:
    # Addresses are no part of a number before them.
    plain = IPV4.sub(lambda match: "x" * len(match[0]), text)
    for match in PHONE.finditer(plain):
        said = _balanced(match[0])
        while re.sub(r"[^0-9]", "", said)[MOST_DIGITS:] and (shorter := re.fullmatch(r"(.*\d\)?)[ ./-]+\S+", said)):
            said = _balanced(shorter[1])
        digits = sum(map(str.isdigit, said))
        if DATE.fullmatch(said):
            continue
        if re.match(r"(?:\+|00)\(?[1-9]", said) and (said[0] == "+" or len(said) > digits):
            real = 8 <= digits <= MOST_DIGITS
        elif PHONE_WORD.search(text[max(0, match.start() - NEAR) : match.start()]):
            real = 7 <= digits <= 15
        else:
            national = re.fullmatch(r"\(?0[1-9]\d{0,3}\)?[ ./-].*", said) is not None and 9 <= digits <= 12
            real = national or NORTH_AMERICAN.fullmatch(said) is not None
        if real:
            yield Found(match.start(), match.start() + len(said), "phone")


def _balanced(said: str) -> str:
    """Without a last parenthesis that was opened before the number."""
    return said[:-1] if said.endswith(")") and said.count(")") > said.count("(") else said


def _cards(text: str) -> Iterator[Found]:
    for match in CARD.finditer(text):
        digits = [int(each) for each in match[0] if each.isdigit()]
        if ISSUED.fullmatch("".join(map(str, digits))) and len(set(digits)) > 1 and luhn(digits):
            yield Found(*match.span(), "card")


def luhn(digits: list[int]) -> bool:
    """Whether the last digit is the checksum of the others."""
    doubled = [2 * each - 9 * (each > 4) for each in digits[-2::-2]]
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def _ibans(text: str) -> Iterator[Found]:
    for match in IBAN.finditer(text):
        length, seen = IBAN_LENGTHS.get(match[0][:2], 0), 0
        for end, letter in enumerate(match[0], 1):
            seen += letter != " "
            if seen == length:
                following = text[match.start() + end : match.start() + end + 1]
                if not following.isalnum() and mod97(match[0][:end].replace(" ", "")):
                    yield Found(match.start(), match.start() + end, "iban")
                break


def mod97(iban: str) -> bool:
    """Whether an IBAN's checksum holds."""
    return int("".join(str(int(each, 36)) for each in iban[4:] + iban[:4])) % 97 == 1


def _ssns(text: str) -> Iterator[Found]:
    yield from (Found(*match.span(), "ssn") for match in SSN.finditer(text))


def _keys(text: str) -> Iterator[Found]:
    yield from (Found(*match.span(), "key") for match in PREFIXED.finditer(text))
    for match in NAMED.finditer(text):
        if match["key"] and len(match["value"]) >= 16 and entropy(match["value"]) >= ENTROPY:
            yield Found(*match.span("value"), "key")


def _passwords(text: str) -> Iterator[Found]:
    for match in NAMED.finditer(text):
        value = match["value"]
        # A word after "password is" is part of a sentence.
        if not match["key"] and not re.fullmatch(r"[a-z]+[.!?]?|[A-Z][a-z]+[.!?]?|\W+", value):
            yield Found(*match.span("value"), "password")
    yield from (Found(*match.span("value"), "password") for match in IN_URL.finditer(text))


def _private_keys(text: str) -> Iterator[Found]:
    if "PRIVATE KEY" in text:
        yield from (Found(*match.span(), "private_key") for match in PRIVATE_KEY.finditer(text))


def entropy(text: str) -> float:
    """Bits a character, by the text's own counts."""
    counts = Counter(text).values()
    return -sum(count / len(text) * math.log2(count / len(text)) for count in counts)


RULES: dict[Kind, Callable[[str], Iterator[Found]]] = {
    "email": _emails, "ip": _ips, "phone": _phones, "card": _cards, "iban": _ibans, "ssn": _ssns, "key": _keys,
    "password": _passwords, "private_key": _private_keys,
}  # fmt: skip
