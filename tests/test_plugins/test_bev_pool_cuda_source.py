"""The CUDA source where there is no GPU: its kernel on an emulated grid, and nvcc's report."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
from cuda_pool import (
    INVALID_VALUE,
    CudaPool,
    Problem,
    build_with_gpp,
    build_with_nvcc,
    problem_of_cells,
    upright_cells,
)
from cuda_pool import KERNEL as SOURCE
from hypothesis import given, settings
from hypothesis import strategies as st

MAX_REGISTERS = 64
"""Two blocks of 512 threads on a multiprocessor's 65,536 registers."""


@pytest.fixture(scope="module")
def cuda(tmp_path_factory: pytest.TempPathFactory) -> CudaPool:
    folder = tmp_path_factory.mktemp("cuda_emulation")
    return CudaPool(build_with_gpp(folder / "libpool.so", [SOURCE]))


def check(bev: np.ndarray, problem: Problem) -> None:
    """Against float64: a few roundings of fp32 sums, and one of the output's own type."""
    exact, size = problem.exact(), problem.magnitude()
    error = np.abs(bev.astype(np.float64) - exact)
    allowed = 2e-6 * size
    if bev.dtype == np.float16:
        allowed = allowed + 2.0**-11 * np.abs(exact) + 2.0**-25
    assert np.isfinite(bev).all()
    assert (error <= allowed).all()
    assert not bev[np.diff(problem.cell_start) == 0].any()


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize(
    "channels",
    [
        80,  # the standard network: three lane groups, two idle lanes
        8,  # one lane (f16) or two (f32)
        128,  # half a warp
        264,  # more than a warp's 256 channels: a second, almost empty part
        33,  # scalar loads, a second part of one lane
        12,  # vectors of four floats, but not of eight halves
        1,  # 32 lane groups
    ],
)
def test_agrees_with_float64(cuda: CudaPool, channels: int, dtype: type) -> None:
    cells = upright_cells((2, 5, 10, 7), num_cells=11 * 13, seed=channels)
    problem = problem_of_cells(cells, 11 * 13, channels, dtype)
    check(cuda.pool(problem, grid_width=13), problem)


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 20), st.integers(1, 5)),
    num_cells=st.integers(1, 200),
    channels=st.integers(1, 40),
    grid_width=st.integers(0, 220),
    share=st.floats(0, 1),
    seed=st.integers(0, 1000),
)
def test_any_size_agrees_with_float64(
    cuda: CudaPool,
    shape: tuple[int, int, int, int],
    num_cells: int,
    channels: int,
    grid_width: int,
    share: float,
    seed: int,
) -> None:
    cells = upright_cells(shape, num_cells, seed, share)
    dtype = np.float16 if seed % 2 else np.float32
    problem = problem_of_cells(cells, num_cells, channels, dtype, seed)
    check(cuda.pool(problem, grid_width), problem)


def test_a_sum_worked_by_hand(cuda: CudaPool) -> None:
    # One camera, one bin, 3 rows, 2 columns, one channel. In cell 1 are rows 0 and 1 of column 0
    # and row 2 of column 1.
    #   depth  .5 .        feat  2 .      bev[1] = .5 * 2 + .25 * 4 + 1 * 8 = 10
    #          .25 .             4 .
    #          .  1              . 8
    nan = np.nan
    problem = Problem(
        depth=np.array([[[[0.5, nan], [0.25, nan], [nan, 1.0]]]], np.float32),
        feat=np.array([[[[2.0], [nan]], [[4.0], [nan]], [[nan], [8.0]]]], np.float32),
        runs=np.array([[0, 0, 2], [5, 5, 1]], np.int32),
        cell_start=np.array([0, 0, 2, 2], np.int32),
        points=(np.zeros(0, int),) * 3,
    )
    assert cuda.pool(problem).tolist() == [[0.0], [10.0], [0.0]]


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_the_grid_width_changes_no_bit(cuda: CudaPool, dtype: type) -> None:
    cells = upright_cells((2, 4, 9, 6), num_cells=40, seed=3)
    problem = problem_of_cells(cells, 40, 16, dtype)
    first = cuda.pool(problem)
    for grid_width in (1, 9, 40, 2**31 - 1):
        assert cuda.pool(problem, grid_width).tobytes() == first.tobytes()


def test_a_cell_with_every_point_sums_in_float(cuda: CudaPool) -> None:
    # 3000 products of 1: in half precision the sum would stay at 2048, as 2048 + 1 rounds to 2048
    cells = np.zeros((1, 100, 30, 1), int)
    problem = problem_of_cells(cells, 1, 80, np.float16)
    ones = dataclasses.replace(
        problem, depth=np.ones_like(problem.depth), feat=np.ones_like(problem.feat)
    )
    assert (cuda.pool(ones) == 3000).all()


def test_no_point_at_all(cuda: CudaPool) -> None:
    problem = problem_of_cells(np.full((1, 2, 3, 4), -1), 25, 80)
    assert len(problem.runs) == 0
    assert not cuda.pool(problem, grid_width=5).any()


def test_padding_of_the_runs_is_never_read(cuda: CudaPool) -> None:
    problem = problem_of_cells(upright_cells((1, 3, 6, 4), 20, seed=1), 20, 16)
    rubbish = np.full((7, 3), 2**30, np.int32)
    padded = dataclasses.replace(problem, runs=np.concatenate([problem.runs, rubbish]))
    assert cuda.pool(padded).tobytes() == cuda.pool(problem).tobytes()


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_features_off_16_bytes_take_the_scalar_way(cuda: CudaPool, dtype: type) -> None:
    problem = problem_of_cells(upright_cells((1, 3, 6, 4), 20, seed=1), 20, 16, dtype)
    store = np.empty(problem.feat.size + 16, dtype)
    skip = (-store.ctypes.data % 16) // store.itemsize + 1
    moved = store[skip : skip + problem.feat.size].reshape(problem.feat.shape)
    moved[:] = problem.feat
    check(cuda.pool(dataclasses.replace(problem, feat=moved)), problem)


@pytest.mark.parametrize(
    "sizes", [(-1, 4, 8, 0), (6, 0, 8, 0), (6, 4, 0, 0), (6, 4, 8, -1), (6, -4, 8, 3)]
)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_sizes_that_cannot_be_are_refused(
    cuda: CudaPool, dtype: type, sizes: tuple[int, int, int, int]
) -> None:
    problem = problem_of_cells(upright_cells((1, 2, 3, 4), 6, seed=1), 6, 8, dtype)
    bev = np.full((6, 8), np.nan, dtype)
    arrays = (problem.depth, problem.feat, problem.runs, problem.cell_start, bev)
    code = cuda.launch(dtype, [array.ctypes.data for array in arrays], sizes)
    assert code == INVALID_VALUE
    assert np.isnan(bev).all()


def test_no_cells_are_no_work_and_no_output_is_refused(cuda: CudaPool) -> None:
    assert cuda.launch(np.float32, [None] * 5, (0, 1, 1, 0)) == 0
    assert cuda.launch(np.float32, [None] * 5, (1, 1, 1, 0)) == INVALID_VALUE


def check_compiler_report(report: str, kernels: int) -> None:
    assert "warning" not in report
    registers = [int(number) for number in re.findall(r"Used (\d+) registers", report)]
    spills = [int(number) for number in re.findall(r"(\d+) bytes spill", report)]
    assert len(registers) == kernels
    assert max(registers) <= MAX_REGISTERS
    assert len(spills) == 2 * kernels
    assert not any(spills)


def test_nvcc_compiles_without_spills_and_a_launch_needs_a_gpu(tmp_path: Path) -> None:
    library = tmp_path / "libpool.so"
    report = build_with_nvcc(library, "-gencode=arch=compute_90,code=sm_90", "-Xptxas=-v")
    check_compiler_report(report, kernels=4)
    problem = problem_of_cells(upright_cells((1, 2, 3, 4), 6, seed=1), 6, 8)
    pointers = [1 << 20] * 5  # device memory that is not there
    code = CudaPool(library).launch(np.float32, pointers, (problem.num_cells, 4, 8, 0))
    if Path("/dev/nvidia0").exists():
        pytest.skip("this machine has a GPU: test_bev_pool_gpu.py runs the kernel")
    assert code not in (0, INVALID_VALUE)


@pytest.mark.slow
def test_nvcc_compiles_for_every_architecture(tmp_path: Path) -> None:
    archs = (80, 87, 89, 90, 100, 120)
    codes = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
    ptx = "-gencode=arch=compute_120,code=compute_120"
    report = build_with_nvcc(tmp_path / "libpool.so", ptx, *codes, "-Xptxas=-v", "--threads=2")
    check_compiler_report(report, kernels=4 * len(archs))
