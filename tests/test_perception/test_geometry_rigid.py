import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from perception.geometry import camera, rigid

angles = st.floats(-10, 10)
lengths = st.floats(-100, 100)


@st.composite
def transforms(draw) -> np.ndarray:
    q = np.array(draw(st.lists(st.floats(-1, 1), min_size=4, max_size=4)))
    if np.linalg.norm(q) < 0.1:
        q = np.array([1.0, 0, 0, 0])
    t = draw(st.lists(lengths, min_size=3, max_size=3))
    return rigid.transform_from_quaternion(q / np.linalg.norm(q), t)


def test_quaternions_are_w_x_y_z() -> None:
    # 90 degrees about z takes x to y; about x takes y to z
    half = np.sqrt(0.5)
    about_z = rigid.transform_from_quaternion((half, 0, 0, half), (1, 2, 3))
    np.testing.assert_allclose(rigid.apply(about_z, np.array([[1.0, 0, 0]])), [[1, 3, 3]])
    about_x = rigid.transform_from_quaternion((half, half, 0, 0), (0, 0, 0))
    np.testing.assert_allclose(
        rigid.apply(about_x, np.array([[0.0, 1, 0]])), [[0, 0, 1]], atol=1e-15
    )


@pytest.mark.parametrize(
    ("quaternion", "translation", "message"),
    [
        ((1, 1, 0, 0), (0, 0, 0), "length 1.4142, expected 1"),
        ((0, 0, 0, 0), (0, 0, 0), "length 0.0000"),
        ((np.nan, 0, 0, 1), (0, 0, 0), "no finite pose"),
        ((1, 0, 0, 0), (0, np.inf, 0), "no finite pose"),
        ((1, 0, 0), (0, 0, 0), "no finite pose"),
    ],
)
def test_wrong_poses_are_refused(quaternion, translation, message) -> None:
    with pytest.raises(ValueError, match=message):
        rigid.transform_from_quaternion(quaternion, translation)


@given(transforms(), transforms(), st.lists(st.tuples(lengths, lengths, lengths), max_size=5))
def test_inverse_and_chains(T_a_b: np.ndarray, T_b_c: np.ndarray, rows: list) -> None:
    points_c = np.array(rows, dtype=np.float64).reshape(-1, 3)
    before = T_a_b.copy(), points_c.copy()
    np.testing.assert_allclose(T_a_b[:3, :3] @ T_a_b[:3, :3].T, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(T_a_b[:3, :3]), 1)
    np.testing.assert_allclose(rigid.inverse(T_a_b) @ T_a_b, np.eye(4), atol=1e-10)
    points_a = rigid.apply(T_a_b @ T_b_c, points_c)
    np.testing.assert_allclose(
        points_a, rigid.apply(T_a_b, rigid.apply(T_b_c, points_c)), atol=1e-9
    )
    np.testing.assert_allclose(rigid.apply(rigid.inverse(T_a_b @ T_b_c), points_a), points_c,
                               atol=1e-9)  # fmt: skip
    np.testing.assert_array_equal(before[0], T_a_b)
    np.testing.assert_array_equal(before[1], points_c)


@given(angles)
def test_yaw_of_a_heading(yaw: float) -> None:
    T = rigid.transform_from_quaternion(rigid.quaternion_from_yaw(yaw), (1, 2, 3))
    difference = rigid.yaw_of(T) - yaw
    assert np.cos(difference) == pytest.approx(1)
    # the heading is where x points
    np.testing.assert_allclose(T[:3, 0], [np.cos(yaw), np.sin(yaw), 0], atol=1e-12)


def random_transforms(number: int) -> np.ndarray:
    random = np.random.default_rng(0)
    quaternions = random.normal(size=(number, 4))
    quaternions /= np.linalg.norm(quaternions, axis=1, keepdims=True)
    return np.stack(
        [rigid.transform_from_quaternion(q, random.normal(size=3)) for q in quaternions]
    )


def test_numpy_and_torch_agree_on_batches() -> None:
    T = random_transforms(6).reshape(2, 3, 4, 4)
    points = np.random.default_rng(1).normal(size=(2, 3, 5, 3))
    T_torch, points_torch = torch.from_numpy(T), torch.from_numpy(points)
    np.testing.assert_allclose(rigid.inverse(T_torch).numpy(), rigid.inverse(T), atol=1e-15)
    np.testing.assert_allclose(
        rigid.apply(T_torch, points_torch).numpy(), rigid.apply(T, points), atol=1e-14
    )
    np.testing.assert_allclose(np.asarray(rigid.yaw_of(T_torch)), rigid.yaw_of(T), atol=1e-15)
    # each of the batch is what it is alone
    np.testing.assert_allclose(rigid.inverse(T)[1, 2], rigid.inverse(T[1, 2]), atol=1e-15)


# Camera at ego (1, 0, 2) that looks along ego x: right = -y, down = -z.
T_EGO_CAM = np.array([[0.0, 0, 1, 1], [-1, 0, 0, 0], [0, -1, 0, 2], [0, 0, 0, 1]])
K_CAM = np.array([[100.0, 0, 80], [0, 100, 45], [0, 0, 1]])


def test_projection_by_hand() -> None:
    points_ego = np.array([
        [11.0, 0, 2],  # 10 m ahead on the axis: the principal point
        [11.0, 1, 2],  # 1 m to the left: 100 * 1 / 10 = 10 px to the left
        [21.0, 0, 0],  # 20 m ahead, 2 m below: 100 * 2 / 20 = 10 px down
        [0.0, 0, 2],   # behind
        [1.05, 0, 2],  # 0.05 m ahead: nearer than the limit of 0.1 m
    ])  # fmt: skip
    pixels, depth, in_front = camera.project(points_ego, T_EGO_CAM, K_CAM)
    np.testing.assert_allclose(pixels[:3], [[80, 45], [70, 45], [80, 55]])
    np.testing.assert_allclose(depth, [10, 10, 20, -1, 0.05])
    assert in_front.tolist() == [True, True, True, False, False]
    assert np.isfinite(pixels).all()


@given(transforms(), st.floats(0, 160), st.floats(0, 90), st.floats(0.2, 100))
def test_a_pixel_and_its_depth_are_where_they_came_from(T_ego_cam, u, v, depth) -> None:
    point_cam = depth * np.linalg.inv(K_CAM) @ [u, v, 1]
    pixels, found_depth, in_front = camera.project(
        rigid.apply(T_ego_cam, point_cam[None]), T_ego_cam, K_CAM
    )
    # 200 m from the origin in float64: 3e-14 m, times 100 px / 0.2 m
    np.testing.assert_allclose(pixels, [[u, v]], atol=1e-8)
    np.testing.assert_allclose(found_depth, [depth], atol=1e-10)
    assert in_front.all()


def test_projection_agrees_between_numpy_and_torch() -> None:
    points = np.random.default_rng(0).uniform(-20, 20, (50, 3))
    expected = camera.project(points, T_EGO_CAM, K_CAM)
    got = camera.project(*(torch.from_numpy(a) for a in (points, T_EGO_CAM, K_CAM)))
    for a, b in zip(expected, got, strict=True):
        np.testing.assert_allclose(b.numpy(), a, atol=1e-12)


def test_inverse_3x3_is_the_inverse() -> None:
    random = np.random.default_rng(0)
    for A in random.normal(size=(50, 3, 3)):
        np.testing.assert_allclose(rigid.inverse_3x3(A), np.linalg.inv(A), rtol=1e-8, atol=1e-10)
    with pytest.raises(ValueError, match="has no inverse"):
        rigid.inverse_3x3(np.zeros((3, 3)))


def test_columns_are_transformed() -> None:
    random = np.random.default_rng(1)
    T, columns = random.normal(size=(3, 4)), random.normal(size=(3, 100))
    expected = T[:, :3] @ columns + T[:, 3:]
    np.testing.assert_allclose(rigid.apply_to_columns(T, columns), expected, rtol=1e-11, atol=1e-14)


def test_a_quaternion_survives_the_way_through_a_transform() -> None:
    for q in np.random.default_rng(2).normal(size=(50, 4)):
        T = rigid.transform_from_quaternion(q / np.linalg.norm(q), (1.0, 2.0, 3.0))
        back = rigid.transform_from_quaternion(rigid.quaternion_from_transform(T), (1.0, 2.0, 3.0))
        np.testing.assert_allclose(back, T, atol=1e-12)
