import numpy as np
import pytest

from perception.geometry import rigid
from perception.synthetic import rig
from perception.taxonomy import CAMERAS


def test_the_rig_has_the_cameras_of_the_taxonomy():
    assert sorted(rig.CAMERA_MOUNTS) == sorted(CAMERAS)
    assert all(0 <= mount.lead_us <= 45_000 for mount in rig.CAMERA_MOUNTS.values())


@pytest.mark.parametrize(("camera", "heading_deg"), [("CAM_FRONT", 0), ("CAM_BACK_LEFT", 110)])
def test_a_camera_looks_along_its_heading_with_the_image_upright(camera, heading_deg):
    R_ego_cam = rig.T_ego_cam(camera)[:3, :3]
    heading = np.deg2rad(heading_deg)
    forward, down = R_ego_cam[:, 2], R_ego_cam[:, 1]
    np.testing.assert_allclose(forward, [np.cos(heading), np.sin(heading), 0], atol=1e-12)
    np.testing.assert_allclose(down, [0, 0, -1], atol=1e-12)
    assert np.linalg.det(R_ego_cam) == pytest.approx(1)


def test_intrinsics_follow_the_angle_of_view_and_scale_with_the_image():
    # 65 degrees over 1600 px: f = 800 / tan(32.5 deg) = 1255.7
    K = rig.intrinsics("CAM_FRONT", 1600, 900)
    assert K[0, 0] == pytest.approx(1255.7, abs=0.1)
    assert K[:2, 2].tolist() == [800, 450]
    half = rig.intrinsics("CAM_FRONT", 800, 450)
    np.testing.assert_allclose(half[:2], K[:2] / 2)


def test_lidar_rays_begin_behind_the_car_and_turn_clockwise():
    directions = rig.lidar_directions()
    assert directions.shape == (rig.LIDAR_RINGS * rig.LIDAR_AZIMUTHS, 3)
    np.testing.assert_allclose(np.linalg.norm(directions, axis=1), 1)
    of_ring = directions[rig.LIDAR_RINGS - 1 :: rig.LIDAR_RINGS]
    in_ego = rigid.apply(rig.T_ego_lidar(), of_ring) - rig.T_ego_lidar()[:3, 3]
    assert in_ego[0, 0] < -0.9
    # a quarter of a turn later, clockwise from above: from behind to the left
    assert in_ego[rig.LIDAR_AZIMUTHS // 4, 1] > 0.9
    elevation = np.rad2deg(np.arcsin(directions[: rig.LIDAR_RINGS, 2]))
    assert elevation[0] == pytest.approx(-30.67)
    assert elevation[-1] == pytest.approx(10.67)
    assert (np.diff(elevation) > 0).all()
