"""How hard a server is asked: as many requests at once as it takes, none while it asks for rest, and an end to it.

Additive increase, multiplicative decrease, as TCP does it: every answer widens the gate a little, a push-back halves
it, once for all requests that were in flight. While nothing is answered one request at a time tries (the breaker); when
nothing was answered for `patience` seconds, everybody stops.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import Protocol

from graftline.stages.errors import EngineFailed

FIRST_WAIT, LONGEST_WAIT = 0.5, 60.0
"""Seconds, doubled at each failure without an answer in between, where the server does not say how long."""
OPEN_AFTER = 5
"""Failures in a row after which one request at a time tries."""
LOOK_AROUND = 1.0
"""Seconds after which a waiting request looks whether it is still wanted."""


def pause(failures: int) -> float:
    """Seconds to wait after so many failures in a row, where the server does not say how long."""
    return min(LONGEST_WAIT, FIRST_WAIT * 2 ** min(max(0, failures - 1), 10))


class Gate(Protocol):
    """The gate through which a server's requests go, as an engine sees it: shared by all engines of a run that ask this
    server, wherever they are."""

    def enter(self, stop: threading.Event | None = None, rest: float = 0.0) -> float:
        """Waits for a place; answers with the time, by the gate's clock, at which it was given.

        Args:
            stop: set when the caller does not want one any more.
            rest: seconds which this request waits in any case.

        Raises:
            EngineFailed: the server gave nothing for too long, or `stop` is set.
        """

    def answered(self) -> None:
        """A request was answered."""

    def pushed_back(self, entered: float, why: str, after: float | None = None, busy: bool = True) -> int:
        """A request was refused for now, or failed; how many were answered so far, of whoever asks.

        Args:
            entered: what `enter` gave it.
            why: for the message, should nothing be answered any more.
            after: seconds which the server asks to be left alone.
            busy: whether the server says it has too much to do: then all requests rest. A failure of one request
                leaves the others alone, until several in a row fail.
        """

    def left(self) -> None:
        """A request ended in a way that says nothing about the server's load."""

    def close(self) -> None:
        """The engine asks no more; places which it still has are free once their requests end."""


class Pressure:
    """A gate in this process.

    Args:
        name: the server's model, for messages.
        most: requests at once, at most.
        patience: seconds without an answer after which `enter` raises.
        clock, wait: of time (a test has its own); `wait(condition, seconds)` may return early.
    """

    def __init__(
        self,
        name: str,
        most: int,
        patience: float,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[threading.Condition, float], object] = lambda condition, seconds: condition.wait(seconds),
    ) -> None:
        self.name, self.most, self.patience, self.clock, self.wait = name, most, patience, clock, wait
        self.limit = float(min(4, most))
        self.flying = 0
        self.answers = 0
        self.failures = 0
        self.rest_until = 0.0
        self._cut_at = -1.0
        self._since: float | None = None
        """When the first failure since the last answer happened."""
        self._stopped: EngineFailed | None = None
        self._changed = threading.Condition()  # may be entered again by who is in it

    def enter(self, stop: threading.Event | None = None, rest: float = 0.0) -> float:
        with self._changed:
            not_before = self.clock() + rest
            while True:
                refuse_unwanted(stop, self.name)
                wait = self.place(not_before)
                if not wait:
                    return self.clock()
                self.wait(self._changed, min(wait, LOOK_AROUND))

    def place(self, not_before: float = 0.0) -> float:
        """Gives a place to a request that waits until `not_before` in any case: 0 where there was one, else how many
        seconds it has to wait at least (infinite: until another one ends).

        Raises:
            EngineFailed: the server gave nothing for too long.
        """
        with self._changed:
            if self._stopped is not None:
                raise EngineFailed(self._stopped.what, where=self._stopped.where, do=self._stopped.do)
            rest = max(self.rest_until, not_before) - self.clock()
            if rest > 0:
                return rest
            if self.flying >= self.places:
                return math.inf
            self.flying += 1
            return 0.0

    @property
    def places(self) -> int:
        """Requests that may be in flight now."""
        return 1 if self.failures >= OPEN_AFTER else max(1, int(self.limit))

    def answered(self) -> None:
        with self._changed:
            self.flying -= 1
            self.answers += 1
            self.failures, self._since = 0, None
            self.limit = min(float(self.most), self.limit + 1 / self.limit)
            self._changed.notify_all()

    def pushed_back(self, entered: float, why: str, after: float | None = None, busy: bool = True) -> int:
        with self._changed:
            now = self.clock()
            self.flying -= 1
            self._since = now if self._since is None else self._since
            cut = entered > self._cut_at  # one cut for all that were in flight
            if busy and cut:
                self._cut_at = now
                self.limit = max(1.0, self.limit / 2)
            if cut or not busy:
                self.failures += 1
            if busy or self.failures >= OPEN_AFTER:
                wait = after if after is not None else pause(self.failures)
                self.rest_until = max(self.rest_until, now + wait)
            if max(self.rest_until, now) - self._since > self.patience:
                self._stop(
                    f"the server gave no answer for {now - self._since:.0f} s"
                    + (f" and asks to come back in {after:.0f} s" if after is not None else "")
                    + f" ({why})",
                    "run it again once the server answers: what was answered is kept",
                )
            self._changed.notify_all()
            return self.answers

    def left(self) -> None:
        with self._changed:
            self.flying -= 1
            self._changed.notify_all()

    def close(self) -> None:
        """There is nothing to give back."""

    def _stop(self, what: str, do: str) -> None:
        if self._stopped is None:
            self._stopped = EngineFailed(what, where=self.name, do=do)


def refuse_unwanted(stop: threading.Event | None, name: str) -> None:
    """Ends the waiting of a request that is not wanted any more."""
    if stop is not None and stop.is_set():
        raise EngineFailed("another request failed", where=name, do="run it again")
