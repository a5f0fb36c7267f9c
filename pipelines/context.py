"""What a running stage may ask for: `stages.stage.Context`, on a worker."""

from __future__ import annotations

import fcntl
import json
import math
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, cast

from graftline.pipelines.work import LOG, Work, plain
from graftline.stages.artefact import Artefact
from graftline.stages.errors import BudgetSpent, Stopped
from graftline.stages.lm.reference import base_of, pristine_base
from graftline.stages.rows import derived_seed
from graftline.stages.stage import Resources, Stage

if TYPE_CHECKING:
    from graftline.stages.lm.engine import Answer, Engine, Messages, Request

OWN = "/own"
"""The name under which the engine of an adapter holds it: one that nobody can give."""
TELL_EVERY = 0.25
SAVE_EVERY = 30.0
SPINS = 3000
"""How often a thread of OpenMP looks again, some 160 µs, before it sleeps. GNU's default is 300,000: on two cores that
another process wants too, a thread then burns what its partner waits for. A mix of a layer's operations on 2 threads,
beside one busy process: 9.4 ms with the default, 2.0 with this, 1.8 without a second thread; alone on the machine 0.80,
0.85 and 1.16 ms [measured]."""

COMPILED = 256
"""How many compiled products oneDNN keeps, a megabyte each. Its default is 1,024: training on Alpaca in bf16, whose
sequences are seldom equally long, then peaks at 2.7 GB after ten steps instead of 2.15 with 64 [measured]."""


@dataclass
class Calls:
    """Paid requests to a model; the amounts are those of `stages.expected.Usage`."""

    model: str = ""
    requests: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    tokens_scored: int = 0
    money: float = 0.0
    reproducible: bool = True
    why: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As in the manifest; nothing where nothing was asked."""
        if not self.requests:
            return {}
        found = {
            "model": self.model, "requests": self.requests, "tokens_in": self.tokens_in, "tokens_out": self.tokens_out,
            "tokens_scored": self.tokens_scored,
        }  # fmt: skip
        return found | ({"money": round(self.money, 6)} if self.money else {})


def difference(now: Calls, before: Calls) -> Calls:
    """What was paid since."""
    return replace(
        now,
        requests=now.requests - before.requests,
        tokens_in=now.tokens_in - before.tokens_in,
        tokens_out=now.tokens_out - before.tokens_out,
        tokens_scored=now.tokens_scored - before.tokens_scored,
        money=now.money - before.money,
    )


class WorkerContext:
    """The context of one stage in one process.

    Args:
        work: the work order.
        stage: the stage of the order's chain that asks (None: the last).
        keep_engines: hold an engine open until `close`, for a worker that is called many times.
    """

    def __init__(self, work: Work, stage: Stage | None = None, keep_engines: bool = False) -> None:
        self.work, self.stage, self.keep_engines = work, stage or work.stage, keep_engines
        self.calls = Calls()
        self._scratch: Scratch | None = None
        self._engines: dict[tuple[str, tuple[tuple[str, str], ...]], CountedEngine] = {}
        self._told = 0.0
        self._asked = False
        self._owed: list[tuple[int, int, float]] | None = None

    @property
    def scratch(self) -> Path:
        if self._scratch is None:
            self._scratch = Scratch(self.work)
        return self._scratch.folder

    @property
    def resources(self) -> Resources:
        return self.work.resources

    def run(self, stage: Stage) -> Artefact:
        return self.work.board.run(self.work.stage.key, stage)

    def watch(self, stage: Stage, metric: str, goes_on: Callable[[int, float], bool]) -> Artefact:
        return self.work.board.run(self.work.stage.key, stage, metric, goes_on)

    def opened(self, stage: Stage) -> Artefact:
        return self.work.opened(stage)

    def seed(self, row_id: str, attempt: int = 0) -> int:
        return derived_seed(int(getattr(self.stage, "seed", 0) or 0), row_id, attempt)

    def file(self, path: str) -> str:
        return absolute(path, self.work.base)

    def pinned(self, name: str) -> str | None:
        return self.work.pinned.get(name)

    def engine(
        self, model: Stage, adapters: Mapping[str, Stage] | None = None
    ) -> AbstractContextManager[CountedEngine]:
        asked = (model.key, tuple(sorted((name, each.key) for name, each in (adapters or {}).items())))
        if asked in self._engines:
            return nullcontext(self._engines[asked])
        engine = self._open(model, adapters or {})
        if self.keep_engines:
            self._engines[asked] = engine
            return nullcontext(engine)
        return engine

    def _open(self, model: Stage, adapters: Mapping[str, Stage]) -> CountedEngine:
        from graftline.stages.lm.endpoint import Endpoint
        from graftline.stages.lm.llm import Llm
        from graftline.stages.lm.open import open_engine

        base = base_of(model)
        directories = {name: self.opened(each).directory("adapter") for name, each in adapters.items()}
        if model.kind == "adapter":
            directories[OWN] = self.opened(model).directory("adapter")
        threads = self.resources.threads or 1
        opened = self.opened(pristine_base(model))
        gate = self.work.board.gate(base) if isinstance(base, Endpoint) else None
        engine = open_engine(cast("Llm", base), opened.directory("model"), directories, threads=threads, gate=gate)
        set_threads(threads)  # torch may have been imported only now
        return CountedEngine(engine, OWN if model.kind == "adapter" else None, self.calls, self._pay)

    @contextmanager
    def paying_later(self) -> Iterator[Callable[[], None]]:
        """Inside, requests are counted but not paid; the call that it gives pays for them, once their answers are
        safe: paying raises where the budget is spent."""
        owed = self._owed = []

        def pay() -> None:
            self._pay(*(sum(each) for each in zip(*owed, strict=True)))

        try:
            yield lambda: pay() if owed else None
        finally:
            self._owed = None

    def _pay(self, requests: int, tokens: int, money: float) -> None:
        if self._owed is not None:
            self._owed.append((requests, tokens, money))
        elif why := self.work.board.pay(self.work.stage.key, requests, tokens, money):
            raise BudgetSpent(why, where=self.work.stage.name, do="run again with a larger budget to continue")

    def progress(self, done: int, total: int, **numbers: float) -> None:
        now = time.monotonic()
        if now - self._told < TELL_EVERY and done < total:
            return
        self._told = now
        told = {"kind": "progress", "key": self.stage.key, "done": int(done), "total": int(total)}
        self.work.board.tell({**told, "numbers": plain(numbers)})
        if self._scratch is not None:
            self._scratch.save(SAVE_EVERY)

    def log(self, step: int, **numbers: float) -> None:
        line = {"step": int(step), **plain(numbers)}
        with open(self.scratch / LOG, "a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")
        self.work.board.tell({"kind": "log", "key": self.stage.key, "line": line})
        if (watched := self.work.watched) and watched in numbers:
            before = [] if self._asked else self.logged()  # it was interrupted, and goes on from there
            self._asked = True
            earlier = [(each["step"], each[watched]) for each in before if watched in each and each["step"] < step]
            for at, value in (*earlier, (int(step), numbers[watched])):
                if not self.work.board.goes_on(self.stage.key, at, math.nan if value is None else value):
                    why = f"it was ended at step {at}"
                    raise Stopped(why, where=self.stage.name, do="ask for it alone to finish it")

    def logged(self) -> list[dict[str, Any]]:
        """The log's lines, each step's last: a resumed stage logs some steps twice."""
        path = self._scratch.folder / LOG if self._scratch is not None else None
        if path is None or not path.exists():
            return []
        steps: dict[int, dict[str, Any]] = {}
        for text in path.read_text(encoding="utf-8").splitlines():
            try:
                line = json.loads(text)
            except ValueError:  # cut off by a kill
                continue
            steps[line["step"]] = {**steps.get(line["step"], {}), **line}
        return [steps[step] for step in sorted(steps)]

    def close(self, done: bool = False) -> None:
        """Ends engines and gives the scratch folder back; `done`: what is in it is not needed any more."""
        for engine in self._engines.values():
            engine.close()
        self._engines.clear()
        if self._scratch is not None:
            self._scratch.close(done)
            self._scratch = None


class CountedEngine:
    """An engine whose requests are counted and paid for; requests that name no adapter use the model's own.

    Args:
        engine: the engine.
        adapter: what a request without an adapter uses (None: the base).
        calls: where requests are counted.
        pay: told what was spent after each call; raises where the budget is spent.
    """

    def __init__(
        self, engine: Engine, adapter: str | None, calls: Calls, pay: Callable[[int, int, float], None]
    ) -> None:
        self.engine, self.adapter, self.calls, self.pay = engine, adapter, calls, pay
        self.model, self.digest = engine.model, engine.digest
        self.reproducible, self.why = engine.reproducible, engine.why
        calls.model = engine.model
        calls.reproducible, calls.why = calls.reproducible and engine.reproducible, calls.why or engine.why

    def generate(self, requests: Sequence[Request], on_answer: Callable[[Answer], None] | None = None) -> list[Answer]:
        asked = [request if request.adapter else replace(request, adapter=self.adapter) for request in requests]
        answers = self.engine.generate(asked, on_answer)
        self.count(answers)
        return answers

    def choice_logprobs(
        self, prompts: Sequence[Messages], choices: Sequence[Sequence[str]], adapter: str | None = None
    ) -> list[list[float]]:
        found = self.engine.choice_logprobs(prompts, choices, adapter or self.adapter)
        self._add(len(prompts), tokens_scored=self.engine.count_tokens(prompts) + self._tokens_of(choices))
        return found

    def _tokens_of(self, choices: Sequence[Sequence[str]]) -> int:
        """Tokens of all choices, each with its end of turn: how much longer a turn is for it."""
        counted = Counter(choice for each in choices for choice in each)
        empty = self.engine.count_tokens([({"role": "user", "content": ""},)])
        return sum(
            count * (self.engine.count_tokens([({"role": "user", "content": choice},)]) - empty + 1)
            for choice, count in counted.items()
        )

    def logprobs(
        self, rows: Sequence[Messages], adapter: str | None = None, whole: bool = False, last: bool = False
    ) -> list[list[float]]:
        found = self.engine.logprobs(rows, adapter or self.adapter, whole, last)
        self._add(len(rows), tokens_scored=self.engine.count_tokens(rows))
        return found

    def count_tokens(self, conversations: Sequence[Messages]) -> int:
        return self.engine.count_tokens(conversations)

    def stream(self, request: Request) -> Generator[str, None, Answer]:
        answer = yield from self.engine.stream(replace(request, adapter=request.adapter or self.adapter))
        self.count([answer])
        return answer

    def count(self, answers: Sequence[Answer]) -> None:
        self._add(
            len(answers),
            sum(answer.tokens_in for answer in answers),
            sum(answer.tokens_out for answer in answers),
            money=sum(float(getattr(answer, "money", 0.0)) for answer in answers),
        )

    def _add(
        self, requests: int, tokens_in: int = 0, tokens_out: int = 0, tokens_scored: int = 0, money: float = 0.0
    ) -> None:
        self.calls.requests += requests
        self.calls.tokens_in += tokens_in
        self.calls.tokens_out += tokens_out
        self.calls.tokens_scored += tokens_scored
        self.calls.money += money
        self.pay(requests, tokens_in + tokens_out + tokens_scored, money)

    def cancel(self, request_id: str) -> None:
        self.engine.cancel(request_id)

    def load_adapter(self, name: str, directory: Path) -> None:
        self.engine.load_adapter(name, directory)

    def unload_adapter(self, name: str) -> None:
        self.engine.unload_adapter(name)

    def pause(self) -> AbstractContextManager[None]:
        return self.engine.pause()

    def close(self) -> None:
        self.engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Scratch:
    """A local folder that outlives a kill: the store's own where that is local, else a copy of it, put back now and
    then. One process at a time has it: a killed run's last worker may still write for a second."""

    def __init__(self, work: Work) -> None:
        self.store, self.name = work.store, work.identity.scratch
        if self.store.local:
            self.folder = self.store.local_path(self.name)
        else:
            self.folder = Path(tempfile.mkdtemp(prefix="graftline-scratch-"))
        lock = self.folder.with_name(f".{self.folder.name}.lock")
        lock.parent.mkdir(parents=True, exist_ok=True)
        self._lock = open(lock, "w")  # noqa: SIM115  held until close
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self.folder.mkdir(exist_ok=True)
        if not self.store.local:
            for name in self.store.list(self.name, deep=True):
                self.store.download(name, self.folder / name.removeprefix(f"{self.name}/"))
        self._saved = time.monotonic()
        self._sent: dict[str, tuple[int, int]] = {}

    def save(self, every: float = 0.0) -> None:
        """Puts changed files into a remote store, where the last time is long enough ago."""
        if self.store.local or time.monotonic() - self._saved < every:
            return
        self._saved = time.monotonic()
        for path in sorted(self.folder.rglob("*")):
            name = path.relative_to(self.folder).as_posix()
            if path.is_file() and not path.name.startswith("."):
                state = (path.stat().st_size, path.stat().st_mtime_ns)
                if self._sent.get(name) != state:
                    self.store.upload(path, f"{self.name}/{name}")
                    self._sent[name] = state

    def close(self, done: bool) -> None:
        if done:
            self.store.delete(self.name)
        else:
            self.save()
        self._lock.close()
        if not self.store.local:
            shutil.rmtree(self.folder, ignore_errors=True)
            Path(self._lock.name).unlink(missing_ok=True)


def absolute(path: str, base: str) -> str:
    """The absolute path of a file a pipeline names; URIs stay as they are."""
    if "://" in path:
        return path
    return os.path.abspath(Path(base, Path(path).expanduser()))


def limit_libraries() -> None:
    """Have OpenMP's threads of this process, and of those it starts, spin SPINS times for one another and then sleep,
    and oneDNN keep COMPILED products; a user's own wish stands. They ask the environment once, when torch is
    imported or first multiplies."""
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & set(os.environ):
        os.environ["GOMP_SPINCOUNT"] = str(SPINS)
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(COMPILED))


def set_threads(threads: int) -> None:
    """Torch's and OpenMP's threads of this process: a reused worker keeps those of the last task."""
    limit_libraries()
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(threads)
    if "torch" in sys.modules:
        import torch  # waits where another thread is still importing it

        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)


@contextmanager
def context_of(work: Work) -> Iterator[WorkerContext]:
    """A context that is closed on leaving; its scratch folder is kept where an exception leaves."""
    context = WorkerContext(work)
    try:
        yield context
    except BaseException:
        context.close()
        raise
    context.close(done=True)
