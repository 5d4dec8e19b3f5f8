import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perception.geometry.grid import BevGrid
from perception.geometry.pillars import PillarConfig, build_pillars

CONFIG = PillarConfig(
    grid=BevGrid(x_min=-2.0, x_max=3.0, y_min=-2.0, y_max=2.0, cell=1.0),
    z_min=-1.0,
    z_max=2.0,
    max_points=3,
    max_pillars=5,
    num_sweeps=10,
)

# quarters are exact in float32, so the edges of cells are hit exactly
quarters = st.integers(-14, 14).map(lambda i: i / 4)
odd = st.sampled_from([np.nan, np.inf, -np.inf, 1e30])
coordinates = st.one_of(quarters, quarters, quarters, odd)
usable_points = st.tuples(
    st.integers(-8, 11).map(lambda i: i / 4),
    st.integers(-8, 7).map(lambda i: i / 4),
    *(st.just(0.0), st.just(7.0), quarters),
)
points = st.tuples(coordinates, coordinates, coordinates, st.one_of(st.just(7.0), odd), quarters)


def pillars_by_brute_force(rows: list[tuple], config: PillarConfig) -> dict[int, list[tuple]]:
    """Cell -> its points in order, one point at a time."""
    cells: dict[int, list[tuple]] = {}
    for x, y, z, intensity, dt in rows:
        if not (np.isfinite([x, y, z, intensity]).all()):
            continue
        column, row = int(np.floor(x + 2)), int(np.floor(y + 2))
        if 0 <= column < 5 and 0 <= row < 4 and config.z_min <= z < config.z_max:
            cells.setdefault(row * 5 + column, []).append((x, y, z, intensity, dt))
    return dict(sorted(cells.items()))


def nearest_by_brute_force(cells: dict[int, list[tuple]], number: int) -> dict[int, list[tuple]]:
    """The cells whose centres are nearest to the origin; of equal ones the first."""

    def distance(cell: int) -> float:
        return (cell % 5 + 0.5 - 2) ** 2 + (cell // 5 + 0.5 - 2) ** 2

    nearest = sorted(cells, key=lambda cell: (distance(cell), cell))[:number]
    return {cell: cells[cell] for cell in sorted(nearest)}


@given(st.lists(points, max_size=60) | st.lists(usable_points, min_size=10, max_size=60))
@settings(max_examples=200, deadline=None)
def test_pillars_equal_those_of_a_plain_loop(rows: list[tuple]) -> None:
    array = np.array(rows, np.float32).reshape(-1, 5).T.copy()
    before = array.copy()
    found = build_pillars(array, CONFIG)
    np.testing.assert_array_equal(array, before)

    expected = pillars_by_brute_force(rows, CONFIG)
    kept = nearest_by_brute_force(expected, 5)
    assert found.num_dropped_pillars == len(expected) - len(kept)
    assert found.cell.tolist() == list(kept)
    assert found.num_points.tolist() == [min(len(v), 3) for v in kept.values()]
    content = np.zeros((len(kept), 3, 5), np.float32)
    for index, values in enumerate(kept.values()):
        content[index, : min(len(values), 3)] = values[:3]
    np.testing.assert_array_equal(found.points, content)
    number_of = {cell: index + 1 for index, cell in enumerate(kept)}
    assert found.cell_pillar.tolist() == [number_of.get(cell, 0) for cell in range(20)]


def test_slices_make_voxels() -> None:
    # z from -1 to 2 in three slices of 1 m; 5 x 4 cells: cell = (iz * 4 + iy) * 5 + ix
    config = dataclasses.replace(CONFIG, num_slices=3)
    points_ego = np.array(
        [
            [-1.5, -1.5, 1.5],  # ix 0, iy 0, iz 2: cell 40
            [-1.5, -1.5, -0.5],  # the same column, iz 0: cell 0
            [0.5, 1.5, 0.5],  # ix 2, iy 3, iz 1: cell (4 + 3) * 5 + 2 = 37
            [0.5, 1.5, 1.9999999],  # just below the top: iz 2, cell (8 + 3) * 5 + 2 = 57
            [0.5, 1.5, 2.0],  # outside
        ],
        np.float32,
    ).T
    columns = np.concatenate([points_ego, np.full((2, 5), 7.0, np.float32)])
    found = build_pillars(columns, config)
    assert found.cell.tolist() == [0, 37, 40, 57]
    assert found.num_points.tolist() == [1, 1, 1, 1]
    assert found.points[1, 0, :3].tolist() == [0.5, 1.5, 0.5]
    assert found.cell_pillar.size == 0
    assert config.num_cells == 60


@given(st.lists(points, max_size=60), st.integers(2, 4))
@settings(max_examples=100, deadline=None)
def test_voxels_are_pillars_cut_by_height(rows: list[tuple], num_slices: int) -> None:
    whole = dataclasses.replace(CONFIG, max_points=60, max_pillars=60)
    config = dataclasses.replace(whole, num_slices=num_slices)
    array = np.array(rows, np.float32).reshape(-1, 5).T.copy()
    voxels, pillars = build_pillars(array, config), build_pillars(array, whole)
    assert voxels.num_points.sum() == pillars.num_points.sum()
    assert set((voxels.cell % 20).tolist()) == set(pillars.cell.tolist())
    height = 3.0 / num_slices
    for cell, number, inside in zip(voxels.cell, voxels.num_points, voxels.points, strict=True):
        z = inside[:number, 2]
        low = -1.0 + (cell // 20) * height
        assert ((z >= low - 1e-6) & (z < low + height + 1e-6)).all()


def test_impossible_slices_are_refused() -> None:
    with pytest.raises(ValueError, match="0 slices"):
        dataclasses.replace(CONFIG, num_slices=0)
    with pytest.raises(ValueError, match="do not fit into 32 bits"):
        dataclasses.replace(CONFIG, num_slices=1 << 30)


def test_pillars_by_hand() -> None:
    points_ego = np.array([
        # x, y, z, intensity, dt: the newest sweep first
        [0.5, 0.5, 0.0, 10, 0.0],    # column 2, row 2: cell 12
        [-1.5, -1.5, 0.0, 20, 0.0],  # column 0, row 0: cell 0
        [0.1, 0.9, 1.9, 30, 0.05],   # cell 12 again
        [3.0, 0.0, 0.0, 40, 0.05],   # on the high edge: outside
        [0.5, 0.5, 2.0, 50, 0.05],   # on the upper limit: outside
    ], np.float32).T  # fmt: skip
    found = build_pillars(points_ego, CONFIG)
    assert found.cell.tolist() == [0, 12]
    assert found.num_points.tolist() == [1, 2]
    assert found.points[1, :, 3].tolist() == [10, 30, 0]
    assert found.cell_pillar[[0, 12]].tolist() == [1, 2]
    assert found.cell_pillar.sum() == 3


def test_the_newest_points_are_kept() -> None:
    rows = np.zeros((5, 6), np.float32)
    rows[4] = [0.0, 0.05, 0.1, 0.15, 0.2, 0.25]
    found = build_pillars(rows, CONFIG)
    np.testing.assert_array_equal(found.points[0, :, 4], rows[4, :3])


def test_no_points_at_all() -> None:
    found = build_pillars(np.zeros((5, 0), np.float32), CONFIG)
    assert found.points.shape == (0, 3, 5)
    assert found.num_dropped_pillars == 0
    assert not found.cell_pillar.any()


def test_as_many_pillars_as_allowed_are_not_dropped() -> None:
    x = np.arange(-1.5, 3.5)  # five cells
    rows = np.zeros((5, 5), np.float32)
    rows[0] = x
    assert build_pillars(rows, CONFIG).num_dropped_pillars == 0
    # centres at x = -1.5 .. 2.5, y = 0.5: the last is the furthest from the origin
    fewer = dataclasses.replace(CONFIG, max_pillars=4)
    found = build_pillars(rows, fewer)
    assert found.num_dropped_pillars == 1
    assert found.cell.tolist() == [10, 11, 12, 13]
    assert found.cell_pillar[14] == 0


def test_what_is_dropped_is_far_away_on_every_side() -> None:
    # one point per cell of 20 x 20 m; 100 of 400 cells are kept: a disc about the car
    grid = BevGrid(x_min=-10.0, x_max=10.0, y_min=-10.0, y_max=10.0, cell=1.0)
    config = dataclasses.replace(CONFIG, grid=grid, max_pillars=100, num_slices=3)
    x, y = (axis.reshape(-1) for axis in np.meshgrid(grid.x_centers(), grid.y_centers()))
    for z in (-0.5, 1.5):  # whichever slice they are in
        rows = np.zeros((5, 400), np.float32)
        rows[:3] = x, y, np.full(400, z)
        found = build_pillars(rows, config)
        assert found.num_dropped_pillars == 300
        kept = np.hypot(*found.points[:, 0, :2].T)
        # area of 100 cells: a radius of sqrt(100 / pi) = 5.64
        assert kept.max() < 6.1
        assert (np.diff(found.cell) > 0).all()
        side = found.points[:, 0, :2].mean(axis=0)
        assert np.abs(side).max() < 0.5  # of the last ring the first rows are kept
