"""How hard a server is asked: as many requests at once as it takes, none while it asks for rest, and an end to it.

Additive increase, multiplicative decrease, as TCP does it: every answer widens the gate a little, a push-back halves
it, once for all requests that were in flight. While nothing is answered one request at a time tries (the breaker); when
nothing was answered for `patience` seconds, everybody stops.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from graftline.stages.errors import EngineFailed

FIRST_WAIT, LONGEST_WAIT = 0.5, 60.0
"""Seconds, doubled at each failure without an answer in between, where the server does not say how long."""
OPEN_AFTER = 5
"""Failures in a row after which one request at a time tries."""


def pause(failures: int) -> float:
    """Seconds to wait after so many failures in a row, where the server does not say how long."""
    return min(LONGEST_WAIT, FIRST_WAIT * 2 ** min(max(0, failures - 1), 10))


class Pressure:
    """The gate through which a server's requests go; shared by the threads of an engine.

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
        self.held = False
        self._cut_at = -1.0
        self._since: float | None = None
        """When the first failure since the last answer happened."""
        self._stopped: EngineFailed | None = None
        self._changed = threading.Condition()

    def enter(self, stop: threading.Event | None = None, rest: float = 0.0) -> float:
        """Waits for a place; answers with the time at which it was given.

        Args:
            stop: set when the caller does not want one any more.
            rest: seconds which this request waits in any case.

        Raises:
            EngineFailed: the server gave nothing for too long, the engine is closed, or `stop` is set.
        """
        with self._changed:
            not_before = self.clock() + rest
            while True:
                if stop is not None and stop.is_set():
                    raise EngineFailed("another request failed", where=self.name, do="run it again")
                if self._stopped is not None:
                    raise EngineFailed(self._stopped.what, where=self._stopped.where, do=self._stopped.do)
                now = self.clock()
                rest = max(self.rest_until, not_before) - now
                if rest <= 0 and not self.held and self.flying < self.places:
                    self.flying += 1
                    return now
                self.wait(self._changed, min(rest, 1.0) if rest > 0 else 1.0)

    @property
    def places(self) -> int:
        """Requests that may be in flight now."""
        return 1 if self.failures >= OPEN_AFTER else max(1, int(self.limit))

    def answered(self) -> None:
        """A request was answered."""
        with self._changed:
            self.flying -= 1
            self.answers += 1
            self.failures, self._since = 0, None
            self.limit = min(float(self.most), self.limit + 1 / self.limit)
            self._changed.notify_all()

    def pushed_back(self, entered: float, why: str, after: float | None = None, busy: bool = True) -> None:
        """A request was refused for now, or failed.

        Args:
            entered: what `enter` gave it.
            why: for the message, should nothing be answered any more.
            after: seconds which the server asks to be left alone.
            busy: whether the server says it has too much to do: then all requests rest. A failure of one request
                leaves the others alone, until several in a row fail.
        """
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

    def left(self) -> None:
        """A request ended in a way that says nothing about the server's load."""
        with self._changed:
            self.flying -= 1
            self._changed.notify_all()

    def hold(self, held: bool) -> None:
        """Holds new requests back, or lets them go on."""
        with self._changed:
            self.held = held
            self._changed.notify_all()

    def stop(self, what: str, do: str = "") -> None:
        """Ends all waiting, for good."""
        with self._changed:
            self._stop(what, do)
            self._changed.notify_all()

    def _stop(self, what: str, do: str) -> None:
        if self._stopped is None:
            self._stopped = EngineFailed(what, where=self.name, do=do)
