"""Time as the sensors tell it, so that a log of years ago plays like today's data."""

from collections.abc import Callable

JUMP_BACK_NS = 1_000_000_000
"""A stamp this much older than the newest means that time was set back, e.g. a log that starts
over. Source: ours, as in the runtime's synchroniser."""


class StampClock:
    """The newest stamp seen, plus the time since it arrived.

    It runs behind the sensors' own clock by the newest message's delay, so it closes a frame late
    rather than early, and needs neither synchronised clocks nor simulated time.
    """

    def __init__(self, rate: float, steady_ns: Callable[[], int]) -> None:
        """Start without a time.

        Args:
            rate: Seconds of stamps per second of waiting: below 1 for a log played slowly.
            steady_ns: A clock that only grows [ns], e.g. `time.monotonic_ns`.
        """
        self._rate = rate
        self._steady_ns = steady_ns
        self._newest_ns: int | None = None
        self._last_reading_ns: int | None = None
        self._arrived_ns = 0

    def observe(self, stamp_ns: int) -> None:
        """Take the stamp of a message that has just arrived [ns]."""
        newest_ns = self._newest_ns
        if newest_ns is None or stamp_ns > newest_ns or stamp_ns < newest_ns - JUMP_BACK_NS:
            self._newest_ns = stamp_ns
            self._arrived_ns = self._steady_ns()

    def now_ns(self) -> int | None:
        """Time on the sensors' clock [ns]; None before the first stamp."""
        if self._newest_ns is None:
            return None
        return self._newest_ns + int(self._rate * (self._steady_ns() - self._arrived_ns))

    def settled_ns(self) -> int | None:
        """Time that has passed for sure [ns]: the lower of this reading and the one before.

        After a pause of the whole process the clock has run on while messages lay waiting; they set
        it right before the next reading.
        """
        reading_ns, before_ns = self.now_ns(), self._last_reading_ns
        self._last_reading_ns = reading_ns
        if reading_ns is None or before_ns is None:
            return None
        return min(reading_ns, before_ns)
