"""Rectangles that touch are refused, in space and in time."""

import numpy as np
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely.affinity import rotate, translate

from perception.synthetic.occupancy import Occupancy, gap, inside_square


def _gap(first: tuple[float, ...], second: tuple[float, ...]) -> float:
    """Of two rectangles x, y, yaw, half length, half width."""
    a, b = np.array(first, dtype=np.float64), np.array(second, dtype=np.float64)
    return float(gap((b - a)[None, :2], a[2:3], a[None, 3:], b[2:3], b[None, 3:])[0])


def test_gap_by_hand() -> None:
    # 4 x 2 m at 0 and at x = 5: 5 - 2 - 2 = 1 m apart.
    assert np.isclose(_gap((0, 0, 0, 2, 1), (5, 0, 0, 2, 1)), 1.0)
    # The second turned by 90 degrees reaches only 1 m towards the first: 5 - 2 - 1.
    assert np.isclose(_gap((0, 0, 0, 2, 1), (5, 0, np.pi / 2, 2, 1)), 2.0)
    # Turned by 45 degrees its corner reaches (2 + 1) / sqrt(2).
    assert np.isclose(_gap((0, 0, 0, 2, 1), (5, 0, np.pi / 4, 2, 1)), 3 - 3 / 2**0.5)


pose = st.tuples(
    st.floats(-6, 6), st.floats(-6, 6), st.floats(-7, 7), st.floats(0.2, 4), st.floats(0.2, 2)
)


@settings(max_examples=150, deadline=None)
@given(pose, pose)
def test_sign_of_the_gap_is_that_of_polygons(
    first: tuple[float, ...], second: tuple[float, ...]
) -> None:
    polygons = [
        translate(rotate(shapely.box(-h, -w, h, w), yaw, use_radians=True), x, y)
        for x, y, yaw, h, w in (first, second)
    ]
    found = _gap(first, second)
    distance = polygons[0].distance(polygons[1])
    if distance > 1e-6:
        assert 0 < found <= distance + 1e-6
    elif polygons[0].intersection(polygons[1]).area > 1e-6:
        assert found < 0
    assert np.isclose(found, _gap(second, first))


def test_standing_neighbours_need_the_margin() -> None:
    occupancy = Occupancy(2.0)
    assert occupancy.admit(np.array([[0.0, 0.0, 0.0]]), (4.0, 2.0), 0.2)
    assert not occupancy.admit(np.array([[0.0, 2.1, 0.0]]), (4.0, 2.0), 0.2)  # gap 0.1 m
    assert occupancy.admit(np.array([[0.0, 2.3, 0.0]]), (4.0, 2.0), 0.2)  # gap 0.3 m
    assert not occupancy.is_free(np.array([[0.0, 2.3, 0.0]]), (0.1, 0.1), 0.0)


def test_two_may_use_a_place_at_different_times() -> None:
    occupancy = Occupancy(10.0)
    times = occupancy.times
    north = np.stack([0 * times, 5 * times - 25, 0 * times + np.pi / 2], axis=-1)  # at 0 at 5 s
    assert occupancy.admit(north, (4.0, 2.0), 0.2)
    east_now = np.stack([5 * times - 25, 0 * times, 0 * times], axis=-1)
    east_later = np.stack([5 * times - 40, 0 * times, 0 * times], axis=-1)
    assert not occupancy.is_free(east_now, (4.0, 2.0), 0.2)
    assert occupancy.is_free(east_later, (4.0, 2.0), 0.2)
    # Nobody may stand in its way, and it may not drive through who stands.
    assert not occupancy.is_free(np.array([[0.0, 3.0, 0.0]]), (1.0, 1.0), 0.2)
    assert occupancy.admit(np.array([[20.0, 0.0, 0.0]]), (1.0, 1.0), 0.2)
    assert not occupancy.is_free(east_now + np.array([40.0, 0.0, 0.0]), (4.0, 2.0), 0.2)


def test_room_for_more_than_the_first_table() -> None:
    occupancy = Occupancy(1.0)
    for number in range(300):
        occupancy.add(np.array([[3.0 * number, 0.0, 0.0]]), (2.0, 2.0))
        moving = np.tile([3.0 * number, 50.0, 0.0], (len(occupancy.times), 1))
        occupancy.add(moving, (2.0, 2.0))
    assert not occupancy.is_free(np.array([[0.0, 0.0, 0.0]]), (1.0, 1.0), 0.0)
    assert not occupancy.is_free(np.array([[897.0, 0.0, 0.0]]), (1.0, 1.0), 0.0)
    assert not occupancy.is_free(np.array([[897.0, 50.0, 0.0]]), (1.0, 1.0), 0.0)
    assert occupancy.is_free(np.array([[900.0, 25.0, 0.0]]), (1.0, 1.0), 0.0)


def test_inside_square() -> None:
    points = np.array([[5.0, 5.0], [1.0, 5.0], [5.0, 9.5]])
    assert inside_square(points, 10.0, 2.0).tolist() == [True, False, False]
