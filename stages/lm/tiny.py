"""`tiny`: a random two-layer Llama and its tokenizer, built in code in under a second, for tests and dry runs.

It goes through every path a real model does (chat template, training, adapters, serving) and says nothing sensible.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from graftline.stages.lm.words import vocabulary

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

IDENTITY = "tiny-1"
"""Stands for the model in fingerprints: raise its number when what is built here changes."""
CONTEXT = 4096
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def write(directory: Path) -> None:
    """Write the model's Hugging Face directory."""
    import numpy as np
    import torch
    from safetensors.torch import save_file
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    tokenizer = build_tokenizer()
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = LlamaConfig(
        architectures=["LlamaForCausalLM"],
        dtype="float32",
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=False,
        **ids,
    )
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in LlamaForCausalLM(config).state_dict().items()}
    # NumPy's generator, so that the weights do not change with torch; 1/sqrt(hidden) keeps activations near one.
    draw = np.random.default_rng(20)
    weights = {}
    for name, shape in sorted(shapes.items()):
        value = np.ones(shape) if name.endswith("norm.weight") else draw.normal(0.0, 0.125, shape)
        weights[name] = torch.from_numpy(value.astype(np.float32))
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(directory)
    GenerationConfig(**ids).save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """`backend` with its special tokens named and the chat template, as transformers takes it."""
    from transformers import PreTrainedTokenizerFast

    pad, start, end = SPECIAL
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend(), bos_token=start, eos_token=end, pad_token=pad, model_max_length=CONTEXT
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def backend() -> Tokenizer:
    """Byte-level BPE: every byte, and the words of `words.py` letter by letter, so that any text has tokens and
    common text few."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    vocab = {token: index for index, token in enumerate((*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())))}
    merges = []
    for word in vocabulary():
        built = "Ġ"  # how byte-level BPE writes the space before a word
        for letter in word:
            if built + letter not in vocab:
                vocab[built + letter] = len(vocab)
                merges.append((built, letter))
            built += letter
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return tokenizer
