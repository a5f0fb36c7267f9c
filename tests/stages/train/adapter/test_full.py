import pytest
import torch

from graftline.stages.train import Full, Hft

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


@pytest.mark.parametrize("adapter", [Full(), Hft()], ids=lambda plug: type(plug).__name__)
def test_a_tied_head_stays_tied(llama, tmp_path, adapter):
    """A head that is trained and saved apart from the embeddings is lost when the model is opened again."""
    model = llama()
    model.config.tie_word_embeddings = True
    model.tie_weights()
    source = tmp_path / "source"
    source.mkdir()
    made = adapter.attach(model, {}, 0)
    assert "lm_head.weight" not in made.parameters and "model.embed_tokens.weight" in made.parameters
    with torch.no_grad():
        for each in made.parameters.values():
            each.mul_(1.01)
    made.export(tmp_path, made.parameters, source, "tied")
    opened = adapter.reopen(tmp_path / "model", source, "float32")
    assert opened.lm_head.weight is opened.model.embed_tokens.weight
    assert torch.equal(logits(opened), logits(made.model))
