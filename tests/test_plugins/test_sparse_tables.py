"""The C++ builder of neighbour tables against the numpy one, compiled with UBSan."""

import ctypes
import functools
import math
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perception.geometry.sparse_tables import (
    ConvShape,
    SparseLevels,
    build_with_library,
    build_with_numpy,
    encoder_levels,
)

KERNELS = Path(__file__).resolve().parents[2] / "export" / "plugins" / "kernels"
HALF = ConvShape(kernel=(3, 3, 3), stride=(2, 2, 2), padding=(1, 1, 1))
HALF_NO_Z = ConvShape(kernel=(3, 3, 3), stride=(2, 2, 2), padding=(0, 1, 1))
Z_ONLY = ConvShape(kernel=(3, 1, 1), stride=(2, 1, 1))
SAME = ConvShape(kernel=(3, 3, 3), padding=(1, 1, 1))
WIDE = ConvShape(kernel=(2, 5, 4), stride=(1, 3, 2), padding=(1, 2, 3))


@pytest.fixture(scope="module")
def entry(tmp_path_factory):
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    library = tmp_path_factory.mktemp("sparse") / "libsparse.so"
    flags = ["-std=c++17", "-O1", "-fPIC", "-shared", "-Wall", "-Wextra", "-Werror", "-pthread"]
    checks = ["-fsanitize=undefined", "-fno-sanitize-recover=all", "-D_GLIBCXX_ASSERTIONS"]
    command = ["g++", *flags, *checks, KERNELS / "sparse_tables.cpp", "-o", library]
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(library)).sparse_tables_build


def voxels(size, share, seed, in_order):
    rng = np.random.default_rng(seed)
    places = math.prod(size)
    cells = rng.permutation(places)[: round(share * places)].astype(np.int32)
    return np.sort(cells) if in_order else cells


def assert_equal(result, expected):
    assert result.num_rows == expected.num_rows
    assert result.num_dropped == expected.num_dropped
    assert list(result.by_name) == list(expected.by_name)
    for name, table in expected.by_name.items():
        np.testing.assert_array_equal(result.by_name[name], table, err_msg=name)


@settings(max_examples=80, deadline=None)
@given(
    size=st.tuples(st.integers(5, 12), st.integers(1, 11), st.integers(1, 140)),
    convs=st.lists(st.sampled_from([HALF, HALF_NO_Z, Z_ONLY, SAME, WIDE]), min_size=1, max_size=4),
    share=st.sampled_from([0.0, 0.002, 0.03, 0.3, 1.0]),
    capacity=st.sampled_from([10**6, 40, 3]),
    in_order=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_it_builds_the_tables_of_the_definition(
    entry, size, convs, share, capacity, in_order, seed
):
    sizes = [size]
    for conv in convs:
        sizes.append(conv.output_size(sizes[-1]))
        if min(sizes[-1]) < 1:
            sizes.pop()
            break
    convs = tuple(convs[: len(sizes) - 1])
    if not convs:
        return
    levels = SparseLevels(size=size, convs=convs, capacities=(capacity,) * len(sizes))
    cells = voxels(size, share, seed, in_order)
    assert_equal(build_with_library(entry, cells, levels), build_with_numpy(cells, levels))


def test_threads_change_nothing(entry):
    # more rows than the 2,048 of one thread's portion, on the encoder's own levels
    size = (21, 60, 75)
    convs = (HALF, HALF, HALF_NO_Z)
    levels = SparseLevels(size=size, convs=convs, capacities=(8000, 9000, 4000, 300))
    cells = voxels(size, 0.1, 3, in_order=False)
    expected = build_with_numpy(cells, levels)
    assert min(expected.num_dropped) > 0 or expected.num_dropped[0] == len(cells) - 8000
    for num_threads in (0, 1, 2, 7):
        assert_equal(build_with_library(entry, cells, levels, num_threads=num_threads), expected)


def call(entry, cells, size, conv, capacities):
    """The bare C function on one convolution; its answer and what is behind the tables."""
    within, down = np.full((2, 64, 27), -7, np.int32)
    dense, counts = np.full(512, -7, np.int32), np.zeros((2, 2), np.int32)
    arrays = [
        np.array(a, np.int32)
        for a in (cells, size, (conv.kernel, conv.stride, conv.padding), capacities)
    ]
    cells, size, shape, capacities = (ctypes.c_void_p(a.ctypes.data) for a in arrays)
    tables = (
        (ctypes.c_void_p * 1)(within.ctypes.data),
        (ctypes.c_void_p * 1)(down.ctypes.data),
        ctypes.c_void_p(dense.ctypes.data),
    )
    numbers = (ctypes.c_void_p(row.ctypes.data) for row in counts)
    error = entry(cells, len(arrays[0]), size, shape, 1, capacities, 1, *tables, *numbers)
    return error, within, down


def test_nothing_is_written_behind_the_rows_there_are(entry):
    error, within, down = call(entry, [0, 7], (1, 2, 4), SAME, (2, 3))
    assert error == 0
    assert (within[:2] >= 0).all()
    assert (within[2:] == -7).all()
    # 3 of the 8 outputs fit
    assert (down[:3] >= 0).all()
    assert (down[3:] == -7).all()


def conv(kernel=(1, 1, 1), stride=(1, 1, 1), padding=(0, 0, 0)):
    return SimpleNamespace(kernel=kernel, stride=stride, padding=padding)


HUGE = (17, 2**30, 2**31 - 2, 2**31 - 1)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"cells": [8]}, 2),
        ({"cells": [-1]}, 2),
        ({"cells": [3, 1, 3]}, 3),
        ({"size": (0, 2, 4)}, 1),
        ({"size": (1, 1 << 16, 1 << 16)}, 1),
        ({"conv": ConvShape(kernel=(3, 3, 3))}, 1),  # does not fit into one slice
        # what ConvShape refuses
        ({"conv": conv(kernel=(17, 1, 1), padding=(16, 0, 0))}, 1),
        ({"conv": conv(kernel=(1, 0, 1))}, 1),
        ({"conv": conv(stride=(0, 1, 1))}, 1),
        ({"conv": conv(stride=(1, 1, -1))}, 1),
        *(({"conv": conv((1, 1, 2), (1, 1, s), (0, 0, 1))}, 1) for s in HUGE),
        ({"conv": conv(padding=(1, 0, 0))}, 1),
        ({"conv": conv(padding=(0, -1, 0))}, 1),
        ({"capacities": (-1, 4)}, 1),
        ({"capacities": (4, -1)}, 1),
    ],
)
def test_what_is_no_table_is_an_error_code(entry, change, error):
    good = {"cells": [0, 7], "size": (1, 2, 4), "conv": SAME, "capacities": (8, 8)}
    assert call(entry, **good)[0] == 0
    assert call(entry, **(good | change))[0] == error


def test_a_real_scan(entry, real_log_root):
    import dataclasses

    from perception.data.nuscenes_log import NuScenesLog
    from perception.geometry.grid import BevGrid
    from perception.geometry.pillars import PillarConfig, build_pillars

    grid = BevGrid(x_min=-54.0, x_max=54.0, y_min=-54.0, y_max=54.0, cell=0.075)
    config = PillarConfig(
        grid=grid, z_min=-5.0, z_max=3.0, max_points=1, max_pillars=160_000, num_sweeps=1,
        num_slices=40,
    )  # fmt: skip
    log = NuScenesLog(real_log_root)
    sweep = log.keyframe(log.keyframe_tokens()[0], 1).sweeps[0]
    points = np.concatenate([sweep.points_lidar, np.zeros((1, sweep.points_lidar.shape[1]))])
    cells = build_pillars(points.astype(np.float32), config).cell
    levels = encoder_levels(config)
    build = functools.partial(build_with_library, entry, cells)
    expected = build_with_numpy(cells, levels)
    assert expected.num_rows[0] > 5000
    assert not any(expected.num_dropped)
    assert_equal(build(levels, num_threads=2), expected)
    # a third of the room: counted, and the rest is as it was
    scarce = dataclasses.replace(levels, capacities=tuple(n // 3 for n in expected.num_rows))
    assert_equal(build(scarce), build_with_numpy(cells, scarce))
