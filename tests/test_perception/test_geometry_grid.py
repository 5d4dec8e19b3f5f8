import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from perception.geometry.grid import BevGrid

GRIDS = [
    # x_min, x_max, y_min, y_max, cell, columns, rows; quotients that floating point does not hit
    (-51.2, 51.2, -51.2, 51.2, 0.8, 128, 128),
    (-54.0, 54.0, -54.0, 54.0, 0.3, 360, 360),
    (-30.0, 30.0, -15.0, 15.0, 0.15, 400, 200),
    (0.0, 0.3, 0.0, 0.7, 0.1, 3, 7),
    (-50.0, 50.0, -50.0, 50.0, 0.5, 200, 200),
]


def grid_of(row: tuple) -> BevGrid:
    return BevGrid(**dict(zip(("x_min", "x_max", "y_min", "y_max", "cell"), row, strict=False)))


@pytest.mark.parametrize("row", GRIDS)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_each_center_lies_in_its_cell(row: tuple, dtype: type) -> None:
    grid = grid_of(row)
    assert (grid.nx, grid.ny, grid.num_cells) == (row[5], row[6], row[5] * row[6])
    y, x = np.meshgrid(grid.y_centers(), grid.x_centers(), indexing="ij")
    index, inside = grid.flat_index(x.ravel().astype(dtype), y.ravel().astype(dtype))
    assert inside.all()
    # rows are y, columns are x, both growing: row by row the index counts up
    np.testing.assert_array_equal(index, np.arange(grid.num_cells))


@pytest.mark.parametrize("row", GRIDS)
def test_one_cell_beyond_each_side_is_outside(row: tuple) -> None:
    grid = grid_of(row)
    x, y, cell = grid.x_centers(), grid.y_centers(), grid.cell
    for column, beyond in ((x, x[0] - cell), (x, x[-1] + cell)):
        _, inside = grid.flat_index(np.full_like(column, beyond), np.full_like(column, y[0]))
        assert not inside.any()
    for beyond in (y[0] - cell, y[-1] + cell):
        _, inside = grid.flat_index(x, np.full_like(x, beyond))
        assert not inside.any()


def test_low_edges_belong_to_the_cell_and_high_edges_do_not() -> None:
    grid = BevGrid(x_min=-2.0, x_max=2.0, y_min=-1.0, y_max=1.0, cell=1.0)
    x = np.array([-2.0, -1.0, 1.999, 2.0, np.nextafter(-2, -3), 0.0, 0.0, 0.0])
    y = np.array([-1.0, -1.0, 0.999, 0.0, 0.0, 1.0, np.nextafter(-1, -2), -0.001])
    index, inside = grid.flat_index(x, y)
    assert inside.tolist() == [True, True, True, False, False, False, False, True]
    # four columns: (0, 0) -> 0, (1, 0) -> 1, (3, 1) -> 1 * 4 + 3, (2, 0) -> 2
    assert index[inside].tolist() == [0, 1, 7, 2]


def test_values_that_are_not_finite_are_outside() -> None:
    grid = grid_of(GRIDS[0])
    bad = np.array([np.nan, np.inf, -np.inf, 1e30], np.float32)
    good = np.zeros(4, np.float32)
    assert not grid.flat_index(bad, good)[1].any()
    assert not grid.flat_index(good, bad)[1].any()


@given(st.floats(-80, 80), st.floats(-80, 80))
def test_cells_and_metres(x: float, y: float) -> None:
    grid = grid_of(GRIDS[2])
    xy = np.array([[x, y]])
    cells = grid.cell_coordinates(xy)
    np.testing.assert_allclose(grid.metric_coordinates(cells), xy, atol=1e-12)
    for function, values in ((grid.cell_coordinates, xy), (grid.metric_coordinates, cells)):
        there = function(torch.from_numpy(values))
        np.testing.assert_allclose(there.numpy(), function(values), atol=1e-12)
        single = function(values.astype(np.float32))
        assert single.dtype == np.float32
    (index,), (inside,) = grid.flat_index(xy[:, 0], xy[:, 1])
    if inside:
        column, row = np.floor(cells[0]).astype(int)
        assert index == row * grid.nx + column


def test_the_first_center_is_half_a_cell_in() -> None:
    grid = grid_of(GRIDS[2])
    first = np.array([[grid.x_centers()[0], grid.y_centers()[0]]])
    np.testing.assert_allclose(first, [[-29.925, -14.925]])
    np.testing.assert_allclose(grid.cell_coordinates(first), [[0.5, 0.5]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x_max": 10.1}, r"x range -10\.0\.\.10\.1 m is 20\.1000 cells"),
        ({"y_min": 10.0}, "y range"),
        ({"y_min": 20.0}, "y range"),
        ({"cell": 0.0}, "x range"),
        ({"cell": -1.0}, "x range"),
        ({"x_max": float("inf")}, "expected finite numbers"),
        ({"cell": float("nan")}, "expected finite numbers"),
    ],
)
def test_ranges_that_are_no_whole_number_of_cells_are_refused(change, message) -> None:
    values = {"x_min": -10.0, "x_max": 10.0, "y_min": -10.0, "y_max": 10.0, "cell": 1.0} | change
    with pytest.raises(ValueError, match=message):
        BevGrid(**values)


def test_a_finer_grid_has_a_whole_number_of_cells_in_each_cell():
    # 54 m to each side: 0.6 m cells hold 8 voxels of 0.075 m along each edge
    coarse = BevGrid(x_min=-54.0, x_max=54.0, y_min=-54.0, y_max=54.0, cell=0.6)
    assert coarse.fine_cells(dataclasses.replace(coarse, cell=0.075), allowed=(8,)) == 8
    assert coarse.fine_cells(coarse, allowed=(1, 2)) == 1
    shifted = BevGrid(x_min=0.0, x_max=108.0, y_min=-54.0, y_max=54.0, cell=0.3)
    uneven = dataclasses.replace(coarse, cell=0.4)
    fine = dataclasses.replace(coarse, cell=0.15)
    for other in (shifted, uneven, fine):
        with pytest.raises(ValueError, match="expected the same range and 1 or 2 cells"):
            coarse.fine_cells(other, allowed=(1, 2))
