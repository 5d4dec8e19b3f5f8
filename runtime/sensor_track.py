"""What the synchroniser knows of one sensor."""

from collections import deque
from dataclasses import dataclass, field

from perception.messages import SensorMessage

RECENT_STAMPS = 16
"""Stamps per sensor by which a message is known to have come before. Source: ours."""


@dataclass(kw_only=True)
class SensorTrack:
    """A sensor's messages for the frames to come, and how it did in those before."""

    offset_ns: int
    """Expected stamp minus the frame's instant [ns]."""
    candidates: dict[int, SensorMessage] = field(default_factory=dict)
    """Frame -> newest message that it can use; nothing for frames that have gone out. A message
    lies at the first frame that can use it and moves on until a newer one takes its place."""
    recent_ns: deque[int] = field(default_factory=lambda: deque(maxlen=RECENT_STAMPS))
    """Stamps of the last messages that were not dropped."""
    used_ns: int | None = None
    """Newest stamp that was in a frame."""
    was_used: bool = False
    """Whether the last frame had it."""
    num_missed: int = 0
    """Frames in a row that went out without this sensor."""
    fault: str = ""
    """Why the newest message since the last frame was dropped; empty if it was not."""

    def why_missing(self) -> str:
        """Why the next frame, which is going out now, is without this sensor."""
        if self.fault:
            return f"message dropped: {self.fault}"
        return "no data in time" if self.recent_ns else "no data yet"

    def move_on(self, index: int, oldest_ns: int) -> None:
        """Note that a frame has gone out; its message stays for the next while it is usable.

        Args:
            index: The next frame's.
            oldest_ns: Oldest stamp that the next frame can use [ns].
        """
        self.fault = ""
        message = self.candidates.pop(index - 1, None)
        self.was_used = message is not None
        if message is None:
            self.num_missed += 1
            return
        self.num_missed = 0
        self.used_ns = message.stamp_ns
        if message.stamp_ns >= oldest_ns:
            self.candidates.setdefault(index, message)
