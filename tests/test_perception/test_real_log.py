"""The reader, the geometry and the tables against real recordings."""

from pathlib import Path

import numpy as np
import pytest
from nuscenes import NuScenes

from perception.data.nuscenes_log import MissingFile, NuScenesLog
from perception.geometry import boxes, camera, rigid
from perception.messages import SensorFrame
from perception.taxonomy import CAMERAS, LIDAR
from perception.usable_data import motion

pytestmark = pytest.mark.nuscenes


@pytest.fixture(scope="module")
def log(real_log_root: Path) -> NuScenesLog:
    return NuScenesLog(real_log_root)


def complete_keyframes(log: NuScenesLog) -> list[tuple[str, SensorFrame]]:
    frames = [(token, log.keyframe(token)) for token in log.keyframe_tokens()]
    return [(token, frame) for token, frame in frames if not frame.missing]


def pixels_of(frame: SensorFrame, name: str, points_ego: np.ndarray) -> tuple:
    """Pixels, depth, and which points lie in the image of a camera at its own time."""
    calibration = frame.calibration.cameras[name]
    T_ego_cam = motion(frame.T_global_ego, frame.images[name].T_global_ego) @ calibration.T_ego_cam
    pixels, depth, in_front = camera.project(points_ego, T_ego_cam, calibration.K_cam)
    size = (calibration.width_px, calibration.height_px)
    return pixels, depth, in_front & ((pixels >= 0) & (pixels < size)).all(axis=1)


def test_two_keyframes_are_complete(log: NuScenesLog) -> None:
    assert log.scenes == ("scene-0061", "scene-0103")
    assert len(log.keyframe_tokens()) == 7
    scenes = [log.scene_of(token) for token, _ in complete_keyframes(log)]
    assert scenes == ["scene-0061", "scene-0103"]


def test_each_box_holds_as_many_points_as_the_table_says(log: NuScenesLog) -> None:
    counted = 0
    for token, frame in complete_keyframes(log):
        truth = log.annotations(token)
        T_global_lidar = frame.T_global_ego @ frame.calibration.T_ego_lidar
        points_lidar = frame.sweeps[0].points_lidar[:3].T.astype(np.float64)
        points_global = rigid.apply(T_global_lidar, points_lidar)
        inside = boxes.points_inside(truth.boxes_global, points_global).sum(axis=1)
        np.testing.assert_array_equal(inside, truth.num_lidar_points)
        counted += len(inside)
    assert counted == 69 + 23


def test_boxes_equal_those_of_the_devkit(log: NuScenesLog) -> None:
    devkit = NuScenes(log.version, str(log.root), verbose=False)
    known = 0
    for token in log.keyframe_tokens():
        truth = log.annotations(token)
        assert set(truth.tokens) == set(devkit.get("sample", token)["anns"])
        for row, annotation, category in zip(
            truth.boxes_global, truth.tokens, truth.categories, strict=True
        ):
            box = devkit.get_box(annotation)
            assert category == box.name
            np.testing.assert_allclose(row[boxes.CENTER], box.center)
            np.testing.assert_allclose(row[boxes.SIZE], box.wlh[[1, 0, 2]])
            assert row[boxes.YAW] == pytest.approx(box.orientation.yaw_pitch_roll[0], abs=1e-9)
            # the devkit takes differences of seconds since 1970 in float64: 2.4e-7 s apart
            velocity = devkit.box_velocity(annotation)[:2]
            np.testing.assert_allclose(row[boxes.VELOCITY], velocity, rtol=1e-6, atol=1e-6)
            known += bool(np.isfinite(velocity).all())
    assert known > 150


def test_lidar_points_on_objects_fall_into_the_projected_boxes(log: NuScenesLog) -> None:
    """A point within a box must fall within the outline of the box's corners, in every image."""
    checked = 0
    for token, frame in complete_keyframes(log):
        T_ego_global = rigid.inverse(frame.T_global_ego)
        truth_ego = boxes.transform(T_ego_global, log.annotations(token).boxes_global)
        points_lidar = frame.sweeps[0].points_lidar[:3].T.astype(np.float64)
        points_ego = rigid.apply(frame.calibration.T_ego_lidar, points_lidar)
        inside = boxes.points_inside(truth_ego, points_ego)
        for name in CAMERAS:
            pixels, _, visible = pixels_of(frame, name, points_ego)
            for index, corners in enumerate(boxes.corners(truth_ego)):
                corner_pixels, depth, _ = pixels_of(frame, name, corners)
                mine = pixels[inside[index] & visible]
                if depth.min() < camera.MIN_DEPTH or not len(mine):
                    continue
                # 2 px: boxes are turned upright into an ego frame that is tilted by up to 1 degree
                assert (mine >= corner_pixels.min(axis=0) - 2).all()
                assert (mine <= corner_pixels.max(axis=0) + 2).all()
                checked += len(mine)
    assert checked > 1000


def test_each_camera_sees_the_points_on_its_side(log: NuScenesLog) -> None:
    headings_deg = {"CAM_FRONT": 0, "CAM_FRONT_RIGHT": -55, "CAM_FRONT_LEFT": 55,
                    "CAM_BACK": 180, "CAM_BACK_LEFT": 110, "CAM_BACK_RIGHT": -110}  # fmt: skip
    for _, frame in complete_keyframes(log):
        points_lidar = frame.sweeps[0].points_lidar[:3].T.astype(np.float64)
        points_ego = rigid.apply(frame.calibration.T_ego_lidar, points_lidar)
        bearing = np.arctan2(points_ego[:, 1], points_ego[:, 0] - 0.9)  # from the rig's middle
        for name, heading in headings_deg.items():
            _, depth, visible = pixels_of(frame, name, points_ego)
            assert visible.sum() > 500
            # far points: the camera's place on the car (up to 1.2 m off) turns them by little
            seen = bearing[visible & (depth > 10)]
            off_deg = np.rad2deg(boxes.wrap_angle(seen - np.deg2rad(heading)))
            limit = 62 if name == "CAM_BACK" else 42  # half of 110 and 70 degrees, and 7 more
            assert np.abs(off_deg).max() < limit
            assert abs(np.median(off_deg)) < 30


def test_missing_files_are_data(log: NuScenesLog) -> None:
    frames = [log.keyframe(token) for token in log.keyframe_tokens("scene-0103")]
    missing = [set(frame.missing) for frame in frames]
    # the data's own list: no LiDAR keyframe after the first, no camera at 2.0 s
    assert missing == [set(), {LIDAR}, {LIDAR}, {LIDAR}, {*CAMERAS, LIDAR}, {LIDAR}]
    assert frames[1].missing[LIDAR].endswith("1533151604048025.pcd.bin is listed but missing")
    # the frame's time stays the LiDAR keyframe's; older sweeps are still found
    assert frames[1].stamp_ns == 1533151604048025000
    ages_ms = [(frames[1].stamp_ns - sweep.stamp_ns) // 1_000_000 for sweep in frames[1].sweeps]
    assert ages_ms == [50, 450, 500]


def test_messages_come_in_time_order_with_the_true_offsets(log: NuScenesLog) -> None:
    messages = list(log.messages("scene-0103"))
    assert len(messages) == 44  # six keyframes of seven sensors, and two sweeps
    stamps = [message.stamp_ns for message in messages]
    assert stamps == sorted(stamps)
    assert stamps == [stamp for stamp, _ in log.stamps("scene-0103")]
    # one revolution clockwise from the rear left: front left first, the LiDAR's stamp at its end
    assert [sensor for _, sensor in log.stamps("scene-0103")[:8]] == [
        "CAM_FRONT_LEFT", "CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_BACK_RIGHT", "CAM_BACK",
        "CAM_BACK_LEFT", LIDAR, LIDAR]  # fmt: skip
    offsets_us = [(stamp - 1533151603547590000) // 1000 for stamp in stamps[:8]]
    assert offsets_us == [-42791, -35186, -27108, -19477, -10032, -185, 0, 50319]
    # 5 LiDAR keyframes and 6 images
    assert sum(isinstance(message, MissingFile) for message in messages) == 5 + 6


def test_ego_poses_move_as_a_car(log: NuScenesLog) -> None:
    poses = log.ego_poses("scene-0103")
    stamps = np.array([stamp for stamp, _ in poses]) * 1e-9
    xy = np.array([T[:2, 3] for _, T in poses])
    far_apart = np.diff(stamps) > 5e-3  # poses closer than that differ by their rounding
    speed = np.linalg.norm(np.diff(xy, axis=0), axis=1)[far_apart] / np.diff(stamps)[far_apart]
    assert (np.diff(stamps) > 0).all()
    assert 3 < speed.min() <= speed.max() < 15
