"""The compiled loops against numpy's, bit by bit, and both against sums by hand."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perception import native
from perception.geometry import lidar_points
from perception.geometry.grid import BevGrid
from perception.geometry.lidar_points import CellVolume

VOLUMES = [
    # edges that float32 holds, and edges that it rounds
    CellVolume(
        grid=BevGrid(x_min=-6.0, x_max=6.5, y_min=-4.0, y_max=5.0, cell=0.25),
        z_min=-3.0,
        z_max=2.25,
        num_slices=3,
    ),
    CellVolume(
        grid=BevGrid(x_min=-6.0, x_max=6.3, y_min=-4.5, y_max=4.8, cell=0.3),
        z_min=-3.1,
        z_max=2.9,
        num_slices=4,
    ),
]
ODD = np.array([np.nan, np.inf, -np.inf, 3e38, -3e38, 1e-42, 0.0, -0.0], np.float32)

needs_library = pytest.mark.skipif(
    native.library() is None, reason="the native library was not built"
)


def cloud(random: np.random.Generator, num_points: int, num_rows: int = 5) -> np.ndarray:
    """Points of which some lie on edges of cells, and some have odd numbers."""
    points = random.normal(scale=4, size=(num_rows, num_points)).astype(np.float32)
    on_edge = random.random(points.shape) < 0.1
    step = random.choice(np.array([0.25, 0.3], np.float32), np.count_nonzero(on_edge))
    points[on_edge] = np.round(points[on_edge] / step) * step
    is_odd = random.random(points.shape) < 0.02
    points[is_odd] = random.choice(ODD, np.count_nonzero(is_odd))
    return points


def both(function, *arguments):
    """What numpy and what the library gives; every array in the arguments is left as it was."""
    before = [np.copy(a) for a in arguments if isinstance(a, np.ndarray)]
    compiled = function(*arguments)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "library", lambda: None)
        plain = function(*arguments)
    after = [a for a in arguments if isinstance(a, np.ndarray)]
    for old, new in zip(before, after, strict=True):
        np.testing.assert_array_equal(old, new)
    return plain, compiled


def assert_same_bits(plain: np.ndarray, compiled: np.ndarray) -> None:
    assert plain.dtype == compiled.dtype
    assert plain.shape == compiled.shape
    # NaN is NaN, whatever its bits; zeros differ by their sign
    np.testing.assert_array_equal(plain, compiled)
    if plain.dtype == np.float32:
        number = ~np.isnan(plain)
        np.testing.assert_array_equal(np.signbit(plain[number]), np.signbit(compiled[number]))


sizes = st.sampled_from([0, 1, 7, 255, 256, 257, 900])


@needs_library
@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), sizes, st.sampled_from(["rows", "columns", "every second", "back"]))
def test_a_sweep_comes_into_the_ego_frame_alike(seed, num_points, layout):
    random = np.random.default_rng(seed)
    rows = {
        "rows": lambda: cloud(random, num_points, 4),
        "columns": lambda: np.ascontiguousarray(cloud(random, num_points).T).T,
        "every second": lambda: cloud(random, 2 * num_points, 4)[:, ::2],
        "back": lambda: cloud(random, num_points, 4)[:, ::-1],
    }[layout]()
    T_ego_lidar = random.normal(size=(3, 4)).astype(np.float32)

    def points_of(points_lidar: np.ndarray) -> np.ndarray:
        room = np.full((5, num_points + 3), -7.0, np.float32)
        with np.errstate(all="ignore"):
            num = lidar_points.sweep_to_ego(points_lidar, T_ego_lidar, 1.5, 0.25, room[:, 2:])
        assert (room[:, :2] == -7.0).all()
        assert (room[:, 2 + num_points :] == -7.0).all()
        return room[:, 2 : 2 + num]

    assert_same_bits(*both(points_of, rows))


@pytest.mark.parametrize("compiled", [pytest.param(True, marks=needs_library), False])
def test_a_sweep_by_hand(compiled, monkeypatch):
    if not compiled:
        monkeypatch.setattr(native, "library", lambda: None)
    # a quarter turn to the left and 10 m ahead: (x, y, z) becomes (10 - y, x, z + 2)
    T_ego_lidar = np.array([[0, -1, 0, 10], [1, 0, 0, 0], [0, 0, 1, 2]], np.float32)
    points_lidar = np.array(
        [[3, 4, 5, 60], [0.5, -0.9, 0, 70], [0.5, 1, 0, 80]], np.float32
    ).T  # the second lies on the car: both below 1 m
    points_ego = np.zeros((5, 3), np.float32)
    assert lidar_points.sweep_to_ego(points_lidar, T_ego_lidar, 1.0, 0.5, points_ego) == 2
    assert points_ego[:, :2].T.tolist() == [[6, 3, 7, 60, 0.5], [9, 0.5, 2, 80, 0.5]]


@needs_library
@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10_000), sizes, st.sampled_from(VOLUMES), st.booleans(), st.integers(1, 4))
def test_pillars_are_filled_alike(seed, num_points, volume, is_cut, max_points):
    random = np.random.default_rng(seed)
    points_ego = cloud(random, num_points + 2)[:, 1:-1]  # rows with a gap between them
    volume = volume if is_cut else dataclasses.replace(volume, num_slices=1)
    plain, compiled = both(lidar_points.occupied_cells, points_ego, volume)
    for of_plain, of_compiled in zip(plain, compiled, strict=True):
        assert_same_bits(of_plain, of_compiled)
    cell, kept = plain
    kept = kept[random.random(len(kept)) < random.choice([0.5, 1.0])]
    plain, compiled = both(
        lidar_points.fill_pillars, points_ego, cell, volume.num_cells, kept, max_points
    )
    for of_plain, of_compiled in zip(plain, compiled, strict=True):
        assert_same_bits(of_plain, of_compiled)


@needs_library
@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), sizes)
def test_depths_are_drawn_alike(seed, num_points):
    random = np.random.default_rng(seed)
    points_ego = cloud(random, num_points)
    P = random.normal(size=(3, 4)).astype(np.float32)
    P[:2] += 6 * P[2]  # about the middle of the picture

    def picture(points: np.ndarray) -> np.ndarray:
        image = np.full((9, 13), -7.0, np.float32)
        lidar_points.nearest_depths(points, P, 0.1, image)
        return image

    plain, compiled = both(picture, points_ego)
    assert_same_bits(plain, compiled)
    assert num_points < 900 or (plain > 0).any()


@needs_library
def test_cells_that_are_none_are_refused():
    points_ego = np.zeros((5, 3), np.float32)
    for cell, kept in [([0, 9, 1], [0]), ([0, 1, 1], [1, 0]), ([0, 1, 1], [8]), ([0, 0, 0], [-1])]:
        with pytest.raises(ValueError, match="do not belong together"):
            lidar_points.fill_pillars(
                points_ego, np.array(cell, np.int32), 8, np.array(kept, np.int32), 2
            )


@pytest.mark.parametrize("compiled", [pytest.param(True, marks=needs_library), False])
def test_a_point_that_rounding_carries_over_the_edge_is_in_the_last_pixel(compiled, monkeypatch):
    if not compiled:
        monkeypatch.setattr(native, "library", lambda: None)
    # u * depth is less than 13 * depth, and yet u, rounded, is 13
    u_depth, depth = np.float32(31.039628982543945), np.float32(2.3876638412475586)
    assert u_depth < 13 * depth
    assert u_depth / depth == 13
    points_ego = np.array([[u_depth], [0.5], [depth]], np.float32)
    image = np.zeros((9, 13), np.float32)
    lidar_points.nearest_depths(points_ego, np.eye(3, 4, dtype=np.float32), 0.1, image)
    assert image[0, 12] == depth
    assert np.count_nonzero(image) == 1
