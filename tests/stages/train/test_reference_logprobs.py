import pytest
import torch

from graftline.stages import Llm, Source
from graftline.stages.expected import Given, Usage
from graftline.stages.lm.load import load_model
from graftline.stages.rows import PREFERENCE
from graftline.stages.train import Lora, ReferenceLogprobs, TokenisedPairs


class Pairs(Source):
    """Preference rows that a test has."""

    def columns_made(self):
        return PREFERENCE


class Moved(Lora):
    """An adapter whose start is not the base."""

    identity_at_start = False

    def attach(self, model, factors, seed):
        attached = super().attach(model, factors, seed)
        torch.manual_seed(seed)
        with torch.no_grad():
            for each in attached.parameters.values():
                each.normal_(std=0.3)
        return attached


PAIRS = TokenisedPairs(rows=Pairs(), model=Llm("tiny"), max_length=64)
STAGE = ReferenceLogprobs(rows=PAIRS, model=PAIRS.model, dtype="float32")


@pytest.fixture
def table(context, preferences, tiny_directory, opened):
    import peft  # noqa: F401  seconds, which are no test's own

    context.artefacts[PAIRS.model] = opened(tiny_directory)
    return PAIRS.map_rows(preferences(6), context)


def logprob(model, prompt, answer):
    """By hand: one sequence, no packing, all logits."""
    ids = torch.tensor([[*prompt, *answer]])
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
    return float(logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None]).sum())


def test_it_is_the_sum_over_the_answers_tokens_alone(context, table, tiny_directory):
    found = STAGE.score_rows(table, context)
    model = load_model(tiny_directory / "model", "float32")
    for index, row in enumerate(table.to_pylist()):
        for name in ("chosen", "rejected"):
            expected = logprob(model, row["prompt_ids"], row[f"{name}_ids"])
            assert found[f"reference_{name}"][index] == pytest.approx(expected, rel=1e-5)


def test_a_rows_score_does_not_depend_on_the_others(context, table):
    whole = STAGE.score_rows(table, context)
    for start, count in ((0, 2), (2, 1), (3, 3)):
        part = STAGE.score_rows(table.slice(start, count), context)
        for name, values in part.items():
            assert values == whole[name][start : start + count], "to the bit"


def test_with_an_adapter_it_is_the_adapters_start(context, table, tiny_directory):
    base = STAGE.score_rows(table, context)
    same = ReferenceLogprobs(rows=PAIRS, model=PAIRS.model, adapter=Lora(rank=2), dtype="float32")
    assert same.score_rows(table, context)["reference_chosen"] == pytest.approx(base["reference_chosen"], rel=1e-6)
    moved = [
        ReferenceLogprobs(rows=PAIRS, model=PAIRS.model, adapter=Moved(rank=2), seed=seed, dtype="float32")
        for seed in (0, 1)
    ]
    found = [each.score_rows(table, context)["reference_chosen"] for each in moved]
    assert found[0] != pytest.approx(base["reference_chosen"], abs=1e-2) and found[0] != found[1]


def test_it_asks_no_model_in_the_plans_account():
    assert STAGE.expected(Given()).usage == Usage() and STAGE.calls_model
