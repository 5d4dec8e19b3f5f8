import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("perception_ros", reason="the ROS workspace is not sourced")

from perception_ros.rig import MAX_FRAMES, FrameTree, Rig

from runtime.api import Calibration, CameraCalibration

pytestmark = pytest.mark.ros

K = np.array([[1000.0, 0, 800.5], [0, 1000.0, 450.5], [0, 0, 1]])


def shift(x: float, y: float = 0.0, z: float = 0.0) -> np.ndarray:
    T = np.eye(4)
    T[:3, 3] = x, y, z
    return T


def quarter_turn() -> np.ndarray:
    """Left about z: the child's x axis points along the parent's y axis."""
    T = np.eye(4)
    T[:2, :2] = [[0, -1], [1, 0]]
    return T


def file() -> Calibration:
    camera = CameraCalibration(K_cam=K, T_ego_cam=shift(1.5), width_px=1600, height_px=900)
    return Calibration(cameras={"CAM_FRONT": camera}, T_ego_lidar=shift(0.9))


def test_a_chain_of_frames_is_multiplied_from_the_base_outwards() -> None:
    tree = FrameTree()
    tree.update({"roof": ("base_link", shift(1)), "cam": ("mast", shift(2))})
    assert tree.find("base_link", "cam") is None  # nobody has said where the mast is
    tree.update({"mast": ("roof", quarter_turn())})
    # The camera is 2 m along the mast's x, which is base_link's y; the roof is at x = 1 m.
    T = tree.find("base_link", "cam")
    assert T is not None
    np.testing.assert_allclose(T[:3, 3], (1, 2, 0))
    np.testing.assert_array_equal(tree.find("base_link", "base_link"), np.eye(4))


def test_a_loop_of_frames_ends() -> None:
    tree = FrameTree()
    tree.update({"a": ("b", shift(1)), "b": ("a", shift(1))})
    assert tree.find("base_link", "a") is None


def test_the_newest_transform_counts() -> None:
    tree = FrameTree()
    tree.update({"cam": ("base_link", shift(1))})
    tree.update({"cam": ("base_link", shift(2))})
    np.testing.assert_array_equal(tree.find("base_link", "cam"), shift(2))


def test_a_full_tree_takes_no_new_names_but_news_of_old_ones() -> None:
    tree = FrameTree()
    many = {f"frame{i}": ("base_link", shift(i)) for i in range(MAX_FRAMES - 1)}
    assert tree.update(many).refused == set()
    last = tree.update({"last": ("base_link", shift(1)), "over": ("base_link", shift(1))})
    assert (last.refused, last.changed) == ({"over"}, {"last"})
    assert tree.find("base_link", "over") is None
    assert tree.update({"last": ("base_link", shift(2))}).refused == set()
    np.testing.assert_array_equal(tree.find("base_link", "last"), shift(2))


def test_a_file_alone_is_the_calibration() -> None:
    rig = Rig(file(), {})
    calibration = rig.calibration()
    assert list(calibration.cameras) == ["CAM_FRONT"]
    np.testing.assert_array_equal(calibration.cameras["CAM_FRONT"].T_ego_cam, shift(1.5))
    np.testing.assert_array_equal(calibration.T_ego_lidar, shift(0.9))
    assert rig.size_px("CAM_FRONT") == (1600, 900)


def test_tf_goes_before_the_file_and_a_parameter_before_both() -> None:
    rig = Rig(file(), {"LIDAR_TOP": shift(0.5)})
    assert rig.set_extrinsics("CAM_FRONT", shift(2), "frame")
    assert not rig.set_extrinsics("LIDAR_TOP", shift(2), "frame")
    calibration = rig.calibration()
    np.testing.assert_array_equal(calibration.cameras["CAM_FRONT"].T_ego_cam, shift(2))
    np.testing.assert_array_equal(calibration.T_ego_lidar, shift(0.5))


def test_without_a_file_a_camera_appears_when_both_halves_are_known() -> None:
    rig = Rig(None, {})
    assert not rig.knows_place_of("LIDAR_TOP")
    assert rig.set_intrinsics("CAM_BACK", K, 1600, 900)
    assert rig.calibration().cameras == {}
    assert rig.set_extrinsics("CAM_BACK", shift(-1), "frame")
    camera = rig.calibration().cameras["CAM_BACK"]
    np.testing.assert_array_equal(camera.K_cam, K)
    np.testing.assert_array_equal(camera.T_ego_cam, shift(-1))
    assert (camera.width_px, camera.height_px) == (1600, 900)


def test_a_rig_says_whether_it_knows_the_lidar() -> None:
    rig = Rig(None, {})
    assert not rig.calibration().knows_lidar
    assert rig.set_extrinsics("LIDAR_TOP", np.eye(4), "base_link")
    assert rig.calibration().knows_lidar
    assert Rig(file(), {}).calibration().knows_lidar


def test_a_place_by_tf_is_that_frames_only_one_by_file_or_parameter_is_every_frames() -> None:
    rig = Rig(file(), {"CAM_BACK": shift(-1)})
    assert rig.knows_place_of("LIDAR_TOP", "any")
    rig.set_extrinsics("LIDAR_TOP", shift(0.9), "lidar")  # TF agrees with the file
    assert rig.knows_place_of("LIDAR_TOP", "lidar")
    assert not rig.knows_place_of("LIDAR_TOP", "any")
    rig.set_extrinsics("CAM_BACK", shift(2), "eye")
    assert rig.knows_place_of("CAM_BACK", "any")


def test_slow_drift_adds_up_to_a_change() -> None:
    tree = FrameTree()
    news = [tree.update({"cam": ("base_link", shift(1 + 0.6e-6 * i))}).changed for i in range(4)]
    assert news == [{"cam"}, set(), {"cam"}, set()]


def test_the_same_again_is_no_change() -> None:
    rig = Rig(file(), {})
    assert not rig.set_intrinsics("CAM_FRONT", K + 1e-9, 1600, 900)
    assert not rig.set_extrinsics("CAM_FRONT", shift(1.5 + 1e-9), "frame")
    assert rig.set_intrinsics("CAM_FRONT", K, 800, 450)
    assert rig.set_extrinsics("CAM_FRONT", shift(1.51), "frame")


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=30))
def test_any_forest_of_frames_is_answered(edges: list[tuple[int, int]]) -> None:
    """Against the path walked by hand; each frame is shifted by 1 m in its parent."""
    tree, parents = FrameTree(), {}
    for child, parent in edges:
        tree.update({str(child): (str(parent), shift(1))})
        parents[child] = parent
    for frame in range(10):
        steps, at = 0, frame
        while at != 0 and at in parents and steps < 20:  # longer than 10 frames: a loop
            at, steps = parents[at], steps + 1
        T = tree.find("0", str(frame))
        if at == 0:
            assert T is not None
            np.testing.assert_array_equal(T, shift(steps))
        else:
            assert T is None
