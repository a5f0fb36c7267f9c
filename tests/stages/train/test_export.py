import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from graftline.stages.train import Lora
from graftline.stages.train.export import adapter_digest, write_card

CONFIG = {"r": 2, "target_modules": ["q_proj", "v_proj"], "base_model_name_or_path": "tiny", "peft_version": "0.21.2"}
TENSORS = {"b": torch.ones(2, 2), "a": torch.zeros(3)}


def written(folder, config=CONFIG, tensors=TENSORS):
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return adapter_digest(folder)


def test_names_paths_versions_and_orders_do_not_matter(tmp_path):
    config = dict(reversed(CONFIG.items())) | {
        "base_model_name_or_path": "/somewhere/else",
        "peft_version": "1",
        "target_modules": ["v_proj", "q_proj"],
    }
    assert written(tmp_path / "one") == written(tmp_path / "two", config, dict(reversed(TENSORS.items())))


def test_every_tensor_and_setting_does(tmp_path):
    others = [
        (CONFIG | {"r": 4}, TENSORS),
        (CONFIG | {"target_modules": ["q_proj"]}, TENSORS),
        (CONFIG, {**TENSORS, "a": torch.zeros(3, dtype=torch.bfloat16)}),
        (CONFIG, {**TENSORS, "a": torch.zeros(1, 3)}),
        (CONFIG, {**TENSORS, "a": torch.tensor([0.0, 0.0, 1e-30])}),
        (CONFIG, {"b": TENSORS["b"], "c": TENSORS["a"]}),
    ]
    found = [written(tmp_path / "first")]
    found += [written(tmp_path / str(index), *each) for index, each in enumerate(others)]
    assert len(set(found)) == len(found)


def test_the_card_says_base_and_digest_and_is_not_part_of_it(tmp_path):
    digest = written(tmp_path / "adapter")
    base = {"name": "tiny", "weights_digest": "ab", "held": "none"}
    write_card(tmp_path / "adapter", base, {"class": "Lora", "adapter_digest": digest})
    card = json.loads((tmp_path / "adapter" / "graftline.json").read_text())
    assert card == {"base": base, "class": "Lora", "adapter_digest": digest}
    assert adapter_digest(tmp_path / "adapter") == digest


EXPORT = """
import sys, torch
from pathlib import Path
from graftline.stages.train import Float, Lora
from graftline.stages.train.build import build
from graftline.stages.train.export import adapter_digest

made = build(Path(sys.argv[1]), "float32", Float(), Lora(rank=2), 0, "cpu")
made.export(Path(sys.argv[2]), made.parameters, Path(sys.argv[1]), "tiny")
print(adapter_digest(Path(sys.argv[2]) / "adapter"))
"""


@pytest.mark.real
def test_the_digest_is_the_same_in_every_process(tiny_directory, tmp_path):
    """PEFT keeps layer names in sets, whose order follows the hash seed."""
    running = [
        subprocess.Popen(
            [sys.executable, "-c", EXPORT, str(tiny_directory / "model"), str(tmp_path / seed)],
            env=os.environ | {"PYTHONHASHSEED": seed},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in ("1", "2")
    ]
    digests = {each.communicate(timeout=120)[0].split()[-1] for each in running}
    assert len(digests) == 1 and len(digests.pop()) == 64
    texts = {(tmp_path / seed / "adapter" / "adapter_config.json").read_text() for seed in ("1", "2")}
    assert len(texts) == 1, "the files are the same, too"
    assert Lora().rank == 8
