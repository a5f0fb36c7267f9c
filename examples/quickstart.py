"""From labelled support tickets to a served adapter.

Reads 154 tickets, keeps half of them for the test, lets the model write more tickets from the training part
(Self-Instruct, label first), keeps the ones most like real tickets without repeating them, trains a LoRA adapter on
both, compares it with the untouched model on the test tickets, and answers one over HTTP.

    graftline run examples/quickstart.py
    graftline run examples/quickstart.py --set model=tiny --set engine=scripted      # a dry run

Ends, after two to four minutes on two cores, with

    RESULT {"pipeline": "quickstart", "seconds": 148.7, …, "base": 0.0, "tuned": 0.831, "choice_base": 0.117,
            "choice_tuned": 0.818, "http_ok": 1}
"""

from graftline.stages import Llm, evaluate, generate, read, select, serve, train

SYSTEM = "Name the ticket's queue."
PROBE = "hi, third evening in a row with no signal at all in the flat, the little lamp just blinks red. please fix it"


def pipeline(
    seeds: str = "tickets.jsonl",
    model: str = "smollm2-135m-instruct",
    engine: str = "local",
    budget: int = 40,
    epochs: float = 4.0,
    seed: int = 0,
):
    """The stages, from the last one back; nothing runs until `graftline run` says so.

    Args:
        seeds: JSON lines with a `text` and its `queue`.
        model: a model's name; `tiny` is a random one for dry runs.
        engine: `local`, or `scripted` for answers computed from the prompt.
        budget: written tickets to train on, beside the real ones.
        epochs: passes over the training rows.
        seed: of the split, the drafts and the training.
    """
    student = Llm(model, engine=engine)
    tickets = read.Jsonl(path=seeds, prompt="{text}", answer="{queue}", system=SYSTEM)
    split = select.Split(rows=tickets, shares=(0.4, 0.1, 0.5), stratify="answer", seed=seed)
    drafts = generate.SelfInstruct(seeds=split.train, teacher=student, count=2 * budget, seed=seed)
    chosen = select.TopK(rows=drafts, by="max_rouge", k=budget)
    tuned = train.Train(
        model=student,
        rows=select.Concat(rows=(split.train, chosen)),
        held_out=split.dev,
        adapter=train.Lora(rank=16),
        epochs=epochs,
        seed=seed,
    )
    report = evaluate.Compare(
        model=student,
        adapters={"tickets": tuned},
        rows=split.test,
        metrics=(evaluate.ExactMatch(), evaluate.Choice()),
    )
    service = serve.Service(model=student, adapters={"tickets": tuned}, probe=(PROBE,), system=SYSTEM)
    return {"tuned": tuned, "report": report, "service": service}


def figures(run):
    """What the RESULT line shows, taken from the artefacts' metrics."""
    report, service = run["report"].metrics, run["service"].metrics
    return {
        "base": report["exact_match/base"],
        "tuned": report["exact_match/tickets"],
        "choice_base": report["choice/base"],
        "choice_tuned": report["choice/tickets"],
        "http_ok": service["http_ok"],
    }
