import builtins
from pathlib import Path

import numpy as np
import nuscenes_writer
import pytest
import simplejpeg
from nuscenes import NuScenes
from nuscenes.eval.common.loaders import load_gt
from nuscenes.eval.detection.data_classes import DetectionBox

from perception.data.nuscenes_log import MissingFile, NuScenesLog
from perception.errors import InputError
from perception.geometry import boxes, rigid
from perception.messages import CameraImage, LidarSweep
from perception.taxonomy import CAMERAS, LIDAR

SCENE_OF_NAME = {scene[0]: scene for scene in nuscenes_writer.SCENES}


@pytest.fixture
def log(small_log_root: Path) -> NuScenesLog:
    return NuScenesLog(small_log_root)


def keyframe_file(root: Path, sensor: str, index: int = 0) -> Path:
    """Files of scene-0061 sort before those of scene-0103, and by stamp."""
    return sorted((root / "samples" / sensor).iterdir())[index]


def test_the_devkit_loads_and_evaluates_the_small_log(small_log_root: Path) -> None:
    devkit = NuScenes("v1.0-mini", str(small_log_root), verbose=False)
    # one scene of mini_val with four keyframes of two boxes each
    truth = load_gt(devkit, "mini_val", DetectionBox)
    assert sorted(len(truth[token]) for token in truth.sample_tokens) == [2, 2, 2, 2]


def test_scenes_and_keyframes_come_in_time_order(log: NuScenesLog) -> None:
    assert log.version == "v1.0-mini"
    assert log.scenes == ("scene-0061", "scene-0103")
    assert log.location("scene-0103") == "boston-seaport"
    first, second = (log.keyframe_tokens(scene) for scene in log.scenes)
    assert len(first) == len(second) == 4
    assert log.keyframe_tokens() == first + second
    stamps = [log.keyframe(token).stamp_ns for token in first]
    # keyframes every 0.5 s; microseconds become nanoseconds
    assert stamps == [1532402927647951000 + i * 500_000_000 for i in range(4)]
    assert {log.scene_of(token) for token in second} == {"scene-0103"}


def test_the_order_does_not_depend_on_the_tables(own_log_root: Path, log: NuScenesLog) -> None:
    for name in ("scene", "sample", "sample_data", "sample_annotation"):
        nuscenes_writer.edit_table(own_log_root, name, list.reverse)
    turned = NuScenesLog(own_log_root)
    assert turned.scenes == log.scenes
    assert turned.keyframe_tokens() == log.keyframe_tokens()
    assert turned.stamps("scene-0061") == log.stamps("scene-0061")


def test_a_keyframe_holds_images_sweeps_and_poses_of_their_own_times(log: NuScenesLog) -> None:
    frame = log.keyframe(log.keyframe_tokens("scene-0061")[1])
    scene = SCENE_OF_NAME["scene-0061"]
    assert frame.missing == {}
    # LiDAR at 20 Hz: ten sweeps, 50 ms apart, newest first
    ages = [frame.stamp_ns - sweep.stamp_ns for sweep in frame.sweeps]
    assert ages == [i * 50_000_000 for i in range(10)]
    for name in CAMERAS:
        early_us = nuscenes_writer.CAMERA_RIG[name][3]
        assert frame.stamp_ns - frame.images[name].stamp_ns == early_us * 1000
    for message in (*frame.sweeps, *frame.images.values()):
        expected = nuscenes_writer.ego_pose(scene, message.stamp_ns // 1000)
        np.testing.assert_allclose(message.T_global_ego, expected, atol=1e-9)
    np.testing.assert_allclose(frame.T_global_ego, frame.sweeps[0].T_global_ego)


def test_points_are_rows_of_x_y_z_intensity(log: NuScenesLog, small_log_root: Path) -> None:
    sweep = log.keyframe(log.keyframe_tokens()[0]).sweeps[0]
    content = np.fromfile(keyframe_file(small_log_root, LIDAR), np.float32).reshape(-1, 5)
    assert sweep.points_lidar.dtype == np.float32
    assert sweep.points_lidar.flags.c_contiguous
    np.testing.assert_array_equal(sweep.points_lidar, content[:, :4].T)


def test_num_sweeps_counts_back_from_the_keyframe(log: NuScenesLog) -> None:
    first, second = log.keyframe_tokens("scene-0061")[:2]
    assert len(log.keyframe(second, num_sweeps=3).sweeps) == 3
    assert len(log.keyframe(second, num_sweeps=99).sweeps) == 11  # 0.5 s at 20 Hz and the first
    assert len(log.keyframe(first).sweeps) == 1  # the scene begins here
    with pytest.raises(ValueError, match="num_sweeps is 0"):
        log.keyframe(first, num_sweeps=0)


def test_calibration(log: NuScenesLog) -> None:
    calibration = log.calibration("scene-0061")
    assert tuple(calibration.cameras) == CAMERAS
    # LiDAR x points right, so a point 1 m along it lies at ego y = -1 beside the sensor
    point = rigid.apply(calibration.T_ego_lidar, np.array([[1.0, 0.0, 0.0]]))
    np.testing.assert_allclose(point, [[0.94, -1.0, 1.84]], atol=1e-9)
    front = calibration.cameras["CAM_FRONT"]
    assert (front.width_px, front.height_px) == (160, 90)
    # 0.79 x 160 px; the camera looks along ego x from (1.7, 0, 1.5)
    assert front.K_cam[0, 0] == pytest.approx(126.4)
    ahead = rigid.apply(front.T_ego_cam, np.array([[0.0, 0.0, 1.0]]))
    np.testing.assert_allclose(ahead, [[2.7, 0.0, 1.5]], atol=1e-9)


def test_messages_are_all_data_by_time(log: NuScenesLog) -> None:
    messages = list(log.messages("scene-0103"))
    # 1.5 s: LiDAR 20 Hz -> 31, six cameras 10 Hz -> 16 each
    assert len(messages) == 31 + 6 * 16
    stamps = [message.stamp_ns for message in messages]
    assert stamps == sorted(stamps)
    assert log.stamps("scene-0103") == [
        (m.stamp_ns, m.camera if isinstance(m, CameraImage) else LIDAR) for m in messages
    ]
    assert not any(isinstance(message, MissingFile) for message in messages)


def test_ego_poses_cover_every_stamp_once(log: NuScenesLog) -> None:
    poses = log.ego_poses("scene-0061")
    assert [stamp for stamp, _ in poses] == sorted({stamp for stamp, _ in log.stamps("scene-0061")})
    for stamp_ns, T_global_ego in poses:
        expected = nuscenes_writer.ego_pose(SCENE_OF_NAME["scene-0061"], stamp_ns // 1000)
        np.testing.assert_allclose(T_global_ego, expected, atol=1e-9)


def test_annotations_have_length_before_width_and_the_true_velocity(log: NuScenesLog) -> None:
    for scene in log.scenes:
        for token in log.keyframe_tokens(scene):
            found = log.annotations(token)
            stamp_us = log.keyframe(token, 1).stamp_ns // 1000
            expected = nuscenes_writer.boxes_global(SCENE_OF_NAME[scene], stamp_us)
            np.testing.assert_allclose(found.boxes_global, expected, atol=1e-6)
            assert found.categories == ("vehicle.car", "human.pedestrian.adult")
            assert found.num_radar_points.tolist() == [0, 0]
    np.testing.assert_allclose(found.boxes_global[0, boxes.SIZE], [4.5, 1.9, 1.6])


def test_the_lidar_sees_the_boxes_where_they_are(log: NuScenesLog) -> None:
    for token in log.keyframe_tokens():
        frame, truth = log.keyframe(token, 1), log.annotations(token)
        T_global_lidar = frame.T_global_ego @ frame.calibration.T_ego_lidar
        points = rigid.apply(T_global_lidar, frame.sweeps[0].points_lidar[:3].T)
        inside = boxes.points_inside(truth.boxes_global, points).sum(axis=1)
        assert inside.tolist() == truth.num_lidar_points.tolist() == [50, 50]


def test_velocity_needs_a_neighbor_within_the_limit(own_log_root: Path) -> None:
    """Keyframes 1.6 s apart: one-sided differences are too long (1.5 s), central ones just not."""

    def stretch(records: list) -> None:
        start = min(record["timestamp"] for record in records)
        for record in records:
            record["timestamp"] = start + (record["timestamp"] - start) * 29 // 10  # 1.45 s

    tokens = NuScenesLog(own_log_root).keyframe_tokens("scene-0061")
    nuscenes_writer.edit_table(own_log_root, "sample", stretch)
    log = NuScenesLog(own_log_root)
    assert np.isfinite(log.annotations(tokens[0]).boxes_global).all()  # 1.45 s <= 1.5 s
    assert np.isfinite(log.annotations(tokens[1]).boxes_global).all()  # 2.9 s <= 3.0 s
    nuscenes_writer.edit_table(own_log_root, "sample", stretch)
    log = NuScenesLog(own_log_root)
    assert np.isnan(log.annotations(tokens[0]).boxes_global[:, boxes.VELOCITY]).all()
    assert np.isnan(log.annotations(tokens[1]).boxes_global[:, boxes.VELOCITY]).all()


def test_an_annotation_without_neighbors_has_no_velocity(own_log_root: Path) -> None:
    nuscenes_writer.edit_table(
        own_log_root, "sample_annotation", lambda rs: [r.update(prev="", next="") for r in rs]
    )
    log = NuScenesLog(own_log_root)
    found = log.annotations(log.keyframe_tokens()[0]).boxes_global
    assert np.isnan(found[:, boxes.VELOCITY]).all()
    assert np.isfinite(found[:, : boxes.YAW + 1]).all()


def test_a_keyframe_without_annotations(own_log_root: Path) -> None:
    nuscenes_writer.edit_table(own_log_root, "sample_annotation", list.clear)
    log = NuScenesLog(own_log_root)
    assert log.annotations(log.keyframe_tokens()[0]).boxes_global.shape == (0, 9)


def test_the_map_mask_is_found_through_the_drive(own_log_root: Path) -> None:
    log = NuScenesLog(own_log_root)
    path = log.map_mask_path("scene-0103")
    assert path is not None
    assert path != log.map_mask_path("scene-0061")
    path.unlink()
    assert log.map_mask_path("scene-0103") is None


# damaged sensor files: named, never raised


def test_a_missing_image_is_named(own_log_root: Path) -> None:
    keyframe_file(own_log_root, "CAM_FRONT").unlink()
    log = NuScenesLog(own_log_root)
    frame = log.keyframe(log.keyframe_tokens()[0])
    assert set(frame.images) == set(CAMERAS) - {"CAM_FRONT"}
    assert list(frame.missing) == ["CAM_FRONT"]
    assert frame.missing["CAM_FRONT"].startswith("samples/CAM_FRONT/")
    assert frame.missing["CAM_FRONT"].endswith(".jpg is listed but missing")


@pytest.mark.parametrize("num_bytes", [1, 100, -2])
def test_a_truncated_image_is_named(own_log_root: Path, num_bytes: int) -> None:
    path = keyframe_file(own_log_root, "CAM_BACK")
    path.write_bytes(path.read_bytes()[:num_bytes])
    log = NuScenesLog(own_log_root)
    reason = log.keyframe(log.keyframe_tokens()[0]).missing["CAM_BACK"]
    assert ".jpg is no valid JPEG: " in reason


def test_an_image_of_another_size_is_named(own_log_root: Path) -> None:
    path = keyframe_file(own_log_root, "CAM_BACK")
    path.write_bytes(simplejpeg.encode_jpeg(np.zeros((80, 160, 3), np.uint8)))
    log = NuScenesLog(own_log_root)
    reason = log.keyframe(log.keyframe_tokens()[0]).missing["CAM_BACK"]
    assert reason.endswith("is 160 x 80 px, the tables say 160 x 90")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\0" * 1234, "is truncated: 1234 bytes is no multiple of 20"),
        (b"", "is empty"),
    ],
)
def test_a_damaged_sweep_is_named_and_older_ones_stay(
    own_log_root: Path, content: bytes, reason: str
) -> None:
    keyframe_file(own_log_root, LIDAR, 1).write_bytes(content)
    log = NuScenesLog(own_log_root)
    frame = log.keyframe(log.keyframe_tokens()[1])
    assert frame.missing[LIDAR].endswith(reason)
    # ten revolutions back, the newest of them damaged; the frame's time stays the keyframe's
    assert [frame.stamp_ns - s.stamp_ns for s in frame.sweeps] == [
        i * 50_000_000 for i in range(1, 10)
    ]
    assert frame.stamp_ns == 1532402928147951000


def test_a_missing_older_sweep_is_left_out(own_log_root: Path) -> None:
    sorted((own_log_root / "sweeps" / LIDAR).iterdir())[8].unlink()  # 50 ms before the 2nd keyframe
    log = NuScenesLog(own_log_root)
    frame = log.keyframe(log.keyframe_tokens()[1], num_sweeps=3)
    assert [frame.stamp_ns - s.stamp_ns for s in frame.sweeps] == [0, 100_000_000]
    assert frame.missing == {}


def test_a_folder_in_place_of_a_file_is_named(own_log_root: Path) -> None:
    path = keyframe_file(own_log_root, LIDAR)
    path.unlink()
    path.mkdir()
    log = NuScenesLog(own_log_root)
    frame = log.keyframe(log.keyframe_tokens()[0])
    assert "cannot be read" in frame.missing[LIDAR]


def test_points_that_are_no_numbers_stay(own_log_root: Path) -> None:
    path = keyframe_file(own_log_root, LIDAR)
    points = np.fromfile(path, np.float32).reshape(-1, 5)
    points[3, :3] = np.nan
    points.tofile(path)
    log = NuScenesLog(own_log_root)
    frame = log.keyframe(log.keyframe_tokens()[0])
    assert frame.missing == {}
    assert np.isnan(frame.sweeps[0].points_lidar[:3, 3]).all()


def test_messages_name_files_that_cannot_be_used(own_log_root: Path) -> None:
    keyframe_file(own_log_root, "CAM_FRONT").unlink()
    keyframe_file(own_log_root, LIDAR).write_bytes(b"123")
    found = [
        m for m in NuScenesLog(own_log_root).messages("scene-0061") if isinstance(m, MissingFile)
    ]
    assert [(m.sensor, m.stamp_ns) for m in found] == [
        ("CAM_FRONT", 1532402927612765000),
        (LIDAR, 1532402927647951000),
    ]
    assert found[0].reason.endswith("is listed but missing")


def test_messages_read_a_file_only_when_they_reach_it(own_log_root: Path) -> None:
    messages = NuScenesLog(own_log_root).messages("scene-0061")
    keyframe_file(own_log_root, "CAM_FRONT_LEFT").unlink()  # the earliest of all
    assert isinstance(next(messages), MissingFile)
    assert isinstance(next(messages), CameraImage)


def test_a_keyframe_without_a_lidar_record_keeps_the_samples_stamp(own_log_root: Path) -> None:
    token = NuScenesLog(own_log_root).keyframe_tokens()[1]

    def drop(records: list) -> None:
        records[:] = [
            r
            for r in records
            if not (r["sample_token"] == token and r["is_key_frame"] and LIDAR in r["filename"])
        ]

    nuscenes_writer.edit_table(own_log_root, "sample_data", drop)
    frame = NuScenesLog(own_log_root).keyframe(token)
    assert frame.stamp_ns == 1532402928147951000
    assert frame.sweeps == ()
    assert frame.missing == {LIDAR: f"the tables list no {LIDAR} file for this keyframe"}
    assert len(frame.images) == 6


def test_reading_twice_gives_arrays_of_their_own(log: NuScenesLog) -> None:
    token = log.keyframe_tokens()[0]
    first, second = log.keyframe(token), log.keyframe(token)
    first.images["CAM_FRONT"].rgb[:] = 0
    first.sweeps[0].points_lidar[:] = 0
    first.T_global_ego[:] = 0
    assert second.images["CAM_FRONT"].rgb.any()
    assert second.sweeps[0].points_lidar.any()
    assert log.keyframe(token).T_global_ego.any()
    assert isinstance(second.sweeps[0], LidarSweep)


# mistakes of people and broken tables: one sentence


def test_unknown_scene_and_keyframe(log: NuScenesLog) -> None:
    with pytest.raises(InputError, match="did you mean 'scene-0061'"):
        log.keyframe_tokens("scene-0060")
    for ask in (log.calibration, log.messages, log.stamps, log.ego_poses, log.location):
        with pytest.raises(InputError, match="no scene 'x' among its 2: it has scene-0061"):
            ask("x")
    for ask in (log.keyframe, log.annotations, log.scene_of):
        with pytest.raises(InputError, match="has no record 'nonsense'"):
            ask("nonsense")


def test_a_missing_decoder_names_the_extra(
    log: NuScenesLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_import = builtins.__import__

    def no_simplejpeg(name: str, *args, **kwargs):
        if name == "simplejpeg":
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_simplejpeg)
    with pytest.raises(InputError, match=r"bev-perception\[replay\]"):
        log.keyframe(log.keyframe_tokens()[0])
