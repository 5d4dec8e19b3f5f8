import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perception.geometry import camera, rigid
from perception.geometry.depth_image import depth_image
from perception.geometry.point_blocks import BLOCK_POINTS, PointBlocks

HEIGHT, WIDTH = 20, 40
K = np.array([[40.0, 0, 20], [0, 40, 10], [0, 0, 1]])  # 53 x 28 degrees
LOOKS_AHEAD = np.eye(4)
LOOKS_AHEAD[:3, :3] = [[0, 0, 1], [-1, 0, 0], [0, -1, 0]]


def turning_scan(random: np.random.Generator, num_points: int) -> np.ndarray:
    """Points in the order of their heading, with some noise: what a LiDAR sends."""
    heading = np.linspace(np.pi, -np.pi, num_points) + random.normal(0, 0.05, num_points)
    distance = random.uniform(0.5, 40, num_points)
    z = random.uniform(-2, 4, num_points)
    return np.array([np.cos(heading) * distance, np.sin(heading) * distance, z], np.float32)


def pose(yaw: float, pitch: float, x: float, y: float) -> np.ndarray:
    cos, sin = np.cos(pitch), np.sin(pitch)
    tilt = np.eye(4)
    tilt[:3, :3] = [[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]]
    T_yaw = rigid.transform_from_quaternion(rigid.quaternion_from_yaw(yaw), (x, y, 1.5))
    return T_yaw @ tilt @ LOOKS_AHEAD


def picture(points: np.ndarray, T_ego_cam: np.ndarray) -> np.ndarray:
    return depth_image(points, T_ego_cam, K, HEIGHT, WIDTH)


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 10_000),
    st.floats(-np.pi, np.pi),
    st.floats(-1.7, 1.7),
    st.floats(-3, 3),
    st.floats(-3, 3),
    st.booleans(),
)
def test_no_camera_misses_a_point(seed, yaw, pitch, x, y, in_order):
    random = np.random.default_rng(seed)
    points = turning_scan(random, random.integers(0, 20 * BLOCK_POINTS))
    if not in_order:
        points = points[:, random.permutation(points.shape[1])]
    T_ego_cam = pose(yaw, pitch, x, y)
    center = random.normal(0, 1, 2)
    found = PointBlocks(points, center).maybe_seen(T_ego_cam, K, HEIGHT, WIDTH)
    np.testing.assert_array_equal(picture(found, T_ego_cam), picture(points, T_ego_cam))


@pytest.mark.parametrize("yaw_deg", range(-180, 180, 30))
def test_a_camera_looks_at_its_sector(yaw_deg):
    # 53 of 360 degrees are 15 %; blocks of 1/40 of a turn and noise of 3 degrees widen that
    points = turning_scan(np.random.default_rng(0), 40 * BLOCK_POINTS)
    yaw = np.radians(yaw_deg)
    T_ego_cam = pose(yaw, 0.0, float(np.cos(yaw)), float(np.sin(yaw)))
    found = PointBlocks(points, np.zeros(2)).maybe_seen(T_ego_cam, K, HEIGHT, WIDTH)
    seen = camera.project(points.T.astype(float), T_ego_cam, K)
    inside = seen[2] & (np.abs(seen[0] - [20, 10]) < [20, 10]).all(axis=1)
    assert inside.sum() <= found.shape[1] < 0.3 * points.shape[1]


def test_a_camera_that_looks_down_looks_at_all():
    points = turning_scan(np.random.default_rng(0), 4 * BLOCK_POINTS)
    found = PointBlocks(points, np.zeros(2)).maybe_seen(pose(0.0, 1.5, 0.0, 0.0), K, HEIGHT, WIDTH)
    assert found.shape[1] == points.shape[1]


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_points_that_are_nowhere_hide_no_others(number):
    points = turning_scan(np.random.default_rng(0), 10 * BLOCK_POINTS)
    points[0, :: BLOCK_POINTS // 2] = number
    T_ego_cam = pose(0.5, 0, 1, 0)
    with np.errstate(all="raise"):
        found = PointBlocks(points, np.zeros(2)).maybe_seen(T_ego_cam, K, HEIGHT, WIDTH)
    np.testing.assert_array_equal(picture(found, T_ego_cam), picture(points, T_ego_cam))


def test_a_point_at_the_centre_has_no_heading_and_hides_no_others():
    points = np.zeros((3, 2 * BLOCK_POINTS), np.float32)
    points[:, BLOCK_POINTS + 5] = 9.0, 0.5, 1.0
    T_ego_cam = pose(0.0, 0.0, 1.0, 0.0)
    found = PointBlocks(points, np.zeros(2)).maybe_seen(T_ego_cam, K, HEIGHT, WIDTH)
    assert picture(found, T_ego_cam).max() == 8.0
