"""A process that sends what a car's sensors send, with the time of sending as stamp.

    python tests/test_ros/rig_publisher.py CALIBRATION [--size 160x90] [--script '[[0, "1111111"]]']

A script says from which second on which sensors send: a digit per camera and one for the LiDAR.
What has not sent yet has no publisher either. With `--hold` its first line goes on until SIGUSR1
comes, and the seconds count from then. One line of JSON is printed per change, and the numbers of
messages at the end.
"""

import argparse
import json
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from perception_ros import convert
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image, PointCloud2

from runtime.api import Calibration, CameraCalibration, write_calibration

CAMERAS = (
    "CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_FRONT_LEFT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_BACK_RIGHT",
)  # fmt: skip
NUM_SENSORS = len(CAMERAS) + 1


def calibration(width: int, height: int) -> Calibration:
    """Cameras all round, 1.5 m above the ground."""
    cameras = {}
    for index, name in enumerate(CAMERAS):
        yaw = -index * np.pi / 3
        T_ego_cam = np.eye(4)
        c, s = np.cos(yaw), np.sin(yaw)
        T_ego_cam[:3, :3] = np.array([[s, 0, c], [-c, 0, s], [0, -1, 0]])
        T_ego_cam[2, 3] = 1.5
        K_cam = np.array([[0.8 * width, 0, width / 2], [0, 0.8 * width, height / 2], [0, 0, 1]])
        cameras[name] = CameraCalibration(
            K_cam=K_cam, T_ego_cam=T_ego_cam, width_px=width, height_px=height
        )
    return Calibration(cameras=cameras, T_ego_lidar=np.eye(4))


class Rig:
    """Publishers that come with a sensor's first message."""

    def __init__(self, size: tuple[int, int], num_points: int) -> None:
        random = np.random.default_rng(0)
        header = convert.make_header(1, "sensor")
        rgb = random.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        points = random.uniform(-40, 40, (4, num_points)).astype(np.float32)
        self.node = rclpy.create_node("rig")
        self.messages = [convert.to_image(rgb, header)] * len(CAMERAS)
        self.messages.append(convert.to_cloud(np.abs(points), header))
        self.publishers: dict[int, Any] = {}
        self.sent = [0] * NUM_SENSORS

    def send(self, index: int, frame: str = "sensor") -> None:
        """Publish one message of a sensor, in a frame of this name."""
        message = self.messages[index]
        if index not in self.publishers:
            qos = QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT)
            lidar = index == len(CAMERAS)
            topic = "pointcloud" if lidar else f"image{index}"
            self.publishers[index] = self.node.create_publisher(
                PointCloud2 if lidar else Image, f"/bev/input/{topic}", qos
            )
        message.header = convert.make_header(time.time_ns(), frame)
        # No two alike: what repeats itself counts as frozen. Of a cloud the last bits of one x.
        message.data[0] = sum(self.sent) % 256
        self.publishers[index].publish(message)
        self.sent[index] += 1


def play(
    rig: Rig,
    script: list[tuple[float, str]],
    rates: tuple[float, float],
    is_over: Callable[[float], bool],
) -> None:
    """Send by the script until it is over, which is asked with the time since its start [s]."""
    periods = [1 / rates[0]] * len(CAMERAS) + [1 / rates[1]]
    # The cameras' pictures come one after the other, as those of a car whose LiDAR turns.
    due = [index / len(periods) * period for index, period in enumerate(periods)]
    start, alive = time.monotonic(), ""
    while True:
        index = int(np.argmin(due))
        if is_over(due[index]):
            return
        time.sleep(max(0.0, start + due[index] - time.monotonic()))
        now_alive = [sensors for since, sensors in script if since <= due[index]][-1]
        if now_alive != alive:
            alive = now_alive
            print(json.dumps({"time_ns": time.time_ns(), "alive": alive}), flush=True)  # noqa: T201
        if alive[index] == "1":
            rig.send(index)
        due[index] += periods[index]


def main() -> None:
    """Write the calibration, then send."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("calibration", type=Path)
    parser.add_argument("--size", default="160x90")
    parser.add_argument("--points", type=int, default=500)
    parser.add_argument("--camera-hz", type=float, default=12.0)
    parser.add_argument("--lidar-hz", type=float, default=20.0)
    parser.add_argument("--seconds", type=float, default=1e9)
    parser.add_argument("--wait-for", type=int, default=0, help="subscriptions before the start")
    parser.add_argument("--script", default=json.dumps([[0, "1" * NUM_SENSORS]]))
    parser.add_argument("--hold", action="store_true", help="start the script with SIGUSR1")
    arguments = parser.parse_args()
    go = threading.Event()
    signal.signal(signal.SIGUSR1, lambda *_: go.set())
    width, height = map(int, arguments.size.split("x"))
    write_calibration(arguments.calibration, calibration(width, height))
    rclpy.init()
    rig = Rig((width, height), arguments.points)
    if arguments.wait_for:
        for index in range(NUM_SENSORS):
            rig.send(index, "probe")
        while sum(p.get_subscription_count() for p in rig.publishers.values()) < arguments.wait_for:
            time.sleep(0.05)
        time.sleep(1.0)  # the other side may not have matched yet
        rig.sent = [0] * NUM_SENSORS
    rates = (arguments.camera_hz, arguments.lidar_hz)
    script = json.loads(arguments.script)
    try:
        if arguments.hold:
            play(rig, script[:1], rates, lambda _: go.is_set())
        play(rig, script, rates, lambda since_s: since_s > arguments.seconds)
    except KeyboardInterrupt:
        pass
    print(json.dumps({"sent": rig.sent}), flush=True)  # noqa: T201
    time.sleep(0.5)
    rclpy.try_shutdown()


if __name__ == "__main__":
    sys.exit(main())
