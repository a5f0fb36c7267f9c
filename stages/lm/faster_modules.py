"""Modules of transformers' models as subclasses of themselves, whose forward pass is computed by our kernels."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import SiLUActivation
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from graftline.kernels.rms_norm import rms_norm
from graftline.kernels.rope import rope
from graftline.kernels.swiglu import swiglu


def _few(x: Tensor, tokens: int) -> bool:
    """Whether so little is asked, without gradients, that torch's plain operations are quicker to call: 24 µs against
    35 for a norm of 8 tokens, 92 and 101 of 128, 424 and 295 of 512; 35 and 43 for turning the heads of 8 tokens, 128
    and 109 of 128, in bf16 on a CPU [measured]."""
    return not torch.is_grad_enabled() and x.numel() < tokens * x.shape[-1]


class Norm(nn.Module):
    """An RMS norm that multiplies with its weight after rounding, as Llama's does."""

    weight: Tensor
    variance_epsilon: float

    def forward(self, hidden_states: Tensor) -> Tensor:
        if hidden_states.dtype != self.weight.dtype or _few(hidden_states, 256):
            output: Tensor = super().forward(hidden_states)
            return output
        return rms_norm(hidden_states, self.weight, self.variance_epsilon)


class Attention(nn.Module):
    """Llama's attention: projections, turned queries and keys, the attention function of the model's configuration.
    With a cache it is transformers' own."""

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        kept: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """`kept`: the tokens whose output is asked for (None: all)."""
        own: Any = self
        attend = ALL_ATTENTION_FUNCTIONS.get(own.config._attn_implementation)
        size = own.head_dim
        if past_key_values is not None or attend is None or position_embeddings is None or _few(hidden_states, 64):
            given = {"position_embeddings": position_embeddings, "past_key_values": past_key_values}
            output, weights = super().forward(hidden_states, attention_mask=attention_mask, **given, **kwargs)
            return output if kept is None else output[:, kept], weights
        rows, tokens, _ = hidden_states.shape
        query, key, value = (
            each(hidden_states).view(rows, tokens, -1, size) for each in (own.q_proj, own.k_proj, own.v_proj)
        )
        query, key = rope(query, key, *position_embeddings)
        seen, weights = attend(
            self,
            *(each.transpose(1, 2) for each in (query, key, value)),
            attention_mask,
            dropout=own.attention_dropout if self.training else 0.0,
            scaling=own.scaling,
            **kwargs,
        )
        seen = seen.reshape(rows, tokens, -1)
        return own.o_proj(seen if kept is None else seen[:, kept]), weights


class Mlp(nn.Module):
    """Llama's MLP."""

    def forward(self, x: Tensor) -> Tensor:
        own: Any = self
        output: Tensor = own.down_proj(swiglu(own.gate_proj(x), own.up_proj(x)))
        return output


class Layer(nn.Module):
    """Llama's layer of attention and MLP. Asked for some tokens alone, which is all that the last layer is asked for
    where few are trained on, it computes no other's MLP."""

    kept: Tensor | None = None

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        own: Any = self
        kept, output = self.kept, hidden_states
        if kept is None:
            output = super().forward(hidden_states, **kwargs)
            return output
        attended, _ = own.self_attn(hidden_states=own.input_layernorm(hidden_states), kept=kept, **kwargs)
        attended = hidden_states[:, kept] + attended
        output = attended + own.mlp(own.post_attention_layernorm(attended))
        return output


@contextlib.contextmanager
def asked_for(body: nn.Module, places: Tensor) -> Iterator[bool]:
    """Have a model without head answer with these tokens' hidden states alone [1, places, n], if it can; whether it
    does."""
    layers: Any = getattr(body, "layers", None) or [None]
    last = layers[-1]
    able = isinstance(last, Layer) and isinstance(last.self_attn, Attention)
    if able:
        last.kept = places
    try:
        yield able
    finally:
        if able:
            last.kept = None


@functools.cache
def as_subclass(kind: type[nn.Module], ours: type[nn.Module]) -> type[nn.Module]:
    """Our forward pass on a class of transformers'."""
    return type(kind.__name__, (ours, kind), {"__module__": kind.__module__})


KNOWN = {
    **{f"{name}RMSNorm": Norm for name in ("Llama", "Mistral", "Qwen2", "Qwen3", "SmolLM3", "Granite", "Phi3")},
    **{f"{name}Attention": Attention for name in ("Llama", "Mistral", "Qwen2")},
    **{f"{name}DecoderLayer": Layer for name in ("Llama", "Mistral", "Qwen2")},
    **{f"{name}MLP": Mlp for name in ("Llama", "Mistral", "Qwen2", "Qwen3", "SmolLM3", "Granite")},
}
"""transformers' classes whose forward pass is what ours computes: a test compares each."""


def use_faster_modules(model: nn.Module) -> None:
    """Give a model's norms, attentions and MLPs our forward pass, where theirs is one that we know."""
    for module in model.modules():
        kind = type(module)
        ours = KNOWN.get(kind.__name__) if kind.__module__.startswith("transformers.models.") else None
        if ours is not None and not isinstance(module, ours) and _plain(module, ours):
            module.__class__ = as_subclass(kind, ours)


def _plain(module: Any, ours: type[nn.Module]) -> bool:
    """Whether a module's configuration asks for nothing that ours does not do."""
    if ours is Mlp:
        return isinstance(module.act_fn, SiLUActivation | nn.SiLU)
    windows = (getattr(each, "sliding_window", None) for each in (module, getattr(module, "config", None)))
    return ours is not Attention or all(each is None for each in windows)
