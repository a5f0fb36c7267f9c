import torch

from graftline.stages.train import Full

IDS = torch.randint(3, 64, (1, 12), generator=torch.Generator().manual_seed(1))


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


def test_every_parameter_trains(llama):
    model = llama()
    made = Full().attach(model, {}, 0)
    made.model(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
    assert set(made.parameters) == {name for name, _ in model.named_parameters()}
    assert all(bool(each.grad.abs().max() > 0) for each in made.parameters.values())
    assert Full.makes == "model"


def test_the_export_is_the_trained_model_with_the_bases_tokenizer(tiny_directory, tmp_path):
    from graftline.stages.lm.load import load_model, load_tokenizer

    source = tiny_directory / "model"
    made = Full().attach(load_model(source, "float32"), {}, 0)
    with torch.no_grad():
        for each in made.parameters.values():
            each.mul_(1.01)
    assert made.export(tmp_path, made.parameters, source, "tiny") == {"class": "Full"}
    folder = tmp_path / "model"
    assert torch.equal(logits(Full().reopen(folder, source, "float32")), logits(made.model))
    assert not torch.allclose(logits(load_model(source, "float32")), logits(made.model), atol=1e-3)
    messages = [{"role": "user", "content": "hello there"}]
    tokens = [load_tokenizer(each).apply_chat_template(messages, tokenize=False) for each in (source, folder)]
    assert tokens[0] == tokens[1]
    for path in folder.glob("*.json"):
        assert str(source) not in path.read_text(encoding="utf-8"), path
    assert not [path for path in folder.iterdir() if path.suffix in (".bin", ".pt")]
