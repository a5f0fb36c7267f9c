"""What the language-model tests share: the tiny model's directory, adapters for it, and the built-in model."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from graftline.stages.lm.engine import Request, Sampling

QUESTIONS = (
    "hello, my order was never delivered",
    "please",
    "the invoice was sent twice and the payment does not work, can someone help me",
    "is the new printer too slow for our team?",
    "yesterday it was fine",
    "Ünïcode 漢字 and 12  numbers",
)


def ask(text: str, id: str = "r", adapter: str | None = None, prefix: str = "", **sampling) -> Request:
    return Request(id, ({"role": "user", "content": text},), Sampling(**sampling), adapter, prefix)


@pytest.fixture(scope="session")
def tiny_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from graftline.stages.lm import tiny

    directory = tmp_path_factory.mktemp("tiny")
    tiny.write(directory)
    return directory


@pytest.fixture(scope="session")
def encoder_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer BERT as sentence-transformers leaves one; texts are cut after 24 tokens."""
    import torch
    from transformers import BertConfig, BertModel

    from graftline.stages.lm.tiny import build_tokenizer

    directory = tmp_path_factory.mktemp("encoder")
    tokenizer = build_tokenizer()
    torch.manual_seed(3)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64, initializer_range=0.3,
    )  # fmt: skip
    BertModel(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    (directory / "1_Pooling").mkdir()
    kinds = ("Transformer", "Pooling", "Normalize")
    for name, told in (
        ("modules.json", [{"type": f"sentence_transformers.models.{kind}"} for kind in kinds]),
        ("1_Pooling/config.json", {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}),
        ("sentence_bert_config.json", {"max_seq_length": 24}),
    ):
        (directory / name).write_text(json.dumps(told), encoding="utf-8")
    return directory


@pytest.fixture(scope="session")
def make_adapter(tiny_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Writes a PEFT directory with random factors for the tiny model, large enough to change its answers."""
    import torch
    from peft import LoraConfig, get_peft_model

    from graftline.stages.lm.load import load_model, model_digest

    def make(seed: int, rank: int, *, base: str | None = None, **config) -> Path:
        settings = {"lora_alpha": 2 * rank, "target_modules": ["q_proj", "v_proj", "down_proj"], **config}
        model = get_peft_model(load_model(tiny_directory, "float32"), LoraConfig(r=rank, **settings))
        draw = torch.Generator().manual_seed(seed)
        for name, tensor in model.named_parameters():
            if "lora_" in name:
                tensor.data = torch.randn(tensor.shape, generator=draw) * 0.1
        directory = tmp_path_factory.mktemp("adapter")
        model.save_pretrained(directory)
        card = {"base": {"name": "tiny", "weights_digest": base or model_digest(tiny_directory), "held": "none"}}
        (directory / "graftline.json").write_text(json.dumps(card), encoding="utf-8")
        return directory

    return make


@pytest.fixture(scope="session")
def two_adapters(make_adapter: Callable[..., Path]) -> dict[str, Path]:
    return {"one": make_adapter(1, 4), "two": make_adapter(2, 8, use_rslora=True, target_modules=["o_proj", "q_proj"])}


@pytest.fixture(scope="session")
def smollm2_directory() -> Iterator[Path]:
    """The built-in model, from the user's cache or downloaded into it."""
    from graftline.stages.lm import smollm2

    yield smollm2.directory()[0]
