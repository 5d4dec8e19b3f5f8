import contextlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perception.errors import InputError
from perception.geometry import rigid
from perception.messages import Calibration, CameraCalibration
from runtime.calibration_file import read_calibration, write_calibration

RIG = Calibration(
    cameras={
        "CAM_FRONT": CameraCalibration(
            K_cam=np.array([[1266.4, 0.0, 816.3], [0.0, 1266.4, 491.5], [0.0, 0.0, 1.0]]),
            T_ego_cam=rigid.transform_from_quaternion((0.5, -0.5, 0.5, -0.5), (1.7, 0.1, 1.5)),
            width_px=1600,
            height_px=900,
        )
    },
    T_ego_lidar=rigid.transform_from_quaternion(rigid.quaternion_from_yaw(-1.57), (0.9, 0, 1.8)),
)


def test_a_rig_comes_back_to_the_last_bit_and_reads_well(tmp_path: Path) -> None:
    path = tmp_path / "rig.json"
    write_calibration(path, RIG)
    found = read_calibration(path)
    np.testing.assert_array_equal(found.T_ego_lidar, RIG.T_ego_lidar)
    (name,) = found.cameras
    for field in ("K_cam", "T_ego_cam", "width_px", "height_px"):
        got, expected = getattr(found.cameras[name], field), getattr(RIG.cameras[name], field)
        np.testing.assert_array_equal(got, expected)
    assert "[0.0, 0.0, 0.0, 1.0]" in path.read_text()  # a matrix row is one line


def damaged(tmp_path: Path, *keys: object, value: object) -> Path:
    path = tmp_path / "rig.json"
    write_calibration(path, RIG)
    document = json.loads(path.read_text())
    inner = document
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    path.write_text(json.dumps(document))
    return path


CAMERA = ("cameras", "CAM_FRONT")


@pytest.mark.parametrize(
    ("keys", "value", "words"),
    [
        (("T_ego_lidar", 0, 0), 0.5, "T_ego_lidar is no rigid transform"),
        (("T_ego_lidar", 3, 3), 2.0, "no rigid transform"),
        (("T_ego_lidar", 0, 3), float("nan"), "not finite"),
        (("T_ego_lidar",), [[1.0]], "expected 4 x 4"),
        # a mirror: orthonormal, but det R = -1
        (("T_ego_lidar",), np.diag([1.0, 1.0, -1.0, 1.0]).tolist(), "det R = -1"),
        ((*CAMERA, "T_ego_cam", 1), [0.0, 0.0, 0.0], "T_ego_cam of CAM_FRONT"),
        ((*CAMERA, "K_cam", 0, 0), -1266.4, "focal lengths -1266.4"),
        ((*CAMERA, "K_cam", 1, 1), 0.0, "focal lengths 1266.4 and 0 px, expected 16..160000"),
        # 1600 px: 16 to 160,000
        ((*CAMERA, "K_cam", 0, 0), 15.9, "focal lengths"),
        ((*CAMERA, "K_cam", 0, 0), 160_001.0, "focal lengths"),
        ((*CAMERA, "K_cam", 0, 0), 1e308, "focal lengths"),
        ((*CAMERA, "K_cam", 0, 1), 127.0, "has a skew of 127"),
        ((*CAMERA, "K_cam", 1, 2), -160_001.0, "principal point"),
        ((*CAMERA, "T_ego_cam", 1, 3), 1e300, "the limit is 100 m"),
        (("T_ego_lidar", 2, 3), -100.1, "the limit is 100 m"),
        ((*CAMERA, "K_cam", 2, 2), 0.5, "expected"),
        ((*CAMERA, "K_cam", 0, 2), float("inf"), "not finite"),
        ((*CAMERA, "width_px"), 0, "width_px of CAM_FRONT is 0"),
        ((*CAMERA, "width_px"), "1600", "expected int"),
        ((*CAMERA, "colour"), 1, "unknown key 'colour'"),
        (("format_version",), 2, "has format 2"),
    ],
)
def test_a_number_that_cannot_be_right_is_named(
    tmp_path: Path, keys: tuple, value: object, words: str
) -> None:
    path = damaged(tmp_path, *keys, value=value)
    with pytest.raises(InputError) as caught:
        read_calibration(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_rotation_within_the_tolerance_is_taken(tmp_path: Path) -> None:
    slightly = RIG.T_ego_lidar.copy()
    slightly[:3, :3] *= 1 + 4e-4  # R R^T is off by 8e-4
    assert read_calibration(damaged(tmp_path, "T_ego_lidar", value=slightly.tolist())).T_ego_lidar[
        0, 3
    ] == pytest.approx(0.9)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe\x00", None])
def test_a_file_that_is_no_calibration_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "rig.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"rig\.json"):
        read_calibration(path)


words = st.text("aK_é0", max_size=3)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats() | words,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)


@given(
    st.sampled_from(
        [("cameras",), CAMERA, (*CAMERA, "K_cam"), (*CAMERA, "T_ego_cam", 0), ("T_ego_lidar", 1, 1)]
    ),
    json_values,
)
def test_whatever_stands_in_the_file_is_usable_or_refused(
    tmp_path_factory: pytest.TempPathFactory, keys: tuple, value: object
) -> None:
    path = damaged(tmp_path_factory.mktemp("rig"), *keys, value=value)
    with contextlib.suppress(InputError):
        rig = read_calibration(path)
        for camera in rig.cameras.values():
            assert np.isfinite(camera.K_cam).all()
            assert np.linalg.det(camera.T_ego_cam) == pytest.approx(1, abs=0.01)
