"""What all messages have in common: a stamp, a frame, and the error of one that cannot be used.

Here and in the other decoding modules a message is any object with the attributes of the ROS
message: nothing of ROS is imported, so messages of bags decode like received ones.
"""

from typing import Any

MAX_FRAME_ID = 255
"""Longest name of a frame, in characters. Source: ours; longer ones are damage, and names are kept
and printed."""


class ConversionError(ValueError):
    """A message that cannot be used.

    `reason` is one of a few fixed words, to be counted; the message says the details.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def to_stamp_ns(header: Any) -> int:
    """Time stamp of a header [ns].

    Raises:
        ConversionError: stamp_nanosec, stamp_negative, or stamp_zero: it was never set.
    """
    sec, nanosec = int(header.stamp.sec), int(header.stamp.nanosec)
    if not 0 <= nanosec < 1_000_000_000:
        raise ConversionError("stamp_nanosec", f"header.stamp.nanosec is {nanosec}, below 1e9")
    stamp_ns = sec * 1_000_000_000 + nanosec
    if stamp_ns <= 0:
        reason = "stamp_negative" if stamp_ns < 0 else "stamp_zero"
        raise ConversionError(reason, f"header.stamp is {stamp_ns} ns, expected a time")
    return stamp_ns


def to_frame_id(name: str, expected: str | None = None) -> str:
    """Name of a frame.

    Args:
        name: As it stands in the message.
        expected: The only name that is taken; None takes any.

    Raises:
        ConversionError: frame_empty, frame_long, frame_slash, frame_text, or frame_unknown: it is
            not the expected one.
    """
    if not name:
        raise ConversionError("frame_empty", "frame_id is empty, expected the name of a frame")
    if len(name) > MAX_FRAME_ID:
        raise ConversionError(
            "frame_long", f"frame_id has {len(name)} characters: {name[:40]!r}..."
        )
    if name.startswith("/"):
        raise ConversionError("frame_slash", f"frame_id is {name!r}: leave out the leading slash")
    if not name.isprintable() or "\N{REPLACEMENT CHARACTER}" in name:
        raise ConversionError("frame_text", f"frame_id is {name!r}: no printable text")
    if expected is not None and name != expected:
        raise ConversionError("frame_unknown", f"frame_id is {name!r}, expected {expected!r}")
    return name
