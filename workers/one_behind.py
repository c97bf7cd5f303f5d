"""Work that goes on in a thread of its own while its caller is busy with more, at most one piece behind."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import TracebackType

WAIT_S = 1.0


class OneBehind:
    """Runs what it is given, one thing at a time, and passes failures on to whoever comes next.

    As a context manager it ends when its work has ended. A failure of the body hides one of the work.
    """

    def __init__(self, name: str, while_waiting: Callable[[], None]) -> None:
        """`while_waiting` is called every second that the caller has to wait for the work."""
        self._threads = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self._while_waiting = while_waiting
        self._work: Future[None] | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Begin `work` when what was begun before has ended; raises what that failed with."""
        self.finish()
        self._work = self._threads.submit(work)

    def check(self) -> None:
        """Raise what has failed so far."""
        if self._work is not None and self._work.done():
            self.finish()

    def finish(self) -> None:
        """Wait for the work; raises what it failed with."""
        work, self._work = self._work, None
        if work is None:
            return
        while not wait([work], timeout=WAIT_S).done:
            self._while_waiting()
        work.result()

    def __enter__(self) -> OneBehind:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.finish()
        finally:
            self._threads.shutdown(wait=True)
