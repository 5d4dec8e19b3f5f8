import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perception.geometry import rigid
from runtime.ego_motion import EgoPoseBuffer, interpolate

MS = 1_000_000


def pose(x: float, yaw: float) -> np.ndarray:
    return rigid.transform_from_quaternion(rigid.quaternion_from_yaw(float(yaw)), (x, 0, 0))


def test_between_two_poses_position_and_heading_go_evenly() -> None:
    buffer = EgoPoseBuffer()
    buffer.add(0, pose(0.0, 0.0))
    buffer.add(20 * MS, pose(2.0, 0.4))
    found = buffer.at(5 * MS)
    assert found is not None
    np.testing.assert_allclose(found, pose(0.5, 0.1), atol=1e-12)


def test_known_stamps_give_the_pose_itself_whatever_the_order_of_arrival() -> None:
    buffer = EgoPoseBuffer()
    for index in (2, 0, 1):
        buffer.add(index * 20 * MS, pose(index, 0.1 * index))
    for index in range(3):
        np.testing.assert_array_equal(buffer.at(index * 20 * MS), pose(index, 0.1 * index))
    buffer.add(20 * MS, pose(9.0, 0.0))
    assert len(buffer) == 3
    assert buffer.at(20 * MS)[0, 3] == 9.0


@pytest.mark.parametrize(("stamp_ms", "x"), [(-21, None), (-20, 0), (40, 1), (41, None)])
def test_outside_the_known_span_only_the_tolerance_holds(stamp_ms: int, x: float | None) -> None:
    buffer = EgoPoseBuffer(tolerance_ns=20 * MS)
    buffer.add(0, pose(0, 0))
    buffer.add(20 * MS, pose(1, 0))
    found = buffer.at(stamp_ms * MS)
    assert (None if found is None else found[0, 3]) == x


def test_a_gap_in_the_odometry_is_not_bridged() -> None:
    buffer = EgoPoseBuffer(max_gap_ns=300 * MS)
    buffer.add(0, pose(0, 0))
    buffer.add(301 * MS, pose(1, 0))
    assert buffer.at(150 * MS) is None
    assert EgoPoseBuffer().at(0) is None


def test_memory_is_bounded_by_age_and_number() -> None:
    buffer = EgoPoseBuffer(max_age_ns=100 * MS, max_poses=5)
    for index in range(1000):
        buffer.add(index * MS, pose(index, 0))
    assert len(buffer) == 5
    buffer = EgoPoseBuffer(max_age_ns=100 * MS)
    for index in range(100):
        buffer.add(index * 20 * MS, pose(index, 0))
    assert len(buffer) == 6  # newest, and 20, 40, 60, 80, 100 ms before it


def test_time_that_was_set_back_starts_over() -> None:
    buffer = EgoPoseBuffer()
    buffer.add(1001 * MS, pose(5, 0))
    buffer.add(0, pose(1, 0))  # by more than a second
    assert len(buffer) == 1
    assert buffer.at(0)[0, 3] == 1
    assert buffer.counters == {"time jumped back": 1}


def test_a_pose_that_is_not_finite_is_counted_and_left_out() -> None:
    buffer = EgoPoseBuffer()
    buffer.add(0, np.full((4, 4), np.nan))
    assert len(buffer) == 0
    assert buffer.counters == {"pose not finite": 1}


def test_what_is_given_out_and_taken_in_is_a_copy() -> None:
    buffer, given_pose = EgoPoseBuffer(), pose(1, 0)
    buffer.add(0, given_pose)
    given_pose[0, 3] = 7
    buffer.at(0)[0, 3] = 8
    assert buffer.at(0)[0, 3] == 1


def test_half_a_turn_between_neighbours_has_no_answer() -> None:
    assert interpolate(pose(0, 0), pose(0, np.pi), 0.5) is None


angles = st.floats(-1.4, 1.4)


@given(st.tuples(angles, angles, angles), st.tuples(angles, angles, angles), st.floats(0, 1))
def test_interpolated_rotation_is_a_rotation_at_its_share_of_the_arc(
    first: tuple[float, ...], second: tuple[float, ...], fraction: float
) -> None:
    T_0, T_1 = _turned(first), _turned(second)
    found = interpolate(T_0, T_1, fraction)
    if found is None:
        return
    np.testing.assert_allclose(found[:3, :3] @ found[:3, :3].T, np.eye(3), atol=1e-9)
    whole = _angle(T_0, T_1)
    assert _angle(T_0, found) == pytest.approx(fraction * whole, abs=1e-6)
    assert _angle(found, T_1) == pytest.approx((1 - fraction) * whole, abs=1e-6)


def _turned(axis_angle: tuple[float, ...]) -> np.ndarray:
    angle = float(np.linalg.norm(axis_angle))
    axis = np.array(axis_angle) / (angle or 1.0)
    quaternion = (np.cos(angle / 2), *(np.sin(angle / 2) * axis))
    return rigid.transform_from_quaternion(quaternion, (0, 0, 0))


def _angle(T_0: np.ndarray, T_1: np.ndarray) -> float:
    # |R0 - R1| (Frobenius) = 2 sqrt(2) sin(angle / 2): well conditioned for small angles too.
    return 2 * float(np.arcsin(min(1.0, np.linalg.norm(T_0[:3, :3] - T_1[:3, :3]) / np.sqrt(8))))


def test_time_that_was_set_back_by_less_than_a_second_starts_over_too() -> None:
    buffer = EgoPoseBuffer()
    for step in range(10):
        buffer.add((1000 + 20 * step) * MS, pose(step, 0))
    # 50 Hz from 880 ms on, 300 ms behind: after 80 ms they may be late poses, after 100 ms not
    for step in range(5):
        buffer.add((880 + 20 * step) * MS, pose(50, 0))
    assert not buffer.counters
    buffer.add(980 * MS, pose(50, 0))
    assert buffer.counters == {"time jumped back": 1}
    assert len(buffer) == 1
    assert buffer.at(1100 * MS) is None  # the old time's pose


def test_a_late_pose_is_no_step_of_time() -> None:
    buffer = EgoPoseBuffer()
    for step in range(10):
        buffer.add((1000 + 20 * step) * MS, pose(step, 0))
        buffer.add((800 + 20 * step) * MS, pose(step, 0))
    assert not buffer.counters
    assert len(buffer) == 20


def test_a_pose_that_the_car_cannot_have_driven_to_starts_over() -> None:
    buffer = EgoPoseBuffer()
    buffer.add(0, pose(0.0, 0))
    buffer.add(20 * MS, pose(50.0, 0))  # just possible
    buffer.add(40 * MS, pose(101.0, 0))
    buffer.add(60 * MS, pose(101.5, 0))
    assert buffer.counters == {"pose jumped": 1}
    assert len(buffer) == 2
    assert buffer.at(0) is None
    found = buffer.at(50 * MS)
    assert found is not None
    assert found[0, 3] == pytest.approx(101.25)


def test_over_a_gap_any_way_is_possible() -> None:
    buffer = EgoPoseBuffer(max_gap_ns=300 * MS)
    buffer.add(0, pose(0.0, 0))
    buffer.add(301 * MS, pose(500.0, 0))
    assert not buffer.counters
    assert buffer.at(0)[0, 3] == 0
