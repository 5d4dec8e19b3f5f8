import ctypes
import os
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pool_tables import points_of, table_of_cells

from perception import native
from perception.geometry.frustum import Frustum
from perception.geometry.grid import BevGrid
from perception.ops.bev_pool import bev_pool_reference

EPS32 = float(np.finfo(np.float32).eps)
HALF_ULP = 2.0**-11  # of a half-precision number, relative

seeds = st.integers(0, 10_000)
sizes = st.tuples(*(st.integers(1, most) for most in (3, 4, 7, 5)))  # images, depths, height, width
channel_counts = st.sampled_from([1, 2, 3, 4, 5, 8, 15, 16, 17, 31, 33, 64, 80, 81, 128, 300])
thread_counts = st.integers(1, 5)


@pytest.fixture(scope="module", params=["baseline", "avx2", "avx512"])
def library(request, tmp_path_factory):
    """A copy of the library that runs with one instruction set: it chooses at its first call."""
    path = native.library_path()
    if path is None:
        pytest.skip(native.description())
    copy = shutil.copy(path, tmp_path_factory.mktemp(request.param) / path.name)
    os.environ["BEV_PLUGINS_ISA"] = request.param
    loaded = native.NativeLibrary(copy)
    isa = loaded.isa
    del os.environ["BEV_PLUGINS_ISA"]
    if isa != request.param:
        pytest.skip(f"this processor has no {request.param}")
    return loaded


@pytest.fixture(scope="module")
def loaded():
    """The library as everybody gets it."""
    if native.library() is None:
        pytest.skip(native.description())
    return native.library()


def random_problem(seed: int, shape: tuple[int, ...], channels: int, num_cells: int, share: float):
    """Tensors, and a table of a share of the frustum points in random cells."""
    random = np.random.default_rng(seed)
    cell = random.integers(0, num_cells, shape)
    for h in range(1, shape[2]):
        same = random.random(cell[:, :, h].shape) < 0.6
        cell[:, :, h] = np.where(same, cell[:, :, h - 1], cell[:, :, h])
    cell[random.random(shape) >= share] = -1
    depth = random.random(shape, np.float32)
    feat = random.standard_normal((shape[0], *shape[2:], channels), np.float32)
    return depth, feat, *table_of_cells(cell, num_cells)


def oracle(depth, feat, runs, cell_start):
    """The sum in float64, and the sum of absolute values that its rounding is measured by."""
    point, pixel, cell = points_of(runs, cell_start, depth.shape[-1])
    weight = depth.reshape(-1)[point].astype(np.float64)[:, None]
    products = weight * feat.reshape(-1, feat.shape[-1])[pixel].astype(np.float64)
    bev, size = np.zeros((2, len(cell_start) - 1, feat.shape[-1]))
    np.add.at(bev, cell, products)
    np.add.at(size, cell, abs(products))
    return bev, size


def forward(library, depth, feat, runs, cell_start, num_threads=1):
    bev = np.full((len(cell_start) - 1, feat.shape[-1]), np.nan, np.float32)
    library.bev_pool_forward(depth, feat, runs, cell_start, bev, num_threads)
    return bev


@settings(max_examples=25, deadline=None)
@given(seeds, sizes, channel_counts, st.integers(1, 30), st.floats(0, 1), thread_counts)
def test_forward_is_the_sum(library, seed, shape, channels, num_cells, share, num_threads):
    problem = random_problem(seed, shape, channels, num_cells, share)
    bev, size = oracle(*problem)
    most_points = shape[0] * shape[1] * shape[2] * shape[3]
    result = forward(library, *problem, num_threads)
    assert np.all(abs(result - bev) <= size * EPS32 * (most_points + 1))
    # every point counted: with weight and feature one the results are numbers of points
    counts = forward(library, *(np.ones_like(x) for x in problem[:2]), *problem[2:], num_threads)
    assert counts.sum() == channels * problem[2][:, 2].sum()


@pytest.mark.parametrize("channels", [*range(1, 36), 80, 81, 129])
def test_any_number_of_channels(library, channels):
    problem = random_problem(channels, (1, 2, 3, 2), channels, 3, 0.9)
    bev, size = oracle(*problem)
    assert np.all(abs(forward(library, *problem) - bev) <= size * EPS32 * 12)


@settings(max_examples=15, deadline=None)
@given(seeds, sizes, channel_counts, st.integers(1, 12), st.floats(0, 1), thread_counts)
def test_backward_is_autograd_of_the_reference(
    library, seed, shape, channels, num_cells, share, num_threads
):
    depth, feat, runs, cell_start = random_problem(seed, shape, channels, num_cells, share)
    grad_bev = np.random.default_rng(seed + 1).standard_normal((num_cells, channels), np.float32)
    grads = np.full_like(depth, np.nan), np.full_like(feat, np.nan)
    library.bev_pool_backward(grad_bev, depth, feat, runs, cell_start, *grads, num_threads)

    inputs = [torch.from_numpy(x).double().requires_grad_() for x in (depth, feat)]
    table = [torch.from_numpy(x) for x in (runs, cell_start)]
    bev_pool_reference(*inputs, *table).backward(torch.from_numpy(grad_bev).double())
    for grad, tensor in zip(grads, inputs, strict=True):
        np.testing.assert_allclose(grad, tensor.grad.numpy(), rtol=1e-5, atol=2e-5)


@settings(max_examples=15, deadline=None)
@given(seeds, sizes, channel_counts, st.integers(1, 12), st.floats(0, 1))
def test_half_precision_is_summed_in_float(library, seed, shape, channels, num_cells, share):
    depth, feat, runs, cell_start = random_problem(seed, shape, channels, num_cells, share)
    depth, feat = depth.astype(np.float16), (30 * feat).astype(np.float16)
    feat.reshape(-1)[:1] = 2.0**-24  # the smallest subnormal
    bev, size = oracle(depth, feat, runs, cell_start)
    result = half_forward(library, depth, feat, runs, cell_start)
    tolerance = np.maximum(abs(bev) * HALF_ULP * 1.01, 2.0**-25) + size * EPS32 * depth.size
    assert np.all(abs(result.astype(np.float64) - bev) <= tolerance)


def half_forward(library, depth, feat, runs, cell_start):
    bev = np.full((len(cell_start) - 1, feat.shape[-1]), np.nan, np.float16)
    middle = len(bev) // 2  # in two slices
    for first, last in ((0, middle), (middle, len(bev))):
        pointers = [ctypes.c_void_p(x.ctypes.data) for x in (depth, feat, runs, cell_start)]
        code = library.functions.bev_pool_cells_f16(
            *pointers, len(bev), depth.shape[-1], feat.shape[-1], first, last,
            ctypes.c_void_p(bev.ctypes.data),
        )  # fmt: skip
        assert code == 0
    return bev


@pytest.mark.parametrize("channels", [1, 4, 8, 16])
def test_every_half_number_passes_through(library, channels):
    # one pixel per cell, weight one: the output is the input, infinities, subnormals and signs
    # included (but -0, to which 0 is added, and the bits of NaN)
    feat = np.arange(1 << 16, dtype=np.uint16).view(np.float16).reshape(1, 1, -1, channels)
    width = feat.shape[2]
    depth = np.ones((1, 1, 1, width), np.float16)
    pixel = np.arange(width, dtype=np.int32)
    runs = np.stack([pixel, pixel, np.ones_like(pixel)], axis=1)
    bev = half_forward(library, depth, feat, runs, np.arange(width + 1, dtype=np.int32))
    np.testing.assert_array_equal(bev, feat.reshape(-1, channels))


def test_half_results_are_rounded_to_nearest_even(library):
    # 2048 + 1 lies between 2048 and 2050, 2050 + 1 between 2050 and 2052: the even mantissa wins;
    # 65504 + 15 stays the largest number, 65504 + 16 is infinite; 2^-14 - 2^-25 rounds up to 2^-14
    pairs = [(2048, 1), (2050, 1), (65504, 15), (65504, 16), (2.0**-14, -(2.0**-25))]
    feat = np.array([x for x, _ in pairs] + [1024.0 * y for _, y in pairs], np.float16)
    depth = np.array([1.0, 1 / 1024], np.float16).reshape(1, 1, 2, 1)
    runs = np.array([[0, 0, 2]], np.int32)
    bev = half_forward(library, depth, feat.reshape(1, 2, 1, 5), runs, np.array([0, 1], np.int32))
    np.testing.assert_array_equal(
        bev[0], np.array([2048, 2052, 65504, np.inf, 2.0**-14], np.float16)
    )


def test_one_point_one_cell(library):
    depth, feat = (
        np.full((1, 1, 1, 1), 0.5, np.float32),
        np.array([[[[3.0, -4.0, 5.0]]]], np.float32),
    )
    runs, cell_start = np.array([[0, 0, 1]], np.int32), np.array([0, 1], np.int32)
    np.testing.assert_array_equal(
        forward(library, depth, feat, runs, cell_start), [[1.5, -2.0, 2.5]]
    )


def test_empty_table_gives_zeros_whatever_is_in_the_buffers(library):
    depth, feat = (
        np.full((2, 3, 2, 2), np.nan, np.float32),
        np.full((2, 2, 2, 7), np.inf, np.float32),
    )
    runs, cell_start = np.zeros((0, 3), np.int32), np.zeros(6, np.int32)
    assert not forward(library, depth, feat, runs, cell_start).any()
    grads = np.full_like(depth, np.nan), np.full_like(feat, np.nan)
    grad_bev = np.full((5, 7), np.nan, np.float32)
    library.bev_pool_backward(grad_bev, depth, feat, runs, cell_start, *grads)
    assert not any(grad.any() for grad in grads)


def test_what_no_run_names_never_matters(library):
    depth, feat, runs, cell_start = random_problem(3, (2, 3, 6, 4), 9, 7, 0.3)
    clean = forward(library, depth, feat, runs, cell_start)
    point, pixel, _ = points_of(runs, cell_start, 4)
    depth.reshape(-1)[np.setdiff1d(np.arange(depth.size), point)] = np.nan
    feat.reshape(-1, 9)[np.setdiff1d(np.arange(2 * 6 * 4), pixel)] = np.nan
    padded = np.concatenate([runs, np.full((5, 3), -(1 << 31), np.int32)])  # padding is never read
    np.testing.assert_array_equal(forward(library, depth, feat, padded, cell_start), clean)


def test_a_thousand_launches_with_any_threads_are_one_result(library):
    problem = random_problem(5, (2, 4, 7, 5), 37, 40, 0.9)
    expected = forward(library, *problem).tobytes()
    for launch in range(1000):
        assert forward(library, *problem, num_threads=1 + launch % 3).tobytes() == expected
    depth, feat, runs, cell_start = problem
    grad_bev = np.ones((40, 37), np.float32)
    results = set()
    for num_threads in range(1, 6):
        grads = np.empty_like(depth), np.empty_like(feat)
        library.bev_pool_backward(grad_bev, depth, feat, runs, cell_start, *grads, num_threads)
        results.add(grads[0].tobytes() + grads[1].tobytes())
    assert len(results) == 1


def test_an_output_larger_than_the_cache_is_written_past_it_alike(library):
    # 48 MB; aligned to a vector it takes the streaming stores, one float further the plain ones
    depth, feat, runs, cell_start = random_problem(7, (2, 4, 7, 5), 80, 30, 0.9)
    num_cells = 150_000
    cell_start = np.concatenate([cell_start, np.full(num_cells - 30, cell_start[-1], np.int32)])
    memory = np.full(num_cells * 80 + 17, np.nan, np.float32)
    aligned = -memory.ctypes.data // 4 % 16
    for start in (aligned, aligned + 1):
        bev = memory[start : start + num_cells * 80].reshape(num_cells, 80)
        library.bev_pool_forward(depth, feat, runs, cell_start, bev, 2)
        assert not bev[30:].any()
        np.testing.assert_array_equal(
            bev[:30], forward(library, depth, feat, runs, cell_start[:31])
        )


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=40), st.integers(1, 9))
def test_slices_cover_all_cells_in_equal_shares(loaded, runs_of_cell, parts):
    cell_start = np.cumsum([0, *runs_of_cell]).astype(np.int32)
    split = loaded.functions.bev_pool_split
    pointer = ctypes.c_void_p(cell_start.ctypes.data)
    edges = [split(pointer, len(runs_of_cell), part, parts) for part in range(parts + 1)]
    assert edges[0] == 0
    assert edges[-1] == len(runs_of_cell)
    assert edges == sorted(edges)
    work = np.arange(len(cell_start)) + 4 * cell_start  # a write per cell and four per run
    largest = 1 + 4 * max(runs_of_cell)
    assert np.all(np.diff(work[edges]) <= work[-1] / parts + largest)


# --- the builder


def plain_table(R, t, used, frustum, grid, height, width):
    """Cell of each point by plain loops, then runs."""
    cell = np.full((len(used), frustum.num_depths, height, width), -1)
    for n, i, h, w in np.ndindex(*cell.shape):
        if used[n]:
            d = frustum.depth_min + (i + 0.5) * frustum.depth_step
            ud, vd = d * ((w + 0.5) * frustum.stride), d * ((h + 0.5) * frustum.stride)
            x, y, z = (
                (R[n, a, 0] * ud + (R[n, a, 2] * d + t[n, a])) + R[n, a, 1] * vd for a in range(3)
            )
            ix = np.floor((x - grid.x_min) / grid.cell)
            iy = np.floor((y - grid.y_min) / grid.cell)
            on_grid = 0 <= ix < grid.nx and 0 <= iy < grid.ny
            if on_grid and frustum.z_min <= z < frustum.z_max:
                cell[n, i, h, w] = int(iy) * grid.nx + int(ix)
    return table_of_cells(cell, grid.num_cells)


@settings(max_examples=40, deadline=None)
@given(seeds, sizes, st.integers(1, 9), st.integers(1, 9), st.booleans(), thread_counts)
def test_the_built_table_is_the_plain_one(loaded, seed, shape, nx, ny, on_borders, num_threads):
    num_cameras, num_depths, height, width = shape
    random = np.random.default_rng(seed)
    frustum = Frustum(
        stride=8, depth_min=1.0, depth_max=1.0 + num_depths, depth_step=1.0, z_min=-2.0, z_max=2.0
    )
    grid = BevGrid(x_min=-1.0, x_max=nx - 1.0, y_min=-2.0, y_max=ny - 2.0, cell=1.0)
    if on_borders:  # eighths and halves: many points lie exactly on edges of cells
        R = random.integers(-2, 3, (num_cameras, 3, 3)) / 8
        t = random.integers(-2, 3, (num_cameras, 3)) / 2
    else:
        R, t = random.normal(size=(num_cameras, 3, 3)) / 8, random.normal(size=(num_cameras, 3))
    used = random.random(num_cameras) < 0.8
    R[~used] = np.nan
    rig = (R, t, used, frustum, grid, height, width)
    built, plain = loaded.build_pool_table(*rig, num_threads=num_threads), plain_table(*rig)
    for mine, expected in zip(built, plain, strict=True):
        np.testing.assert_array_equal(mine, expected)
    assert loaded.pool_table_fault(*built, shape) is None


def test_points_that_are_not_finite_lie_in_no_cell(loaded):
    frustum = Frustum(stride=8, depth_min=1.0, depth_max=3.0, depth_step=1.0, z_min=-2.0, z_max=2.0)
    grid = BevGrid(x_min=0.0, x_max=4.0, y_min=0.0, y_max=2.0, cell=1.0)
    for number in (np.nan, np.inf, -np.inf, 1e300):
        R = np.full((1, 3, 3), number)
        runs, cell_start = loaded.build_pool_table(
            R, np.zeros((1, 3)), np.ones(1, bool), frustum, grid, 4, 4
        )
        assert len(runs) == 0
        assert not cell_start.any()


@settings(max_examples=15, deadline=None)
@given(seeds, st.permutations(range(4)), channel_counts)
def test_the_order_of_the_cameras_changes_nothing(loaded, seed, order, channels):
    random = np.random.default_rng(seed)
    frustum = Frustum(stride=8, depth_min=1.0, depth_max=5.0, depth_step=1.0, z_min=-2.0, z_max=2.0)
    grid = BevGrid(x_min=-2.0, x_max=4.0, y_min=-2.0, y_max=2.0, cell=1.0)  # 6 x 4 cells
    R, t = random.normal(size=(4, 3, 3)) / 8, random.normal(size=(4, 3))
    used = np.array([True, False, True, True])
    depth = random.random((4, 4, 5, 3), np.float32)
    feat = random.standard_normal((4, 5, 3, channels), np.float32)
    depth[1], feat[1] = np.nan, np.nan  # the masked camera
    results = []
    for cameras in (list(range(4)), order):
        table = loaded.build_pool_table(R[cameras], t[cameras], used[cameras], frustum, grid, 5, 3)
        results.append(forward(loaded, depth[cameras], feat[cameras], *table))
    np.testing.assert_allclose(*results, rtol=0, atol=1e-4)


# --- bad tables

GOOD = [[1, 1, 2], [13, 7, 1]]  # of depth (2, 2, 2, 3): camera 0, column 1, both rows; camera 1
SHAPE = (2, 2, 2, 3)


@pytest.mark.parametrize(
    ("runs", "cell_start", "words"),
    [
        (GOOD, [0, 1, 2], None),
        (GOOD, [0, 0, 0], None),
        (GOOD, [1, 1, 2], "does not begin at 0"),
        (GOOD, [0, 2, 1], "decreases"),
        (GOOD, [0, -1, 2], "decreases"),
        (GOOD, [0, 1, 3], "beyond the runs"),
        ([[1, 1, 0], GOOD[1]], [0, 1, 2], "no rows"),
        ([[1, 1, -(2**31)], GOOD[1]], [0, 1, 2], "no rows"),
        ([[-1, 1, 2], GOOD[1]], [0, 1, 2], "outside depth"),
        ([[24, 1, 2], GOOD[1]], [0, 1, 2], "outside depth"),
        ([[1, 2, 1], GOOD[1]], [0, 1, 2], "not the one of its depth"),
        ([[1, 1, 2], [13, 1, 1]], [0, 1, 2], "not the one of its depth"),  # camera 0's pixel
        ([[1, 1, 3], GOOD[1]], [0, 1, 2], "leaves its image"),
        ([[1, 1, 2**31 - 1], GOOD[1]], [0, 1, 2], "leaves its image"),
        ([[4, 4, 2], GOOD[1]], [0, 1, 2], "leaves its image"),
    ],
)
def test_bad_tables_are_named(loaded, runs, cell_start, words):
    fault = loaded.pool_table_fault(np.array(runs, np.int32), np.array(cell_start, np.int32), SHAPE)
    assert (fault is None) if words is None else (words in fault)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(*[st.integers(-(2**31), 2**31 - 1)] * 3), max_size=4),
    st.lists(st.integers(-(2**31), 2**31 - 1), min_size=2, max_size=4),
    st.tuples(*[st.sampled_from([-1, 0, 1, 3, 46341, 2**31 - 1])] * 4),
)
def test_any_content_is_safe_to_check(loaded, runs, cell_start, shape):
    table = np.array(runs, np.int32).reshape(-1, 3), np.array(cell_start, np.int32)
    fault = loaded.pool_table_fault(*table, shape)
    if fault is None:
        assert min(shape) >= 1
        assert cell_start[0] == 0
