"""Ctrl-C that ends a training after its step: asked once it waits, asked twice it does not."""

import signal
from types import FrameType, TracebackType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Whether somebody asked this process to stop. A context manager, for the main thread."""

    def __init__(self) -> None:
        self.is_asked = False
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> "StopRequest":
        self._before = {number: signal.signal(number, self._ask) for number in _SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.is_asked:
            raise KeyboardInterrupt
        self.is_asked = True


def ignore_stop_requests(worker: int) -> None:
    """Let a `DataLoader`'s worker live until its parent ends it: Ctrl-C reaches both."""
    for number in _SIGNALS:  # sent to the whole group by terminals, torchrun and batch systems
        signal.signal(number, signal.SIG_IGN)
