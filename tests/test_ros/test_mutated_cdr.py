"""Bytes of real messages, damaged at random: whatever still unpacks is decoded or refused."""

import os
from array import array
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed: run make test in .venv-ros")
pytest.importorskip("perception_msgs", reason="the ROS workspace is not sourced")

import cv2
from perception_ros import convert
from rclpy.serialization import deserialize_message, serialize_message
from sensor_msgs.msg import CompressedImage

from runtime.api import (
    LIDAR,
    Calibration,
    CameraCalibration,
    CameraImage,
    LidarSweep,
    Synchronizer,
    SynchronizerConfig,
)

pytestmark = [pytest.mark.ros, pytest.mark.timeout(3600)]

NUM_MESSAGES = 200_000 if "BEV_NIGHT" in os.environ else 4_000
CAMERA = "CAM_FRONT"
STAMP_NS = 1_000_000_000_000
HEADER = convert.make_header(STAMP_NS, "sensor")
SIZE = (16, 12)


def originals() -> dict[str, Any]:
    """A good message of each type."""
    random = np.random.default_rng(0)
    rgb = random.integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
    done, jpeg = cv2.imencode(".jpg", rgb)
    done_too, png = cv2.imencode(".png", rgb)
    assert done
    assert done_too
    camera = CameraCalibration(
        K_cam=np.array([[9.0, 0, 8], [0, 9, 6], [0, 0, 1]]), T_ego_cam=np.eye(4),
        width_px=SIZE[0], height_px=SIZE[1],
    )  # fmt: skip
    return {
        "image": convert.to_image(rgb, HEADER),
        "jpeg": CompressedImage(header=HEADER, format="jpeg", data=array("B", jpeg.tobytes())),
        "png": CompressedImage(header=HEADER, format="png", data=array("B", png.tobytes())),
        "cloud": convert.to_cloud(random.uniform(5, 9, (4, 20)).astype(np.float32), HEADER),
        "info": convert.to_camera_info(camera, HEADER),
        "odometry": convert.to_odometry(np.eye(4), HEADER, "base_link"),
    }


def damaged(random: np.random.Generator, content: bytes) -> bytes:
    """Other bytes, fewer or more, or a number of four bytes replaced by an extreme one."""
    data = bytearray(content)
    way = random.integers(4)
    place = int(random.integers(4, len(data) - 4))
    if way == 0:
        for place in random.integers(4, len(data), random.integers(1, 9)):
            data[place] = random.integers(256)
    elif way == 1:
        del data[place:]
    elif way == 2:
        data[place:place] = random.bytes(int(random.integers(1, 9)))
    else:
        extreme = (0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)[random.integers(5)]
        place -= place % 4
        data[place : place + 4] = extreme.to_bytes(4, "little")
    return bytes(data)


def decode(name: str, message: Any) -> Any:
    """As the node does it: what the runtime takes, or None for intrinsics and poses."""
    stamp_ns = convert.to_stamp_ns(message.header)
    convert.to_frame_id(message.header.frame_id)
    if name == "cloud":
        points_lidar = convert.to_points_lidar(message)
        assert np.isfinite(points_lidar).all()
        return LidarSweep(stamp_ns=stamp_ns, points_lidar=points_lidar, T_global_ego=None)
    if name in ("image", "jpeg", "png"):
        to_rgb = convert.to_rgb if name == "image" else convert.compressed_to_rgb
        rgb = to_rgb(message, SIZE)
        assert rgb.shape == (SIZE[1], SIZE[0], 3)
        return CameraImage(camera=CAMERA, stamp_ns=stamp_ns, rgb=rgb, T_global_ego=None)
    if name == "info":
        K_cam, _, _ = convert.to_intrinsics(message)
        assert np.isfinite(K_cam).all()
    else:
        T_global_ego = convert.to_T_global_ego(message, "base_link")
        assert np.isfinite(T_global_ego).all()
    return None


def resident_kb() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


def test_damaged_bytes_are_decoded_or_refused() -> None:
    random = np.random.default_rng(7)
    messages = originals()
    packed = {name: serialize_message(message) for name, message in messages.items()}
    nothing = Calibration(cameras={}, T_ego_lidar=np.eye(4))
    synchronizer = Synchronizer(SynchronizerConfig(cameras=(CAMERA,)), nothing)
    outcomes: Counter[str] = Counter()
    names = list(messages)
    now_ns, after_start_kb = STAMP_NS, 0
    for index in range(NUM_MESSAGES):
        if index == NUM_MESSAGES // 4:
            after_start_kb = resident_kb()
        name = names[index % len(names)]
        sensor = LIDAR if name == "cloud" else CAMERA
        now_ns += 10_000_000
        try:
            message = deserialize_message(damaged(random, packed[name]), type(messages[name]))
        except (RuntimeError, ValueError, UnicodeDecodeError) as error:
            outcomes[f"not unpacked: {type(error).__name__}"] += 1
            continue
        try:
            data = decode(name, message)
        except convert.ConversionError as error:
            outcomes[error.reason] += 1
            synchronizer.reject(sensor, error.reason)
        else:
            outcomes["decoded"] += 1
            if data is not None:
                synchronizer.push(data, now_ns)
    assert sum(outcomes.values()) == NUM_MESSAGES
    assert outcomes["decoded"] > NUM_MESSAGES / 20
    assert len(outcomes) > 15
    assert resident_kb() - after_start_kb < 20_000
    print("\n".join(f"{number:7d}  {what}" for what, number in outcomes.most_common()))  # noqa: T201
