"""Rounds: a stage proposes prompts, engines answer them, the stage absorbs the answers; a killed one replays."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from graftline.pipelines.context import WorkerContext, difference, set_threads
from graftline.pipelines.failures import ContractBroken, Failure
from graftline.pipelines.ledger import RoundLedger, prompt_digest
from graftline.pipelines.made import MadeRows
from graftline.pipelines.parts import Parts
from graftline.pipelines.work import Product, Work, input_rows, rows_product
from graftline.stages.errors import EngineFailed, PromptTooLong, RowFault, WorkerDied
from graftline.stages.shapes import Rounds

if TYPE_CHECKING:
    from graftline.stages.lm.engine import Answer, Engine, Request

CHUNK = 256
"""Requests an engine gets at once; between chunks the budget is looked at."""
TOGETHER = 8
"""Answers that go to a remote ledger together, since each put there takes tens of milliseconds. A local one gets each
as it comes: that takes 3 to 4 ms of waiting for the disk, beside the threads that generate."""


def asked_in_rounds(work: Work, attempt: str, context: WorkerContext, began: float) -> Product:
    """The product of a rounds stage."""
    stage = work.stage
    assert isinstance(stage, Rounds)
    ledger = RoundLedger(work.store, work.ledger)
    state = stage.start(context, **work.arguments(stage))
    engines = Engines(work, stage.concurrency)
    try:
        for number in range(1_000_000):
            requests = sorted(_checked(stage, number, stage.propose(state, number)), key=lambda request: request.id)
            if not requests:
                break
            prompts = [prompt_digest(request) for request in requests]
            known = ledger.read(number)
            asked = dict(zip(prompts, requests, strict=True))  # two equal prompts are asked once
            missing = [request for prompt, request in asked.items() if prompt not in known]
            for failure in engines.ask(number, missing):
                if failure is not None:
                    raise failure.error()
            stage.absorb(state, number, list(_paired(stage, requests, prompts, ledger.read(number))))
    finally:
        engines.close()
    rows = MadeRows(stage, parts := Parts(work.store, attempt), input_rows(work))
    rows.take(stage.finish(state), lambda count: None)
    product = rows_product(work, parts, rows.account, began)
    product.calls = ledger.calls()
    product.why = product.calls.pop("why", "")
    product.reproducible = not product.why
    return product


def _checked(stage: Rounds, number: int, requests: Sequence[Request]) -> list[Request]:
    found = list(requests)
    if len({request.id for request in found}) < len(found):
        raise ContractBroken(
            f"proposed two requests with one id in round {number}", where=stage.name, do="give each its own id"
        )
    return found


def _paired(
    stage: Rounds, requests: Sequence[Request], prompts: Sequence[str], known: dict[str, dict[str, Any]]
) -> Iterator[tuple[Request, Answer]]:
    from graftline.stages.lm.engine import Answer

    for request, prompt in zip(requests, prompts, strict=True):
        line = known.get(prompt)
        if line is None:
            raise EngineFailed(f"the request {request.id} was not answered", where=stage.name, do="run again")
        said = {each.name for each in fields(Answer)} & set(line) - {"id"}  # an engine's answers may say more
        yield request, Answer(request.id, **{name: line[name] for name in said})


class Answering:
    """One engine that answers requests and writes the answers to the ledger; with Ray, an actor."""

    def __init__(self, work: Work) -> None:
        self.work = replace(work, resources=work.workers)
        self.context: WorkerContext | None = None

    def answer(self, number: int, requests: Sequence[Request]) -> Failure | None:
        """Answers into the ledger what it does not know yet (a restarted actor gets a whole chunk again)."""
        try:
            self._answer(number, requests)
        except Exception as error:
            return Failure.of(error, self.work.stage.name)
        return None

    def _answer(self, number: int, requests: Sequence[Request]) -> None:
        stage = self.work.stage
        assert isinstance(stage, Rounds)
        set_threads(self.work.resources.threads or 1)
        context = self.context = self.context or WorkerContext(self.work, keep_engines=True)
        ledger = RoundLedger(self.work.store, self.work.ledger)
        known = ledger.read(number)
        asked = [request for request in requests if prompt_digest(request) not in known]
        if not asked:
            return
        before = replace(context.calls)
        with context.engine(stage.asks()) as engine:
            token = ledger.token(number)
            ledger.ask(token, len(asked), engine.model, engine.why)
            keep = Keep(ledger, token, asked, lambda done: context.progress(done, len(asked), round=number))
            try:
                _generate(engine, asked, keep)
            finally:  # the budget may be spent with the last answer
                keep.flush()
                if not keep.prompts:
                    ledger.close(token, difference(context.calls, before).to_dict() | {"why": engine.why})

    def close(self) -> None:
        if self.context is not None:
            self.context.close()
            self.context = None


def _generate(engine: Engine, requests: Sequence[Request], keep: Keep) -> None:
    """Has requests answered; one that cannot be asked (its prompt is too long, or cannot be rendered) does not spoil
    the others: its answer is empty and says why (`fault`)."""
    from graftline.stages.lm.engine import Answer

    try:
        keep.rest(engine.generate(requests, keep))
    except (PromptTooLong, RowFault) as error:
        left = [request for request in requests if request.id in keep.prompts]
        if len(left) <= 1:
            keep.rest([Answer(request.id, "", "cancelled", 0, 0, fault=error.what) for request in left])
            return
        half = len(left) // 2
        _generate(engine, left[:half], keep)
        _generate(engine, left[half:], keep)


class Keep:
    """Writes answers to the ledger as they come; to a remote one a few at a time."""

    def __init__(
        self, ledger: RoundLedger, token: str, requests: Sequence[Request], told: Callable[[int], None]
    ) -> None:
        self.ledger, self.token, self.told, self.total = ledger, token, told, len(requests)
        self.prompts = {request.id: prompt_digest(request) for request in requests}
        self.waiting: list[tuple[str, Answer]] = []
        self.files, self.together = 0, 1 if ledger.store.local else TOGETHER

    def __call__(self, answer: Answer) -> None:
        prompt = self.prompts.pop(answer.id, None)
        if prompt is not None:
            self.waiting.append((prompt, answer))
        if len(self.waiting) >= self.together:
            self.flush()
        if prompt is not None:
            self.told(self.total - len(self.prompts))

    def rest(self, answers: Sequence[Answer]) -> None:
        """Writes what is left, also of answers that were not told as they came."""
        for answer in answers:
            self(answer)
        self.flush()

    def flush(self) -> None:
        if self.waiting:
            self.ledger.write(self.token, self.files, self.waiting)
            self.files += 1
            self.waiting = []


class Engines:
    """The engines of a rounds stage: actors that live as long as the stage, or one in this process."""

    def __init__(self, work: Work, count: int) -> None:
        self.work, self.count = work, count
        self.opened: list[Any] = []

    def ask(self, number: int, requests: Sequence[Request]) -> Iterator[Failure | None]:
        """Has requests answered, chunk by chunk, in whatever order the engines finish."""
        if not requests:
            return
        size = min(CHUNK, max(1, -(-len(requests) // self.count)))
        chunks = [requests[start : start + size] for start in range(0, len(requests), size)]
        if not self.work.on_ray:
            if not self.opened:
                self.opened = [Answering(self.work)]
            yield from (self.opened[0].answer(number, chunk) for chunk in chunks)
            return
        import ray
        from ray.util import ActorPool

        if not self.opened:
            self.opened = [self._start() for _ in range(self.count)]
        asked: Callable[[Any, Any], Any] = lambda actor, chunk: actor.answer.remote(number, chunk)  # noqa: E731
        try:
            yield from ActorPool(self.opened).map_unordered(asked, chunks)
        except ray.exceptions.RayError as error:
            raise WorkerDied(
                f"an engine's process died: {str(error).splitlines()[0]}",
                where=self.work.stage.name,
                do="look at its memory; run again to continue",
            ) from error

    def _start(self) -> Any:
        import ray

        given = self.work.workers
        return (
            ray.remote(Answering)
            .options(
                num_cpus=given.cpus,
                num_gpus=given.gpus,
                memory=given.memory,
                max_restarts=2,
                max_task_retries=2,
                name=None,
            )
            .remote(self.work)
        )

    def close(self) -> None:
        for engine in self.opened:
            if not self.work.on_ray:
                engine.close()
            else:
                import ray

                ray.kill(engine)
        self.opened = []
