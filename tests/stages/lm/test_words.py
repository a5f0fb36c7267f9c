"""The word list is what the tiny model's tokenizer is built from: its order and content are fixed."""

import hashlib

from graftline.stages.lm.words import vocabulary


def test_the_words_are_plain_unique_and_fixed():
    words = vocabulary()
    assert len(words) == len(set(words)) > 150
    assert all(word.isascii() and word.isalpha() and word.islower() for word in words)
    assert hashlib.sha256(" ".join(words).encode()).hexdigest()[:16] == "59d61f0aba411589"
