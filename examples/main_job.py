"""The main job: generate, score, select, train over 4 bits under a sweep of ranks, compare, merge, serve and route.

From the same tickets as the quickstart: the model writes more of them (Self-Instruct, label first), the drafts are
scored by how much their text helps to their label (IFD), near-duplicates go, k-means on embeddings picks varied ones;
PiSSA adapters over an NF4 base are trained at several ranks, the best on the `dev` part wins; base, an adapter on the
real tickets alone, the best one, and the merged model stand side by side on the test part; one service offers them all.

    graftline run examples/main_job.py
    graftline run examples/main_job.py --set model=tiny --set engine=scripted       # a dry run
"""

from graftline.stages import Embedder, Llm, evaluate, generate, merge, read, score, select, serve, sweep, train

SYSTEM = "Name the ticket's queue."
PROBE = "hi, third evening in a row with no signal at all in the flat, the little lamp just blinks red. please fix it"


def pipeline(
    seeds: str = "tickets.jsonl",
    model: str = "smollm2-135m-instruct",
    engine: str = "local",
    embedder: str = "minilm-l6",
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
        embedder: an embedding model's name; `tiny` for dry runs.
        budget: written tickets to train on, beside the real ones.
        ranks: of the adapter, to choose among.
        epochs: passes over the training rows.
        seed: of the split, the drafts, the selection and the training.
    """
    student, encoder = Llm(model, engine=engine), Embedder(embedder)
    tickets = read.Jsonl(path=seeds, prompt="{text}", answer="{queue}", system=SYSTEM)
    split = select.Split(rows=tickets, shares=(0.4, 0.1, 0.5), stratify="answer", seed=seed)

    drafts = generate.SelfInstruct(seeds=split.train, teacher=student, count=2 * budget, max_new_tokens=40, seed=seed)
    scored = score.Difficulty(rows=drafts, model=student)
    distinct = select.NearDuplicates(rows=scored, shingle=2)
    chosen = select.KmeansQuality(rows=distinct, by="ifd", budget=budget, embedder=encoder, seed=seed)

    tuned = train.Train(
        model=student,
        rows=select.Concat(rows=(split.train, chosen)),
        held_out=split.dev,
        base=train.Nf4(),
        adapter=train.Pissa(rank=8),
        epochs=epochs,
        seed=seed,
    )
    best = sweep.Sweep(stage=tuned, over={"adapter.rank": sweep.grid(*map(int, ranks.split(",")))}, metric="eval_loss")
    seeds_only = tuned.replace("rows", split.train)

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
