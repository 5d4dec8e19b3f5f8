"""One thread that always works on the newest item and lets go of what it had no time for."""

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class NewestWorker(Generic[T]):
    """Runs `work` on submitted items, newest first in line; an item that is overtaken is counted.

    What `work` raises goes to `on_error` and the thread lives on.
    """

    def __init__(
        self, work: Callable[[T], None], on_error: Callable[[Exception], None], name: str
    ) -> None:
        """Start the thread.

        Args:
            work: Called in the thread, one item at a time.
            on_error: Called in the thread with what `work` raised.
            name: Name of the thread.
        """
        self.num_overtaken = 0
        """Items that were replaced by a newer one before their turn."""
        self._work = work
        self._on_error = on_error
        self._condition = threading.Condition()
        self._waiting: list[T] = []
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name=name)
        self._thread.start()

    def submit(self, item: T) -> None:
        """Put an item in line in place of one that still waits."""
        with self._condition:
            self.num_overtaken += len(self._waiting)
            self._waiting = [item]
            self._condition.notify()

    def stop(self) -> None:
        """End the thread after the item it works on; one that waits is let go."""
        with self._condition:
            self._stopped = True
            self._condition.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._stopped or self._waiting)
                if self._stopped:
                    return
                item = self._waiting.pop()
            try:
                self._work(item)
            except Exception as error:  # our own mistake: it must not end the output for good
                self._on_error(error)
