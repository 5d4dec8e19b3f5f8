import dataclasses

import numpy as np
import pytest

from perception.messages import Calibration, CameraImage, LidarSweep, SensorFrame
from perception.taxonomy import LIDAR
from runtime.sensor_times import SensorTimes

MS = 1_000_000


def frame(stamp_ms: int, image_ms: int, *sweeps_ms: int) -> SensorFrame:
    rgb = np.zeros((1, 1, 3), np.uint8)
    image = CameraImage(camera="CAM_BACK", stamp_ns=image_ms * MS, rgb=rgb, T_global_ego=None)
    points = np.zeros((4, 1), np.float32)
    return SensorFrame(
        stamp_ns=stamp_ms * MS, T_global_ego=None, images={"CAM_BACK": image}, missing={},
        sweeps=tuple(
            LidarSweep(stamp_ns=ms * MS, points_lidar=points, T_global_ego=None) for ms in sweeps_ms
        ),
        calibration=Calibration(cameras={}, T_ego_lidar=np.eye(4)),
    )  # fmt: skip


def test_offsets_are_against_the_frame_and_rates_those_of_the_recording() -> None:
    times = SensorTimes()
    # 80 ms apart, one lost, one twice; the second scene is years later
    for scene, stamps_ms in (("a", (0, 80, 80, 240)), ("b", (10**9, 10**9 + 80))):
        for stamp_ms in stamps_ms:
            times.add_message(scene, "CAM_BACK", stamp_ms * MS)
    times.add_message("a", "CAM_FRONT", 0)
    times.add_frame(frame(100, 80, 100, 50))
    times.add_frame(frame(200, 160, 203, 150))
    times.add_frame(dataclasses.replace(frame(300, 310), images={}))
    times.add_frame(frame(400, 390))
    table = times.table()
    # image: -20, -40, -10; the newest sweep: 0, 3
    assert list(table["CAM_BACK"].values()) == pytest.approx([-40, -20, -10, 12.5])
    assert table["CAM_BACK"].keys() == {
        "offset_min_ms", "offset_median_ms", "offset_max_ms", "rate_hz"
    }  # fmt: skip
    assert list(table[LIDAR].values())[:3] == pytest.approx([0, 1.5, 3])
    assert table[LIDAR]["rate_hz"] is None
    assert list(table["CAM_FRONT"].values()) == [None] * 4
