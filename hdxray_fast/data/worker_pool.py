"""Worker processes for calls, which can be started again where pebble gives their pool up."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from queue import Empty, SimpleQueue
from typing import Any

LAST_WORDS = 0.5  # seconds in which what a dead worker has sent is read
LOOK = 1.0  # seconds after which it is looked whether the pool is still there
STARTED = 60.0  # seconds for the first call of a worker, which does nothing


class Call:
    """A call that is due, and its future, once a pool was given it."""

    def __init__(self, function: Callable, arguments: tuple, timeout: float, when_ended: Callable | None) -> None:
        self.function, self.arguments, self.timeout, self.when_ended = function, arguments, timeout, when_ended
        self.future: Any = None

    def answered(self) -> bool:
        """Whether it has ended by itself, or its worker has; not that it was lost with its pool."""
        future = self.future
        return future is not None and future.done() and not isinstance(future.exception(), BrokenProcessPool)


class WorkerPool:
    """Worker processes that can be started again: pebble gives up a pool for what one worker does.

    It does where a worker dies before the pool has read which call that worker took, and no other call runs. Of the
    calls of such a pool, some end in a BrokenProcessPool and some never end.
    """

    def __init__(self, initializer: Callable, initargs: tuple, make_pool: Callable, get_context: Callable) -> None:
        self._options = {"initializer": initializer, "initargs": initargs}
        self._make_pool, self._get_context = make_pool, get_context
        self._pool: Any = None
        self.running: set[Call] = set()  # calls that are not known to have ended

    def start(self, workers: int) -> None:
        """Stop the workers, and have others; they start with the first call."""
        self.stop()
        # loky's processes start fresh: a fork would copy the locks of running thread pools. Unlike multiprocessing's,
        # they do not run the caller's script again where it lacks an `if __name__ == "__main__"`.
        context = LocksKept(self._get_context("loky"))
        self._pool = self._make_pool(workers, context=context, **self._options)
        self._ended: SimpleQueue[Call] = SimpleQueue()  # the pool's threads put calls there as they end
        self._broken = False
        self.running.clear()

    def start_one(self) -> bool:
        """Have a single worker; whether it can start at all: if not, that is not the fault of the calls."""
        self.start(1)
        call = Call(os.getpid, (), STARTED, None)
        self.submit(call)
        self.wait(call)
        return call.answered() and call.future.exception() is None

    def submit(self, call: Call) -> None:
        """Have a call made; it is left without a future where the pool is broken already."""
        call.future = None
        if self._broken:
            return
        try:
            call.future = self._pool.schedule(call.function, args=list(call.arguments), timeout=call.timeout)
        except RuntimeError:  # as BrokenProcessPool is; a pool that could not start would try again at each call
            self._broken = True
            return
        self.running.add(call)
        call.future.add_done_callback(lambda _, ended=self._ended: ended.put(call))

    def hear(self, seconds: float = 0.0) -> None:
        """Take notice of the calls that have ended; of none, wait so long for one."""
        while True:
            try:
                call = self._ended.get(timeout=seconds)
            except Empty:
                return
            seconds = 0.0
            self.running.discard(call)
            if call.when_ended is not None and call.answered():
                call.when_ended(call.arguments)

    def wait(self, call: Call, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Until a call has ended or, as the pool is broken, never will. ``meanwhile`` is called as others end."""
        while call.future is not None and not call.future.done() and not self._broken and self._pool.active:
            self.hear(LOOK)
            meanwhile()
        self.running.discard(call)

    def stop(self) -> None:
        if self._pool is not None:
            self._pool.stop()  # kills what still runs
            self._pool.join()


class LocksKept:
    """A context for processes whose locks are there as long as it is, and whose deaths are told late.

    The pool drops its own before it stops its workers. One that is just starting then, as happens where there are few
    files, would find none and print a traceback.
    """

    def __init__(self, context) -> None:
        self._context, self._locks = context, []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def RLock(self):
        self._locks.append(self._context.RLock())
        return self._locks[-1]

    def Process(self, *args, **kwargs):
        return HeardOut(self._context.Process(*args, **kwargs))


class HeardOut:
    """A process that seems to live for a moment after it died by itself: until its last words have been read.

    They say which call it had taken. The pool, which reads them in another thread, would else not know whose death that
    is: it breaks or, where other calls run, waits for that call until its time is up.
    """

    def __init__(self, process) -> None:
        self.__dict__.update(_process=process, _told=False, _found=None)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._process, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._process, name, value)

    def terminate(self) -> None:
        self.__dict__["_told"] = True
        self._process.terminate()

    def is_alive(self) -> bool:
        if self._told or self._process.is_alive():
            return self._process.is_alive()
        self.__dict__["_found"] = self._found or time.monotonic()
        return time.monotonic() < self._found + LAST_WORDS
