from dataclasses import replace

import numpy as np
import pytest

from perception.synthetic.face_patterns import FacePixels, second_color_share, window_lottery
from perception.synthetic.primitives import Pattern


def pixels(along, up, scale=1.0, footprint=1e-3) -> FacePixels:
    along, up = np.broadcast_arrays(np.array(along, np.float32), np.array(up, np.float32))
    n = len(along)
    return FacePixels(
        along=along.copy(),
        up=up.copy(),
        is_side=np.ones(n, bool),
        scale=np.full(n, scale, np.float32),
        footprint=np.full(n, footprint, np.float32),
        salt=np.zeros(n, np.int64),
    )


def test_windows_sit_at_whole_periods_of_side_faces():
    # Period 2 m, half a window 0.29 * 2 = 0.58 m wide and 0.62 m high.
    face = pixels([0.0, 0.57, 0.59, 2.0, 0.0, 0.0], [0.0, 0.0, 0.0, 4.0, 0.61, 0.63], scale=2.0)
    assert second_color_share(Pattern.WINDOWS, face).tolist() == [1, 1, 0, 1, 1, 0]
    roof = replace(face, is_side=np.zeros(6, bool))
    assert not second_color_share(Pattern.WINDOWS, roof).any()


def test_bands_alternate_upwards_and_diagonals_both_ways():
    # Bands 0.5 m high, the second colour round 0 and 1 m: -0.25 .. 0.25, 0.75 .. 1.25.
    up = [0.0, 0.2, 0.3, 0.7, 0.8, 1.2]
    assert second_color_share(Pattern.BANDS, pixels(0.0, up, 0.5)).tolist() == [1, 1, 0, 0, 1, 1]
    # 0.4 m to the left and 0.4 m up cancel; both to one side make 0.8 m.
    face = pixels([0.4, 0.2, 0.4], [-0.4, 0.2, 0.4], 0.5)
    assert second_color_share(Pattern.DIAGONAL, face).tolist() == [1, 0, 1]


def test_edges_are_soft_where_pixels_are_coarse():
    # A band's edge at 0.25 m goes through the middle of a pixel.
    share = second_color_share(Pattern.BANDS, pixels([0.0], [0.25], 0.5, footprint=0.1))
    assert share[0] == pytest.approx(0.5)


def test_every_share_is_a_share():
    rng = np.random.default_rng(0)
    face = pixels(rng.uniform(-50, 50, 2000), rng.uniform(-50, 50, 2000), 0.7, footprint=0.05)
    for pattern in Pattern:
        share = second_color_share(pattern, face)
        assert share.dtype == np.float32
        assert share.min() >= 0
        assert share.max() <= 1
        assert (share.std() > 0.1) == (pattern != Pattern.PLAIN)


def test_windows_draw_their_own_lots():
    column, row = (plane.ravel() for plane in np.meshgrid(np.arange(40.0), np.arange(40.0)))
    lots = window_lottery(pixels(column, row)).reshape(40, 40)
    # Evenly spread: 60 of 256 below 60 are 23 %.
    assert 0.15 < (lots < 60).mean() < 0.32
    np.testing.assert_array_equal(lots.ravel(), window_lottery(pixels(column + 0.2, row - 0.3)))
