"""Work on a sequence in a thread of its own, a bounded number of items ahead of whoever reads it."""

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")

THREAD_NAME = "stif-rt stage"

PATIENCE = 0.5
"""Seconds that closing waits for the thread; one that is busy for longer ends by itself after its item."""


class _End:
    """Follows the last item; ``error`` is what ended the work, if not the end of the sequence."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


class Prefetch(Generic[T]):
    """Iterates over ``items`` in a thread, at most ``ahead`` items before they are asked for.

    An exception of the thread is raised to the reader after the items before it. As a context manager it ends the
    thread when the context ends; ``items`` is closed in the thread that iterates over it, if it can be closed.
    """

    def __init__(self, items: Iterable[T], ahead: int) -> None:
        self._queue: queue.Queue[T | _End] = queue.Queue(ahead)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(items,), name=THREAD_NAME, daemon=True)
        self._thread.start()

    def _work(self, items: Iterable[T]) -> None:
        iterator = iter(items)
        error: BaseException | None = None
        try:
            for item in iterator:
                if not self._put(item):
                    break
        except BaseException as raised:  # whatever it is, the reader has to know
            error = raised
        finally:
            close: Callable[[], None] = getattr(iterator, "close", lambda: None)
            try:
                close()
            except BaseException as raised:
                error = error or raised
            self._put(_End(error))

    def _put(self, item: T | _End) -> bool:
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def __iter__(self) -> Iterator[T]:
        while True:
            item = self._queue.get()
            if isinstance(item, _End):
                self._thread.join()
                if item.error is not None:
                    raise item.error
                return
            yield item

    def close(self) -> bool:
        """Ends the thread. Whether it has ended: it may still be at work on an item that takes long."""
        self._stop.set()
        self._thread.join(PATIENCE)
        return not self._thread.is_alive()

    def __enter__(self) -> "Prefetch[T]":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
