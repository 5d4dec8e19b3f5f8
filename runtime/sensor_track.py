"""What the synchroniser knows of one sensor."""

from collections import deque
from dataclasses import dataclass, field

from perception.messages import CameraImage, SensorMessage

RECENT_STAMPS = 16
"""Stamps per sensor by which a message is known to have come before. Source: ours."""

ALIKE_STEP = 32
"""Contents are compared at every so many-th row and column, or point. Source: ours; the noise of a
camera changes some of 1,450 pixels from picture to picture."""


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
    content: bytes = b""
    """Some of the newest message's pixels or points."""
    num_alike: int = 0
    """Messages in a row that had this content."""

    def count_alike(self, message: SensorMessage) -> int:
        """Take the next message; give how many in a row have had its content, it included."""
        if isinstance(message, CameraImage):
            content = message.rgb[::ALIKE_STEP, ::ALIKE_STEP].tobytes()
        else:
            content = message.points_lidar[:, ::ALIKE_STEP].tobytes()
        self.num_alike = self.num_alike + 1 if content == self.content else 1
        self.content = content
        return self.num_alike

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
