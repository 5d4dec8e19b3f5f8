"""Full-size images and clouds between two processes: every message arrives."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed: run make test-ros-throughput")
pytest.importorskip("perception_msgs", reason="the ROS workspace is not sourced")

from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image, PointCloud2

pytestmark = [pytest.mark.ros, pytest.mark.slow, pytest.mark.timeout(180)]

PROGRAM = Path(__file__).with_name("rig_publisher.py")
SECONDS = 20.0


def test_six_full_size_cameras_and_a_lidar_arrive_whole(listener: Any, tmp_path: Path) -> None:
    counts = [0] * 7
    bytes_of = [0] * 7

    def count(index: int, message: Any) -> None:
        if message.header.frame_id == "probe":  # sent before both sides know each other
            return
        counts[index] += 1
        bytes_of[index] = len(message.data)

    qos = QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT)
    for index in range(7):
        kind, topic = (PointCloud2, "pointcloud") if index == 6 else (Image, f"image{index}")
        listener.node.create_subscription(
            kind, f"/bev/input/{topic}", lambda message, index=index: count(index, message), qos
        )
    rig = subprocess.Popen(
        [
            sys.executable, str(PROGRAM), str(tmp_path / "rig.json"), "--size", "1600x900",
            "--points", "62500", "--seconds", str(SECONDS), "--wait-for", "7",
        ],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        listener.spin_until(lambda: rig.poll() is not None, "the rig has ended", 150.0)
        end = time.monotonic() + 1.0
        listener.spin_until(lambda: time.monotonic() > end, "the rest has come")
    finally:
        rig.kill()
        rig.wait()
    assert rig.stdout is not None
    sent = json.loads(rig.stdout.read().splitlines()[-1])["sent"]
    print(f"sent {sent}, heard {counts}, {bytes_of[0]} and {bytes_of[6]} bytes")  # noqa: T201
    assert bytes_of[0] == 1600 * 900 * 3
    assert bytes_of[6] == 1_000_000
    assert min(sent[:6]) >= 12 * SECONDS - 1
    assert sent[6] >= 20 * SECONDS - 1
    assert counts == sent
