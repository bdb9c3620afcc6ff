"""A call of the library that is held up between its steps: it runs in a thread of its own, in turns with the one that computes.

Only one of the two threads runs at any time: `Turn.go` waits until the call pauses (`model.pausing`) or ends. It pauses where a
unit's time is over, at the next layer or step.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from plainformer.model.pausing import pauses_with

UNIT_SECONDS = 0.08


class Abandoned(BaseException):
    """Raised in a call whose answer nobody wants any more, where it pauses."""


class Turn:
    """A call in turns.

    Attributes:
        result: what the call gave. error: what it raised. ended: whether it has come to its end.
        begun: whether it has been let go. within: whether it is held up in the middle of a model's run, which must not be
            changed meanwhile.
    """

    def __init__(self, call: Callable[[], Any], threads: TurnThreads) -> None:
        self.call = call
        self.result: Any = None
        self.error: BaseException | None = None
        self.begun = self.within = self.ended = False
        self._until = 0.0
        self._abandoned = False
        self._go, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._threads = threads

    def go(self) -> bool:
        """Let the call run for a unit's time; return whether it has ended."""
        self._until = time.monotonic() + UNIT_SECONDS
        if not self.begun:
            self.begun = True
            self._threads.running.add(self)
            self._threads.take().begin(self)
        else:
            self._go.release()
        self._back.acquire()
        return self.ended

    def close(self) -> None:
        """End the call where it is."""
        if self.begun and not self.ended:
            self._abandoned = True
            self.go()

    # ---- in the call's thread -------------------------------------------------------------------------------------

    def run(self) -> None:
        """Make the call."""
        pauses_with(self._pause)
        try:
            self.result = self.call()
        except BaseException as error:  # whatever it is: it belongs to who asked
            self.error = error
        finally:
            pauses_with(None)

    def finished(self) -> None:
        """Say that the call's thread is free again."""
        self.ended, self.within = True, False
        self._threads.running.discard(self)
        self._back.release()

    def _pause(self, within: bool) -> None:
        if time.monotonic() < self._until:
            return
        self.within = within
        self._back.release()
        self._go.acquire()
        if self._abandoned:
            raise Abandoned


class TurnThreads:
    """Threads for calls, used again and again: each has memory of its own in torch's libraries.

    Attributes:
        running: calls that have begun and not ended.
    """

    def __init__(self) -> None:
        self.running: set[Turn] = set()
        self._idle: list[_Thread] = []
        self.count = 0

    def take(self) -> _Thread:
        if self._idle:
            return self._idle.pop()
        self.count += 1
        return _Thread(self._idle, self.count)

    def settle(self) -> None:
        """Let every call come out of the run of a model that it is in the middle of."""
        for turn in list(self.running):
            while turn.within:
                turn.go()

    def close(self) -> None:
        """End the threads, none of which may be in a call."""
        for thread in self._idle:
            thread.end()
        self._idle.clear()


class _Thread:
    def __init__(self, idle: list[_Thread], number: int) -> None:
        self._idle = idle
        self._turn: Turn | None = None
        self._wake = threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, name=f"plainformer-turn-{number}", daemon=True)
        self._thread.start()

    def begin(self, turn: Turn) -> None:
        self._turn = turn
        self._wake.release()

    def end(self) -> None:
        self._turn = None
        self._wake.release()
        self._thread.join()

    def _run(self) -> None:
        while True:
            self._wake.acquire()
            turn = self._turn
            if turn is None:
                return
            turn.run()
            self._turn = None
            self._idle.append(self)
            turn.finished()
            del turn
