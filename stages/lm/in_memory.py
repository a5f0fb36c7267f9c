"""A model in memory, ready to answer: weights, tokenizer, adapters, and how prompts become tokens."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from graftline.stages.errors import EngineFailed, InvalidField, PromptTooLong
from graftline.stages.lm.adapters import AdapterSet
from graftline.stages.lm.chat import render
from graftline.stages.lm.drawing import Turn
from graftline.stages.lm.engine import Request, Sampling
from graftline.stages.lm.faster import faster
from graftline.stages.lm.held import held_by_all, held_of, load_held
from graftline.stages.lm.load import load_tokenizer, model_digest


class Loaded:
    """What the engines of real models share.

    Args:
        name: the model's name.
        directory: its Hugging Face directory.
        dtype: `float32` or `bfloat16`.
        adapters: name → PEFT directory, loaded from the start.
        held: how the base is held, whatever the adapters say (None: as all of them say).

    Raises:
        AdapterMismatch: the adapters belong on bases held differently.
    """

    def __init__(
        self, name: str, directory: Path, dtype: str, adapters: Mapping[str, Path], held: str | None = None
    ) -> None:
        self.name, self.dtype = name, dtype
        self.digest = model_digest(directory)
        self.tokenizer = load_tokenizer(directory)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        # Not frozen, though nothing is trained: torch 2.13 multiplies a sliced hidden state by a weight that needs no
        # gradient as a batched product, copying the head once a row (1.6 GB for 28 rows; generation at half speed).
        said = {adapter: held_of(place) for adapter, place in adapters.items()}
        self.held = held_by_all(said, where=name) if held is None else held
        self.model: Any = load_held(directory, dtype, self.held).to(self.device)
        faster(self.model)
        self.why = f"computed in {dtype} on {self.device.type}: rounding may depend on who shares a batch"
        self.ends = _ends(self.model, self.tokenizer, name)
        # Requests say how their answers are drawn. What else a model's directory asks for (a repetition penalty, say)
        # transformers would apply in `generate` and leave out of continuous batching.
        self.model.generation_config = GenerationConfig(eos_token_id=list(self.ends), pad_token_id=self.ends[0])
        self.adapters = AdapterSet(self.model, self.digest, self.held if held is None else None)
        for adapter, place in sorted(adapters.items()):
            self.adapters.load(adapter, place)

    @functools.cached_property
    def context(self) -> int:
        """Tokens a prompt and its answer may have together."""
        return int(getattr(self.model.config.get_text_config(), "max_position_embeddings", None) or 2**31)

    def ask(self, request: Request, room: int | None = None) -> tuple[list[int], Turn]:
        """A request as tokens, and its answer to be.

        Args:
            room: tokens that prompt and answer may have together, where that is less than the context.

        Raises:
            PromptTooLong: no token of an answer would fit.
            InvalidField: a sampling field out of range.
        """
        _check(request.sampling, request.id)
        ids = render(self.tokenizer, request.messages, prefix=request.prefix)
        most = min(self.context, room or self.context)
        left = most - len(ids)
        if left < 1:
            raise PromptTooLong(
                f"the prompt has {len(ids)} tokens, and {self.name} takes {most} with the answer",
                where=f"request {request.id}",
                do="shorten it",
            )
        limit = min(request.sampling.max_new_tokens, left)
        return ids, Turn(request.sampling, len(ids), limit, self.ends, self.tokenizer)


def _ends(model: Any, tokenizer: Any, name: str) -> tuple[int, ...]:
    """Ids of the tokens that end a turn; the first is the tokenizer's own."""
    found = model.generation_config.eos_token_id
    listed = found if isinstance(found, list) else [found]
    ids = tuple(dict.fromkeys(token for token in (tokenizer.eos_token_id, *listed) if token is not None))
    if not ids:
        raise EngineFailed("the model has no end-of-turn token", where=name, do="use an instruct model")
    return ids


def _check(sampling: Sampling, id: str) -> None:
    for name, good, range_ in (
        ("temperature", 0 <= sampling.temperature < float("inf"), "at least 0"),
        ("top_p", 0 < sampling.top_p <= 1, "above 0, at most 1"),
        ("presence", -2 <= sampling.presence <= 2, "-2 to 2"),
        ("max_new_tokens", sampling.max_new_tokens >= 1, "at least 1"),
        ("stop", all(sampling.stop), "texts that are not empty"),
    ):
        if not good:
            raise InvalidField(
                f"{getattr(sampling, name)!r} is out of range",
                where=f"request {id}: sampling.{name}",
                do=f"use {range_}",
            )
