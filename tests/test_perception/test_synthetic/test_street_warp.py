import numpy as np
import pytest
from shapely.geometry import Polygon

from perception.synthetic.street_warp import Warp, densify


def warp(**changes) -> Warp:
    still = {
        "amplitude": (0.0, 0.0),
        "wavelength": (100.0, 100.0),
        "phase": (0.0, 0.0),
        "rotation": 0.0,
        "center": 10.0,
    }
    return Warp(**{**still, **changes})


def test_a_quarter_turn_takes_x_to_y():
    np.testing.assert_allclose(
        warp(rotation=np.pi / 2).points(np.array([[3.0, 1.0]])), [[9.0, 13.0]], atol=1e-12
    )


def test_x_shifts_by_the_sine_of_y():
    # A quarter of the wave: sin = 1, so x moves by the whole amplitude.
    moved = warp(amplitude=(2.0, 0.0)).points(np.array([[0.0, 25.0], [0.0, 0.0]]))
    np.testing.assert_allclose(moved, [[12.0, 35.0], [10.0, 10.0]], atol=1e-12)


def test_lines_get_points_in_between_and_keep_their_own():
    line = densify(np.array([[0.0, 0.0], [5.0, 0.0], [5.0, 1.0]]))
    # 5 m make three pieces of 1.67 m, 1 m stays one.
    np.testing.assert_allclose(line, [[0, 0], [5 / 3, 0], [10 / 3, 0], [5, 0], [5, 1]])


def test_a_bent_polygon_keeps_its_hole():
    ring = np.array([[0.0, 0.0], [9.0, 0.0], [9.0, 9.0], [0.0, 9.0]])
    bent = warp().polygon(Polygon(ring, [ring / 3 + 2.0]))
    assert bent.area == pytest.approx(81.0 - 9.0)
