"""Where frames lie in time: their instants, and the messages that wait until those are known."""

from dataclasses import dataclass

from perception.messages import SensorMessage
from perception.taxonomy import LIDAR

MOST_WAITING = 64
"""Messages kept while t(0) is not known. Source: ours; a period of seven sensors has ten."""


@dataclass(frozen=True, kw_only=True)
class TimedMessage:
    """A message with what decides where it belongs."""

    sensor: str
    """Who sent it."""
    message: SensorMessage
    now_ns: int
    """When it came, on the clock of the stamps [ns]."""
    instant_ns: int
    """Instant for which its stamp is the expected one [ns]."""


class FrameGrid:
    """Knows the next frame's instant: t(k) = t(0) + k * period.

    The LiDAR's first sweep sets t(0), so that frames go out with a sweep that has just come: it is
    the sweep's instant or, where it came after that, the time at which it came, plus
    the jitter and no later than its window allows. Messages before it are kept. If no
    sweep has come a period after the first of them, or there are `MOST_WAITING`, the first one's
    instant is t(0).
    """

    def __init__(
        self,
        *,
        period_ns: int,
        wait_ns: int,
        window_ns: int,
        jitter_ns: int,
        instant_ns: int | None = None,
    ) -> None:
        """Start without messages.

        Args:
            period_ns: From frame to frame [ns].
            wait_ns: Longest time from a frame's instant to its emission [ns].
            window_ns: Largest difference of a stamp from the expected one [ns].
            jitter_ns: How much later than the first the LiDAR's later sweeps may come [ns].
            instant_ns: Of the next frame until t(0) is set [ns]; None: no frame until then.
        """
        self.instant_ns = instant_ns
        """Of the next frame [ns]."""
        self._period_ns, self._wait_ns = period_ns, wait_ns
        self._window_ns, self._jitter_ns = window_ns, jitter_ns
        self._is_set = False
        self._waiting: list[TimedMessage] = []

    @property
    def is_waiting(self) -> bool:
        """Whether messages wait for t(0)."""
        return bool(self._waiting)

    @property
    def latest_ns(self) -> int | None:
        """When the next frame goes out, or t(0) is set, at the latest [ns]; None: not known."""
        if self._waiting:
            return self._waiting[0].now_ns + self._period_ns
        return None if self.instant_ns is None else self.instant_ns + self._wait_ns

    def is_outdated(self, timed: TimedMessage) -> bool:
        """Whether t(0) is not set and no frame that goes out now or later can use the message."""
        oldest_ns = timed.now_ns - self._wait_ns - self._window_ns
        return not self._is_set and timed.instant_ns < oldest_ns

    def add(self, timed: TimedMessage) -> list[TimedMessage]:
        """Take a message; give those whose frames are known now."""
        if self._is_set:
            return [timed]
        self._waiting.append(timed)
        is_enough = timed.sensor == LIDAR or len(self._waiting) == MOST_WAITING
        return self.set() if is_enough else []

    def set(self) -> list[TimedMessage]:
        """Set t(0) by the messages that wait for it, if there are any, and give them."""
        waiting, self._waiting = self._waiting, []
        if waiting:  # a sweep can only be the last
            is_sweep = waiting[-1].sensor == LIDAR
            self.instant_ns = self._by_sweep(waiting[-1]) if is_sweep else waiting[0].instant_ns
            self._is_set = True
        return waiting

    def move_on(self) -> None:
        """The next frame is the one a period later."""
        self.instant_ns = (self.instant_ns or 0) + self._period_ns

    def _by_sweep(self, sweep: TimedMessage) -> int:
        come_ns = max(sweep.instant_ns, sweep.now_ns) + self._jitter_ns
        return min(come_ns, sweep.instant_ns + self._window_ns)
