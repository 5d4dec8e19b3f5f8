"""Reading a log for training: some sensors only, and everything that is damaged is named."""

from pathlib import Path

import numpy as np
import nuscenes_writer

from perception.data.nuscenes_log import NuScenesLog
from perception.messages import CameraImage
from perception.taxonomy import CAMERAS, LIDAR


def keyframe_file(root: Path, sensor: str, index: int = 0) -> Path:
    """Files of scene-0061 sort before those of scene-0103, and by stamp."""
    return sorted((root / "samples" / sensor).iterdir())[index]


def test_only_the_sensors_that_are_asked_for_are_read(own_log_root: Path) -> None:
    for camera in CAMERAS:
        keyframe_file(own_log_root, camera, 1).unlink()
    log = NuScenesLog(own_log_root)
    token = log.keyframe_tokens()[1]
    reading = log.read_keyframe(token, 3, [LIDAR])
    assert reading.unusable == ()
    assert reading.frame.images == {}
    assert reading.frame.missing == {}
    assert len(reading.frame.sweeps) == 3


def test_without_the_lidar_stamp_and_pose_are_still_its(own_log_root: Path) -> None:
    keyframe_file(own_log_root, LIDAR, 1).unlink()
    log = NuScenesLog(own_log_root)
    token = log.keyframe_tokens()[1]
    reading = log.read_keyframe(token, 10, ["CAM_FRONT"])
    assert reading.unusable == ()
    assert list(reading.frame.images) == ["CAM_FRONT"]
    assert reading.frame.sweeps == ()
    assert reading.frame.stamp_ns == 1532402928147951000
    assert (reading.frame.T_global_ego == log.keyframe(token).T_global_ego).all()


def test_an_unusable_older_sweep_is_named(own_log_root: Path) -> None:
    older = sorted((own_log_root / "sweeps" / LIDAR).iterdir())[7]  # 100 ms before
    older.write_bytes(older.read_bytes()[:-7])
    keyframe_file(own_log_root, "CAM_BACK", 1).unlink()
    log = NuScenesLog(own_log_root)
    token = log.keyframe_tokens()[1]
    unusable = log.read_keyframe(token, 10, (*CAMERAS, LIDAR)).unusable
    assert [m.sensor for m in unusable] == ["CAM_BACK", LIDAR]
    assert older.name in unusable[1].reason
    assert "is truncated" in unusable[1].reason
    assert log.keyframe(token).missing.keys() == {"CAM_BACK"}
    # two sweeps do not reach back so far
    assert len(log.read_keyframe(token, 2, (*CAMERAS, LIDAR)).unusable) == 1


def test_the_message_before_a_keyframe(own_log_root: Path) -> None:
    log = NuScenesLog(own_log_root)
    first, second = log.keyframe_tokens()[:2]
    frame = log.keyframe(second)
    image, sweep = log.message_before(second, "CAM_FRONT"), log.message_before(second, LIDAR)
    assert isinstance(image, CameraImage)
    assert frame.images["CAM_FRONT"].stamp_ns - image.stamp_ns == 100_000_000
    assert sweep is not None
    assert sweep.stamp_ns == frame.sweeps[1].stamp_ns
    assert log.message_before(first, "CAM_FRONT") is None
    sorted((own_log_root / "sweeps" / LIDAR).iterdir())[8].unlink()
    assert log.message_before(second, LIDAR) is None


def test_a_neighbours_damage_makes_a_velocity_unknown(own_log_root: Path) -> None:
    def damage(records: list) -> None:
        records[2]["translation"][0] = float("inf")

    nuscenes_writer.edit_table(own_log_root, "sample_annotation", damage)
    log = NuScenesLog(own_log_root)
    velocity = log.annotations(log.keyframe_tokens()[1]).boxes_global[:, 7:]
    assert np.isnan(velocity).any()
    assert not np.isinf(velocity).any()
