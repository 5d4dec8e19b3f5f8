"""The CUDA kernel on a GPU: built by nvcc for the card, called with tensors' device pointers."""

import shutil

import numpy as np
import pytest
import torch
from cuda_pool import CudaPool, Problem, build_with_nvcc, problem_of_cells, upright_cells

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc"),
]

SHAPE = (6, 20, 16, 44)
GRID = (90, 70)
"""Rows and columns of the grid."""


@pytest.fixture(scope="module")
def cuda(tmp_path_factory: pytest.TempPathFactory) -> CudaPool:
    library = tmp_path_factory.mktemp("cuda") / "libpool.so"
    build_with_nvcc(library, "-arch=native")
    return CudaPool(library)


class OnDevice:
    """A problem's tensors on the GPU, and an output of NaN."""

    def __init__(self, problem: Problem) -> None:
        arrays = (problem.depth, problem.feat, problem.runs, problem.cell_start)
        self.inputs = [torch.from_numpy(np.ascontiguousarray(array)).cuda() for array in arrays]
        self.feat = self.inputs[1]
        self.sizes = (problem.num_cells, problem.depth.shape[-1], problem.feat.shape[-1])

    def pool(self, cuda: CudaPool, grid_width: int = GRID[1]) -> torch.Tensor:
        bev = self.feat.new_full((self.sizes[0], self.sizes[2]), torch.nan)
        pointers = [tensor.data_ptr() for tensor in (*self.inputs, bev)]
        stream = torch.cuda.current_stream().cuda_stream
        code = cuda.launch(bev.dtype, pointers, (*self.sizes, grid_width), stream)
        assert code == 0
        return bev


def problem(channels: int, dtype: type) -> Problem:
    cells = upright_cells(SHAPE, GRID[0] * GRID[1], seed=channels)
    return problem_of_cells(cells, GRID[0] * GRID[1], channels, dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("channels", [80, 8, 128, 264, 33, 12, 1])
def test_agrees_with_float64(cuda: CudaPool, channels: int, dtype: type) -> None:
    given = problem(channels, dtype)
    bev = OnDevice(given).pool(cuda).double().cpu().numpy()
    exact = given.exact()
    allowed = 2e-6 * given.magnitude()
    if dtype is np.float16:
        allowed += 2.0**-11 * np.abs(exact) + 2.0**-25
    assert (np.abs(bev - exact) <= allowed).all()  # false for NaN, too


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_thousand_launches_and_any_grid_width_give_the_same_bits(
    cuda: CudaPool, dtype: type
) -> None:
    device = OnDevice(problem(80, dtype))
    first = device.pool(cuda)
    for _ in range(1000):
        assert torch.equal(device.pool(cuda), first)  # NaN, a cell not written, equals nothing
    for grid_width in (0, 1, GRID[1] + 1, 2**31 - 1):
        assert torch.equal(device.pool(cuda, grid_width), first)


def test_runs_on_the_stream_that_is_given(cuda: CudaPool) -> None:
    device = OnDevice(problem(80, np.float32))
    first = device.pool(cuda)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):  # records its own stream's launches, and no others
        recorded = device.pool(cuda)
    recorded.fill_(torch.nan)
    graph.replay()
    assert torch.equal(recorded, first)
