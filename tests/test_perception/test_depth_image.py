import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perception.geometry import camera, rigid
from perception.geometry.depth_image import depth_image

HEIGHT, WIDTH = 6, 8
K = np.array([[10.0, 0, 4], [0, 10, 3], [0, 0, 1]])
T_EGO_CAM = np.eye(4)
T_EGO_CAM[:3, :3] = [[0, 0, 1], [-1, 0, 0], [0, -1, 0]]  # looks along ego x


def points(*xyz: tuple[float, float, float]) -> np.ndarray:
    columns = np.zeros((5, len(xyz)), np.float32)
    columns[:3] = np.array(xyz, np.float32).T
    return columns


def image_of(*xyz: tuple[float, float, float]) -> np.ndarray:
    return depth_image(points(*xyz), T_EGO_CAM, K, HEIGHT, WIDTH)


def test_points_by_hand():
    # u = 4 - 10 y / x, v = 3 - 10 z / x, depth = x:
    # (5, 0, 0) -> (4, 3); (5, 1, 0) -> (2, 3); (4, -0.5, 0.9) -> (5.25, 0.75) -> pixel (5, 0)
    expected = np.zeros((HEIGHT, WIDTH), np.float32)
    expected[3, 4], expected[3, 2], expected[0, 5] = 5, 5, 4
    np.testing.assert_array_equal(
        image_of((5.0, 0.0, 0.0), (5.0, 1.0, 0.0), (4.0, -0.5, 0.9)), expected
    )


@pytest.mark.parametrize(
    ("y", "z", "pixel"),
    [
        (3.9, 0.0, (3, 0)),  # u = 0.1
        (4.1, 0.0, None),  # u = -0.1, which truncation would put into column 0
        (-3.9, 0.0, (3, 7)),  # u = 7.9
        (-4.1, 0.0, None),  # u = 8.1
        (0.0, 2.9, (0, 4)),  # v = 0.1
        (0.0, 3.1, None),
        (0.0, -2.9, (5, 4)),  # v = 5.9
        (0.0, -3.1, None),
        (4.0, 0.0, (3, 0)),  # u = 0: the first pixel begins there
        (-4.0, 0.0, None),  # u = 8: the last has ended
        (0.0, 3.0, (0, 4)),
        (0.0, -3.0, None),
    ],
)
def test_the_image_ends_where_its_last_pixel_ends(y, z, pixel):
    image = image_of((10.0, y, z))
    assert list(zip(*np.nonzero(image), strict=True)) == ([] if pixel is None else [pixel])


@given(st.permutations([7.0, 3.0, 5.0, 20.0]))
def test_the_nearest_of_a_pixel_s_points_stays_in_any_order(depths):
    image = image_of(*((depth, 0.0, 0.0) for depth in depths))
    assert image[3, 4] == 3.0
    assert np.count_nonzero(image) == 1


def test_points_behind_the_camera_or_in_its_plane_are_dropped_not_clamped():
    image = image_of((-5.0, 0.0, 0.0), (0.0, 0.0, 0.0), (0.1, 0.0, 0.0), (-1e-5, 0.0, 0.0))
    assert not image.any()
    beside = image_of((-5.0, 0.0, 0.0), (8.0, 0.0, 0.0))
    assert beside[3, 4] == 8.0


def test_numbers_that_are_none_are_dropped():
    with np.errstate(all="raise"):
        image = image_of(
            (np.nan, 0.0, 0.0), (np.inf, 0.0, 0.0), (5.0, np.inf, 0.0), (5.0, np.nan, 0.0)
        )
    assert not image.any()


def test_no_points():
    assert not depth_image(np.zeros((5, 0), np.float32), T_EGO_CAM, K, HEIGHT, WIDTH).any()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_is_the_plain_projection_and_changes_no_input(seed):
    # against a loop over `camera.project`, with a random camera and image augmentation
    random = np.random.default_rng(seed)
    T_ego_cam = T_EGO_CAM.copy()
    yaw = random.uniform(-np.pi, np.pi)
    T_yaw = rigid.transform_from_quaternion(rigid.quaternion_from_yaw(yaw), random.normal(size=3))
    T_ego_cam = T_yaw @ T_ego_cam
    angle, zoom = random.uniform(-0.1, 0.1), random.uniform(0.5, 2)
    A = np.array(
        [
            [-zoom * np.cos(angle), zoom * np.sin(angle), WIDTH],  # mirrored
            [zoom * np.sin(angle), zoom * np.cos(angle), random.uniform(-2, 2)],
            [0, 0, 1],
        ]
    )
    K_img_aug = A @ K
    points_ego = random.normal(scale=8, size=(5, 400)).astype(np.float32)
    pixels, depth, in_front = camera.project(points_ego[:3].T.astype(float), T_ego_cam, K_img_aug)
    # without the points that rounding may carry over the edge of a pixel
    kept = np.abs(pixels - np.round(pixels)).min(axis=1) > 1e-4
    points_ego = np.ascontiguousarray(points_ego[:, kept])
    before = points_ego.copy(), T_ego_cam.copy(), K_img_aug.copy()
    image = depth_image(points_ego, T_ego_cam, K_img_aug, HEIGHT, WIDTH)

    expected = np.full((HEIGHT, WIDTH), np.inf)
    for (u, v), d, front in zip(pixels[kept], depth[kept], in_front[kept], strict=True):
        if front and 0 <= u < WIDTH and 0 <= v < HEIGHT:
            row, column = int(np.floor(v)), int(np.floor(u))
            expected[row, column] = min(expected[row, column], d)
    expected[np.isinf(expected)] = 0
    np.testing.assert_allclose(image, expected, rtol=1e-5)
    assert image.dtype == np.float32
    for old, new in zip(before, (points_ego, T_ego_cam, K_img_aug), strict=True):
        np.testing.assert_array_equal(old, new)
