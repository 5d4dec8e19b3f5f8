"""Tells time that was set back from messages that come late."""

JUMP_NS = 1_000_000_000
"""A step of time by more than this starts everything over, e.g. a log that is played again.
Source: ours; ten periods, and longer than any useful wait."""


class SetBack:
    """Sees whether time was set back, from the times of what comes.

    More than `JUMP_NS` behind the newest is enough. Less, but more than half a period, may be a
    message that is late; where everything that comes stays that far behind for a whole period, time
    was set back: late messages come between those of other sensors. A step of less than a period
    and a half is not noticed, and soon caught up with; up to two and a half it may be either.
    """

    def __init__(self, period_ns: int) -> None:
        """Start without a time.

        Args:
            period_ns: Of the frames; of some sensor's messages at most [ns].
        """
        self.newest_ns: int | None = None
        """Newest time since the last step back [ns]."""
        self._period_ns = period_ns
        self._behind_ns: int | None = None
        """Oldest of the times that came last and were all far behind."""

    def take(self, now_ns: int) -> bool:
        """Take the next time; True where it shows that time was set back, and it is the newest."""
        newest_ns = now_ns if self.newest_ns is None else self.newest_ns
        if now_ns >= newest_ns - min(self._period_ns // 2, JUMP_NS):
            self.newest_ns, self._behind_ns = max(newest_ns, now_ns), None
            return False
        behind_ns = now_ns if self._behind_ns is None else min(self._behind_ns, now_ns)
        if now_ns >= newest_ns - JUMP_NS and now_ns - behind_ns < self._period_ns:
            self._behind_ns = behind_ns
            return False
        self.newest_ns, self._behind_ns = now_ns, None
        return True
