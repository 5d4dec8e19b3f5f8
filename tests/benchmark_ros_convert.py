"""Time of decoding one frame's ROS messages: six 1600x900 images and a cloud.

    make bench-ros    (it says where the stand-ins of the messages lie)

Messages are plain objects with `array('B')` data, as rclpy gives them; ROS is not needed.
"""

import argparse
import sys
import time
from array import array

import numpy as np
import simplejpeg
from message_stand_ins import CHANNELS, Message, cloud, compressed, image

from runtime.decoding.cloud_decoding import to_points_lidar
from runtime.decoding.image_decoding import compressed_to_rgb, to_rgb
from runtime.decoding.message_header import to_frame_id, to_stamp_ns
from runtime.latency import LatencyRecorder

SIZE = (1600, 900)
NUM_CAMERAS = 6
NUM_POINTS = 34_700
"""Points of one sweep of nuScenes, on average."""

LAYOUTS = {
    "float32 x y z intensity": ({"x": "f4", "y": "f4", "z": "f4", "intensity": "f4"}, "<"),
    "with ring and time": (
        {"x": "f4", "y": "f4", "z": "f4", "intensity": "u1", "ring": "u2", "time": "f8"}, "<",
    ),
    "float64, big-endian": ({"x": "f8", "y": "f8", "z": "f8", "intensity": "u2"}, ">"),
}  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=200)
    arguments = parser.parse_args()
    random = np.random.default_rng(0)
    points = random.uniform(0, 50, (4, NUM_POINTS)).astype(np.float32)
    clouds = {
        name: received(cloud(points, layout, order=order))
        for name, (layout, order) in LAYOUTS.items()
    }
    rgb = random.integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
    images = {encoding: received(image(rgb, encoding)) for encoding in CHANNELS}
    smooth = np.repeat(np.repeat(rgb[::20, ::20], 20, axis=0), 20, axis=1)
    jpeg = compressed(rgb[:8, :8]).but(data=array("B", simplejpeg.encode_jpeg(smooth, quality=90)))
    recorder = LatencyRecorder()
    for _ in range(arguments.frames):
        for encoding, message in images.items():
            start = time.perf_counter()
            for _ in range(NUM_CAMERAS):
                decode(message, to_rgb, SIZE)
            recorder.add(f"6 x {encoding}", (time.perf_counter() - start) * 1e3)
        for name, message in clouds.items():
            start = time.perf_counter()
            decode(message, to_points_lidar)
            recorder.add(f"cloud: {name}", (time.perf_counter() - start) * 1e3)
        start = time.perf_counter()
        for _ in range(NUM_CAMERAS):
            decode(images["bgr8"], to_rgb, SIZE)
        decode(clouds["with ring and time"], to_points_lidar)
        recorder.add("one frame: 6 x bgr8 and a cloud", (time.perf_counter() - start) * 1e3)
    for _ in range(max(1, arguments.frames // 10)):
        start = time.perf_counter()
        decode(jpeg, compressed_to_rgb, SIZE)
        recorder.add("1 x JPEG", (time.perf_counter() - start) * 1e3)
    sys.stdout.write(f"{SIZE[0]} x {SIZE[1]} px, {NUM_POINTS} points\n{recorder.table()}")


def received(message: Message) -> Message:
    """The message with its data as rclpy gives it."""
    return message.but(data=array("B", message.data))


def decode(message: Message, to_data: object, *arguments: object) -> None:
    """What the node does with a message."""
    to_stamp_ns(message.header)
    to_frame_id(message.header.frame_id)
    to_data(message, *arguments)  # type: ignore[operator]


if __name__ == "__main__":
    main()
