import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from perception import json_codec, native
from perception.geometry.grid import BevGrid
from perception.geometry.pillars import PillarConfig
from perception.geometry.sparse_tables import (
    SUBMANIFOLD,
    ConvShape,
    SparseLevels,
    build_sparse_tables,
    build_with_numpy,
    encoder_levels,
    strided_convs,
)
from perception.ops.sparse_conv import VoxelLevel, dense_table, neighbour_table, output_level

HALF = ConvShape(kernel=(3, 3, 3), stride=(2, 2, 2), padding=(1, 1, 1))
Z_ONLY = ConvShape(kernel=(3, 1, 1), stride=(2, 1, 1))


def levels_of(size, *convs, capacities=None):
    plenty = (10_000,) * (len(convs) + 1)
    return SparseLevels(size=size, convs=convs, capacities=capacities or plenty)


def cells_of(*places, size):
    cells = [(z * size[1] + y) * size[2] + x for z, y, x in places]
    return np.array(cells, np.int32)


def full_grid_pillars(**other):
    grid = BevGrid(x_min=-54.0, x_max=54.0, y_min=-54.0, y_max=54.0, cell=0.075)
    limits = {"max_points": 10, "max_pillars": 160_000, "num_sweeps": 10} | other
    return PillarConfig(grid=grid, z_min=-5.0, z_max=3.0, num_slices=40, **limits)


def test_z_sizes_of_the_specification():
    levels = encoder_levels(full_grid_pillars())
    assert [size[0] for size in levels.sizes] == [41, 21, 11, 5, 2]
    assert [size[2] for size in levels.sizes] == [1440, 720, 360, 180, 180]
    assert levels.convs == strided_convs((41, 1440, 1440))


def test_capacities_follow_the_pillars_and_never_exceed_the_places():
    # shares 1.0, 1.25, 0.75, 0.3, 0.25 of 160,000; of 10 million: 41 * 1440 ** 2 = 85 million
    # places are more than enough, 2 * 180 ** 2 = 64,800 of the last level are not
    assert encoder_levels(full_grid_pillars()).capacities == (160000, 200000, 120000, 48000, 40000)
    many = encoder_levels(full_grid_pillars(max_pillars=10_000_000)).capacities
    assert many[0] == 10_000_000
    assert many[4] == 64_800


def test_hand_worked_tables():
    # level 0 is 3 x 4 x 5; three voxels, not in the order of their places
    size = (3, 4, 5)
    levels = levels_of(size, HALF)
    cells = cells_of((1, 2, 3), (0, 0, 0), (1, 2, 4), size=size)
    tables = build_with_numpy(cells, levels)
    # offset (z, y, x) of the kernel is number 9 z + 3 y + x; 13 is the voxel itself. Rows 0 and 2
    # are neighbours along x: row 0 sees row 2 at 14, row 2 sees row 0 at 12
    seen = [{k: int(row[k]) for k in np.flatnonzero(row)} for row in tables.stages[0]]
    assert seen == [{13: 1, 14: 3}, {13: 2}, {12: 1, 13: 3}]
    # level 1 is 2 x 2 x 3: output o covers 2 o - 1 .. 2 o + 1. z 1 by o 0 and 1, y 2 by 1 alone,
    # x 3 by 1 and 2, x 4 by 2 alone; (0, 0, 0) by (0, 0, 0). Places in order: (0,0,0), (0,1,1),
    # (0,1,2), (1,1,1), (1,1,2)
    assert tables.num_rows == (3, 5)
    seen = [{k: int(row[k]) for k in np.flatnonzero(row)} for row in tables.strided[0]]
    # from (0, 1, 2) the kernel starts at (-1, 1, 3): (1, 2, 3) lies at 2, 1, 0 and (1, 2, 4) at
    # 2, 1, 1; from (1, 1, 2) it starts at (1, 1, 3): at 0, 1, 0 and 0, 1, 1
    assert seen == [{13: 2}, {23: 1}, {21: 1, 22: 3}, {5: 1}, {3: 1, 4: 3}]


def test_dense_map_is_ordered_y_x_z():
    # one convolution that keeps everything: 2 x 2 x 2 voxels, rows counted from 1
    same = ConvShape(kernel=(1, 1, 1))
    cells = cells_of((1, 0, 1), (0, 1, 0), size=(2, 2, 2))
    tables = build_with_numpy(cells, levels_of((2, 2, 2), same))
    # level 1 is in the order of places: (0, 1, 0) is row 1, (1, 0, 1) is row 2
    assert tables.dense.reshape(2, 2, 2)[1, 0, 0] == 1
    assert tables.dense.reshape(2, 2, 2)[0, 1, 1] == 2
    assert np.count_nonzero(tables.dense) == 2


@settings(max_examples=30, deadline=None)
@given(
    size=st.tuples(st.integers(3, 6), st.integers(1, 9), st.integers(1, 70)),
    share=st.floats(0.0, 1.0),
    seed=st.integers(0, 1000),
)
def test_every_form_builds_the_tables_of_the_training_s_search(size, share, seed):
    rng = np.random.default_rng(seed)
    places = math.prod(size)
    cells = rng.permutation(places)[: round(share * places)].astype(np.int32)
    levels = levels_of(size, HALF, ConvShape(kernel=(2, 1, 1), stride=(2, 1, 1)))
    for tables in (build_with_numpy(cells, levels), build_sparse_tables(cells, levels)):
        level = VoxelLevel(torch.from_numpy(cells), size)
        for conv, within, down in zip(levels.convs, tables.stages, tables.strided, strict=True):
            np.testing.assert_array_equal(within, neighbour_table(level, level, SUBMANIFOLD))
            out = output_level(level, conv)
            np.testing.assert_array_equal(down, neighbour_table(level, out, conv))
            level = out
        dense = dense_table(level, 1).reshape(level.size).permute(1, 2, 0).reshape(-1)
        np.testing.assert_array_equal(tables.dense, dense)
        assert tables.num_dropped == (0, 0, 0)


def test_what_exceeds_a_capacity_is_dropped_and_counted():
    # four voxels far from one another on 1 x 1 x 16, each reached by one output: x 0, 4, 8, 12
    # are outputs 0, 2, 4, 6 of a stride of two
    size = (1, 1, 16)
    flat = ConvShape(kernel=(1, 1, 1), stride=(1, 1, 2))
    cells = np.array([12, 0, 8, 4], np.int32)
    levels = levels_of(size, flat, capacities=(3, 2))
    for tables in (build_with_numpy(cells, levels), build_sparse_tables(cells, levels)):
        # of the first level the last one listed goes (x 4), of the second the highest place (x 12)
        assert (tables.num_rows, tables.num_dropped) == ((3, 2), (1, 1))
        assert tables.strided[0].tolist() == [[2], [3]]
        assert np.flatnonzero(tables.dense).tolist() == [0, 4]
    nothing = build_sparse_tables(cells, levels_of(size, flat, capacities=(0, 0)))
    assert nothing.num_dropped == (4, 0)
    assert not nothing.dense.any()


def test_a_voxel_outside_or_listed_twice_is_refused():
    levels = levels_of((1, 1, 16), ConvShape(kernel=(1, 1, 1)))
    for build in (build_with_numpy, build_sparse_tables):
        for cells, fault in (([16], "outside"), ([-1], "outside"), ([3, 5, 3], "twice")):
            with pytest.raises(ValueError, match=f"{fault}.*expected each voxel"):
                build(np.array(cells, np.int32), levels)


@pytest.mark.parametrize(
    "cells", [np.array([3, 5]), np.array([3, 5], np.uint32), np.array([[3, 5]], np.int32)]
)
def test_cells_of_another_type_are_refused(monkeypatch, cells):
    # the library would read the halves of an int64 as two voxels
    levels = levels_of((1, 1, 16), ConvShape(kernel=(1, 1, 1)))
    for find in (native.library, lambda: None):
        monkeypatch.setattr(native, "library", find)
        with pytest.raises((ValueError, TypeError)):  # TypeError where shapes are checked
            build_sparse_tables(cells, levels)


@pytest.mark.parametrize(
    "change",
    [
        {"kernel": (0, 1, 1)},
        {"kernel": (1, 17, 1)},
        {"stride": (0, 1, 1)},
        {"stride": (1, 1, -1)},
        {"stride": (1, 1, 17)},
        {"stride": (1, 2**31 - 1, 1)},  # what once made the library write anywhere
        {"padding": (-1, 0, 0)},
        {"padding": (0, 0, 3)},
        {"padding": (0, 0, 2**31 - 1)},
    ],
)
def test_what_is_no_convolution_is_refused(change):
    with pytest.raises(ValueError, match="is no convolution: expected kernels of 1 to 16"):
        dataclasses.replace(HALF, **change)


def test_levels_that_int32_cannot_number_are_refused():
    with pytest.raises(ValueError, match=r"expected below 2\*\*31 voxels"):
        levels_of((2, 2**15, 2**15), ConvShape(kernel=(2, 1, 1)))  # 2^31
    levels_of((1, 2**15, 2**15), ConvShape(kernel=(1, 1, 1)))


def test_a_missing_library_changes_nothing(monkeypatch):
    rng = np.random.default_rng(0)
    cells = rng.permutation(3 * 8 * 8)[:60].astype(np.int32)
    levels = levels_of((3, 8, 8), HALF)
    with_library = build_sparse_tables(cells, levels)
    monkeypatch.setattr(native, "library", lambda: None)
    without = build_sparse_tables(cells, levels)
    for name, table in without.by_name.items():
        np.testing.assert_array_equal(with_library.by_name[name], table)


def test_names_and_axes_of_a_graph_s_inputs():
    levels = levels_of((3, 8, 8), HALF, ConvShape(kernel=(2, 1, 1)), capacities=(9, 8, 7))
    tables = build_with_numpy(np.zeros(0, np.int32), levels)
    assert list(levels.table_axes) == list(tables.by_name)
    assert levels.table_axes == {
        "stage_table_1": "pillars",
        "stage_table_2": "voxels_2",
        "strided_table_1": "voxels_2",
        "strided_table_2": "voxels_3",
        "dense_table": None,
    }
    assert levels.axis_sizes == {"pillars": 9, "voxels_2": 8, "voxels_3": 7}


def test_levels_travel_as_json_and_refuse_what_is_no_chain():
    levels = encoder_levels(full_grid_pillars())
    assert json_codec.from_json(SparseLevels, json_codec.to_json(levels), "test") == levels
    with pytest.raises(ValueError, match=r"capacities are \(1,\), expected 5 numbers"):
        dataclasses.replace(levels, capacities=(1,))
    with pytest.raises(ValueError, match="expected at least one voxel"):
        levels_of((2, 4, 4), HALF, Z_ONLY)
