"""Prompts as vectors: what routers measure nearness by."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

Embed = Callable[[Sequence[str]], "np.ndarray"]
"""Texts → float32 [texts, width], each vector of length 1."""
MOST_TOKENS = 256
"""Of a text; what follows them changes no route."""


def open_embedder(directory: Path, threads: int = 1) -> Embed:
    """The mean of a model's last hidden states over a text's tokens. Each text is computed by itself, so that its
    vector cannot depend on who shares a batch.

    Args:
        directory: a Hugging Face directory: an encoder's, or any causal language model's.
        threads: of torch.
    """
    import numpy as np
    import torch
    from transformers import AutoModel

    from graftline.stages.lm.load import load_tokenizer, quietly

    torch.set_num_threads(threads)
    tokenizer = load_tokenizer(directory)
    with quietly():
        model = AutoModel.from_pretrained(
            directory, dtype=torch.float32, use_safetensors=True, local_files_only=True, trust_remote_code=False
        ).eval()

    def embed(texts: Sequence[str]) -> np.ndarray:
        found = np.zeros((len(texts), model.config.hidden_size), np.float32)
        with torch.no_grad():
            for place, text in enumerate(texts):
                ids = tokenizer(text or " ", truncation=True, max_length=MOST_TOKENS, return_tensors="pt")["input_ids"]
                mean = model(input_ids=ids).last_hidden_state[0].mean(0)
                found[place] = torch.nn.functional.normalize(mean, dim=0).numpy()
        return found

    return embed


def routed_text(messages: Sequence[Mapping[str, str]]) -> str:
    """What of a conversation decides its route: every user turn. System messages say who is asked, not what."""
    return "\n".join(message["content"] for message in messages if message["role"] == "user")
