"""From labelled support tickets to a served adapter: generate, score, select, train, compare, merge, serve and route.

Reads 154 tickets and keeps half of them for the test. The model writes more tickets from the training part
(Self-Instruct, label first). An adapter trained on the real tickets alone scores the drafts: the more their text helps
it to their label (IFD, the less the better), the likelier they are on it. Near-duplicates go, k-means on embeddings
picks varied ones. PiSSA adapters over an NF4 base are trained at two ranks, and the better one on the `dev` part wins.
The untouched model, the adapter on the real tickets alone, the winner, and the winner merged into the base stand side
by side on the test tickets; one service offers them all, and `auto` by a router.

    graftline run examples/quickstart.py
    graftline run examples/quickstart.py --set model=tiny --set engine=scripted      # a dry run
"""

from graftline.stages import (
    Embedder,
    Llm,
    Resources,
    evaluate,
    generate,
    merge,
    read,
    score,
    select,
    serve,
    sweep,
    train,
)

SYSTEM = "Name the ticket's queue."
PROBE = "hi, third evening in a row with no signal at all in the flat, the little lamp just blinks red. please fix it"


def pipeline(
    seeds: str = "tickets.jsonl",
    model: str = "smollm2-135m-instruct",
    engine: str = "local",
    budget: int = 40,
    ranks: str = "8,16",
    epochs: float = 4.0,
    seed: int = 0,
):
    """The stages, from the last one back; nothing runs until `graftline run` says so.

    Args:
        seeds: JSON lines with a `text` and its `queue`.
        model: a model's name; `tiny` is a random one for dry runs.
        engine: `local`, or `scripted` for answers computed from the prompt.
        budget: written tickets to train on, beside the real ones.
        ranks: of the adapter, to choose among.
        epochs: passes over the training rows.
        seed: of the split, the drafts, the selection and the training.
    """
    student, encoder = Llm(model, engine=engine), Embedder("tiny" if model == "tiny" else "minilm-l6")
    tickets = read.Jsonl(path=seeds, prompt="{text}", answer="{queue}", system=SYSTEM)
    split = select.Split(rows=tickets, shares=(0.4, 0.1, 0.5), stratify="answer", seed=seed)

    one = Resources(cpus=1)  # on two cores, two stages side by side take less time than one after the other
    seeds_only = train.Train(
        model=student,
        rows=split.train,
        held_out=split.dev,
        base=train.Nf4(),
        adapter=train.Pissa(rank=8),
        epochs=epochs,
        seed=seed,
        resources=one,
    )
    drafts = generate.SelfInstruct(
        seeds=split.train, teacher=student, count=2 * budget, max_new_tokens=40, seed=seed, resources=one
    )
    scored = score.Difficulty(rows=drafts, model=seeds_only)
    # IFD's paper keeps the highest below 1: of a strong teacher's rows these are the hard ones. A third of this small
    # teacher's drafts miss their label, and those are the highest here (README, "Measured").
    distinct = select.NearDuplicates(rows=scored, by="ifd", largest=False, shingle=2)
    chosen = select.KmeansQuality(
        rows=distinct, by="ifd", largest=False, temperature=0, budget=budget, embedder=encoder, seed=seed
    )
    tuned = seeds_only.replace("rows", select.Concat(rows=(split.train, chosen)))
    best = sweep.Sweep(stage=tuned, over={"adapter.rank": sweep.grid(*map(int, ranks.split(",")))}, metric="eval_loss")

    merged = merge.IntoBase(model=student, adapter=best, held_out=split.dev)
    report = evaluate.Compare(
        model=student,
        adapters={"seeds": seeds_only, "tickets": best},
        models={"merged": merged},
        rows=split.test,
        metrics=(evaluate.ExactMatch(), evaluate.Choice()),
    )
    service = serve.Service(
        model=student,
        adapters={"tickets": best},
        models={"merged": merged},
        router=serve.NearestNeighbours(rows={"tickets": split.train}, embedder=encoder),
        probe=(PROBE,),
        system=SYSTEM,
    )
    return {"best": best, "report": report, "service": service}


def figures(run):
    """What the RESULT line shows, taken from the artefacts' metrics."""
    report, service = run["report"].metrics, run["service"].metrics
    return {
        "base": report["exact_match/base"],
        "seeds_only": report["exact_match/seeds"],
        "tuned": report["exact_match/tickets"],
        "merged": report["exact_match/merged"],
        "choice_base": report["choice/base"],
        "choice_tuned": report["choice/tickets"],
        "http_ok": service["http_ok"],
    }
