import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perception.geometry import boxes, rigid

number = st.floats(-50, 50)
size = st.floats(0.1, 10)
box_rows = st.tuples(number, number, number, size, size, size, st.floats(-3, 3), number, number)


def planar(yaw: float, x: float, y: float, z: float) -> np.ndarray:
    return rigid.transform_from_quaternion(rigid.quaternion_from_yaw(yaw), (x, y, z))


@given(st.floats(-100, 100))
def test_angles_are_wrapped(angle: float) -> None:
    wrapped = boxes.wrap_angle(angle)
    assert -np.pi < wrapped <= np.pi
    turns = (angle - wrapped) / (2 * np.pi)
    assert turns == pytest.approx(round(turns), abs=1e-9)


def test_half_a_turn_is_plus_pi() -> None:
    assert boxes.wrap_angle(np.pi) == pytest.approx(np.pi)
    assert boxes.wrap_angle(-np.pi) == pytest.approx(np.pi)


def test_corners_by_hand() -> None:
    # heading +y (90 degrees): length 4 along y, width 2 along x, left is -x
    corners = boxes.corners(np.array([[10.0, 20, 1, 4, 2, 2, np.pi / 2, 0, 0]]))
    bottom = [[9, 22, 0], [9, 18, 0], [11, 18, 0], [11, 22, 0]]  # front left, counter-clockwise
    top = [[x, y, 2] for x, y, _ in bottom]
    np.testing.assert_allclose(corners, [bottom + top], atol=1e-12)


def test_transform_by_hand() -> None:
    # src sits at (5, 0, 1) of dst and is turned left by 90 degrees: its x is dst's y
    box = np.array([[2.0, 1, 0, 4, 2, 1.5, 0.5, 3.0, 0.0]])
    moved = boxes.transform(planar(np.pi / 2, 5, 0, 1), box)
    expected = [[5 - 1, 2, 1, 4, 2, 1.5, 0.5 + np.pi / 2, 0, 3]]
    np.testing.assert_allclose(moved, expected, atol=1e-12)
    assert box[0, 0] == 2.0  # the input is as it was


@given(st.lists(box_rows, max_size=4), st.floats(-3, 3), number, number)
def test_transform_and_back(rows: list, yaw: float, x: float, y: float) -> None:
    rows_src = np.array(rows, dtype=np.float64).reshape(-1, 9)
    T = planar(yaw, x, y, 0.5)
    there = boxes.transform(T, rows_src)
    np.testing.assert_allclose(boxes.transform(rigid.inverse(T), there), rows_src, atol=1e-9)
    # the corners move like any other points
    corners_dst = rigid.apply(T, boxes.corners(rows_src).reshape(-1, 3))
    np.testing.assert_allclose(boxes.corners(there).reshape(-1, 3), corners_dst, atol=1e-9)


def test_the_kind_of_number_and_unknown_velocities_stay() -> None:
    rows = np.array([[0, 0, 0, 1, 1, 1, 0, np.nan, np.nan]], np.float32)
    moved = boxes.transform(planar(0.3, 1, 2, 3), rows)
    assert moved.dtype == np.float32
    assert np.isnan(moved[0, boxes.VELOCITY]).all()
    assert np.isfinite(moved[0, : boxes.YAW + 1]).all()


def test_a_tilt_turns_the_yaw_only_in_second_order() -> None:
    # 1 degree of pitch: at most about tilt^2 / 4 = 8e-5 rad for any heading
    half = np.deg2rad(0.5)
    T = rigid.transform_from_quaternion((np.cos(half), 0, np.sin(half), 0), (0, 0, 0))
    rows = np.zeros((8, 9))
    rows[:, boxes.YAW] = np.linspace(-3, 3, 8)
    turned = boxes.transform(T, rows)
    assert np.abs(turned[:, boxes.YAW] - rows[:, boxes.YAW]).max() < 3e-4


def test_points_inside_by_hand() -> None:
    box = np.array([[10.0, 0, 1, 4, 2, 2, 0, 0, 0]])  # x 8..12, y -1..1, z 0..2
    points = np.array([
        [10.0, 0, 1], [12, 1, 2], [8, -1, 0],                 # middle; corners belong to the box
        [12.01, 0, 1], [10, 1.01, 1], [10, 0, 2.01], [np.nan, 0, 1],
    ])  # fmt: skip
    assert boxes.points_inside(box, points)[0].tolist() == [True] * 3 + [False] * 4


@given(box_rows, st.tuples(*[st.floats(-0.99, 0.99)] * 3), st.integers(0, 2), st.booleans())
def test_points_inside_follow_the_box(row, local, axis, far) -> None:
    T_world_box = planar(row[6], row[0], row[1], row[2])
    offset = np.array(local)
    if far:
        offset[axis] = np.copysign(1.01, offset[axis])
    point = rigid.apply(T_world_box, (offset * np.array(row[3:6]) / 2)[None])
    assert boxes.points_inside(np.array([row]), point).tolist() == [[not far]]
