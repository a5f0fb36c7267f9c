"""`tiny` among the embedding models: words hashed into a few places, without a model, for tests and dry runs.

Texts that share words are near each other, which is all that selecting and routing need to be tried out.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

IDENTITY = "hashed-words-1"
"""Stands for it in fingerprints: raise its number when the vectors change."""
FILE = "hashed_words.json"
SIZE = 64
WORD = re.compile(r"\w+")


def write(directory: Path) -> None:
    """Write its directory: one file that says what it is."""
    (directory / FILE).write_text(json.dumps({"identity": IDENTITY, "size": SIZE}) + "\n", encoding="utf-8")


class HashedWords:
    """A text's words, each counted with a sign at the place its hash says, scaled to length 1."""

    size = SIZE

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """[texts, 64] float32; a text without words is all zeros."""
        import numpy as np

        found = np.zeros((len(texts), SIZE), np.float32)
        for row, text in zip(found, texts, strict=True):
            counts = [0] * SIZE
            for word in WORD.findall(text.casefold()):
                drawn = hashlib.sha256(word.encode("utf-8", "surrogatepass")).digest()
                counts[drawn[0] % SIZE] += 1 if drawn[1] % 2 else -1
            length = math.sqrt(sum(count * count for count in counts))
            if length:
                row[:] = [count / length for count in counts]
        return found
