import numpy as np
import pytest
from shapely.geometry import Point

from perception.synthetic.street_junctions import lane_pairs, outline, path, turn_of
from perception.synthetic.street_plan import Arm, Junction, Street

WIDE = Street(position=0.0, num_lanes=2, lane_width=3.0)
NARROW = Street(position=0.0, num_lanes=1, lane_width=3.0)
EAST, NORTH, WEST, SOUTH = range(4)


def arm(direction: int, street: Street) -> Arm:
    return Arm(direction=direction, street=street, stretch=0, reach=20.0, crossing_depth=0.0)


def junction(*arms: Arm) -> Junction:
    return Junction(center_plan=np.array([100.0, 50.0]), corner_radius=5.0, arms=arms)


def test_a_crossroads_is_a_plus_with_round_corners():
    area = outline(
        junction(arm(EAST, WIDE), arm(NORTH, NARROW), arm(WEST, WIDE), arm(SOUTH, NARROW))
    )
    assert area.is_valid
    assert area.bounds == pytest.approx((80.0, 30.0, 120.0, 70.0))
    # The kerbs meet at (+3, +6). The rounded corner's middle is at (+8, +11), 5 m from both kerbs:
    # the kerb passes (8 - 5/sqrt 2, 11 - 5/sqrt 2) = (4.46, 7.46).
    assert area.contains(Point(104.4, 57.4))
    assert not area.contains(Point(104.6, 57.6))


def test_a_bend_is_round_outside_too():
    area = outline(junction(arm(EAST, NARROW), arm(NORTH, NARROW)))
    # Outer corner at (-3, -3), radius 5 + 2 * 3 = 11 round (8, 8): passes 8 - 11/sqrt 2 = 0.22.
    assert area.contains(Point(100.3, 50.3))
    assert not area.contains(Point(100.1, 50.1))


def test_turns_are_named_by_where_one_comes_out():
    south = arm(SOUTH, WIDE)  # one drives in northwards
    assert turn_of(south, arm(NORTH, WIDE)) == "straight"
    assert turn_of(south, arm(WEST, WIDE)) == "left"
    assert turn_of(south, arm(EAST, WIDE)) == "right"


@pytest.mark.parametrize(
    ("leave", "side", "pairs"),
    [
        (NORTH, -1, [(0, 0), (1, 1)]),
        (WEST, -1, [(0, 0)]),  # across the opposite lanes: from the innermost lane
        (EAST, -1, [(1, 1)]),  # along the kerb
        (WEST, 1, [(1, 1)]),
        (EAST, 1, [(0, 0)]),
    ],
)
def test_each_turn_has_its_lane(leave, side, pairs):
    crossroads = junction(*(arm(direction, WIDE) for direction in range(4)))
    assert lane_pairs(crossroads, arm(SOUTH, WIDE), arm(leave, WIDE), side) == pairs


def test_lanes_merge_and_fork_where_their_number_changes():
    bend = junction(arm(EAST, WIDE), arm(NORTH, NARROW))
    assert lane_pairs(bend, *bend.arms, -1) == [(0, 0), (1, 0)]
    assert lane_pairs(bend, *bend.arms[::-1], -1) == [(0, 0), (0, 1)]


def test_a_turn_runs_round_the_middle_of_the_corner():
    crossroads = junction(*(arm(direction, NARROW) for direction in range(4)))
    line = path(crossroads, (arm(SOUTH, NARROW), arm(EAST, NARROW)), (0, 0), -1)
    # Northwards on the right: x = +1.5, from y = -20; out eastwards at y = -1.5.
    np.testing.assert_allclose(line[0], [101.5, 30.0])
    np.testing.assert_allclose(line[-1], [120.0, 48.5])
    # The corner's middle is at (+8, -8); the lane's middle passes 5 + 1.5 m from it.
    middle = np.array([108.0, 42.0])
    on_arc = (line[:, 0] < 107.9) & (line[:, 1] > 42.1)
    assert on_arc.sum() >= 4
    np.testing.assert_allclose(np.linalg.norm(line[on_arc] - middle, axis=-1), 6.5, atol=1e-9)
