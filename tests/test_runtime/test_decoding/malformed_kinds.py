"""One row of the tables of malformed messages, and how a message is decoded as the node does it."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from message_stand_ins import HEIGHT, WIDTH, Message

from runtime.decoding import cloud_decoding, image_decoding, message_header, pose_decoding

Made = tuple[Message, Any]
"""A message and what it has to decode to; None where it has to be refused."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A way in which a message may be unusual."""

    name: str
    topic: str
    """cloud, image, compressed, info, odometry or tf."""
    make: Callable[[np.random.Generator], Made]
    reason: str = ""
    """Of the refusal; empty for a legal variant."""
    notices: tuple[str, ...] = ()
    """What a legal variant makes the decoder count."""
    rules: cloud_decoding.CloudRules = field(default_factory=cloud_decoding.CloudRules)


def broken(
    topic: str,
    reason: str,
    name: str,
    make: Callable[[np.random.Generator], Message],
    rules: cloud_decoding.CloudRules | None = None,
) -> Kind:
    """A kind that has to be refused."""
    return Kind(
        name=name, topic=topic, reason=reason, make=lambda random: (make(random), None),
        rules=rules or cloud_decoding.CloudRules(),
    )  # fmt: skip


def decode(kind: Kind, message: Message, notices: Counter[str]) -> Any:
    """What the node makes of a message.

    Raises:
        ConversionError: It cannot be used.
    """
    size_px = (WIDTH, HEIGHT)
    if kind.topic == "tf":
        return pose_decoding.to_transforms(message)
    message_header.to_stamp_ns(message.header)
    message_header.to_frame_id(message.header.frame_id)
    if kind.topic == "cloud":
        return cloud_decoding.to_points_lidar(message, kind.rules, notices)
    if kind.topic == "image":
        return image_decoding.to_rgb(message, size_px)
    if kind.topic == "compressed":
        return image_decoding.compressed_to_rgb(message, size_px, notices)
    if kind.topic == "info":
        return pose_decoding.to_intrinsics(message, notices)
    return pose_decoding.to_T_global_ego(message, "base_link")
