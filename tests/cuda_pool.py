"""The pool's CUDA source in tests: built by g++ (emulated grid) or nvcc, called through ctypes."""

import ctypes
import dataclasses
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from pool_tables import points_of, table_of_cells

REPOSITORY = Path(__file__).resolve().parents[1]
PLUGINS = REPOSITORY / "export" / "plugins"
KERNEL = PLUGINS / "kernels" / "bev_pool.cu"
HERE = Path(__file__).parent / "test_plugins"
EMULATION = HERE / "cuda_emulation"

INVALID_VALUE = 1
"""cudaErrorInvalidValue."""


def build_with_gpp(library: Path, sources: Sequence[Path], include: Sequence[Path] = ()) -> Path:
    """Compile CUDA and C++ sources for the CPU; kernels run on the emulated grid."""
    gpp = shutil.which("g++")
    if gpp is None:
        pytest.skip("no g++")
    folders = [EMULATION, KERNEL.parent]
    command = [gpp, "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
    command += ["-shared", "-fPIC", "-fvisibility=hidden", *(f"-I{folder}" for folder in folders)]
    command += [f"-isystem{folder}" for folder in include]  # TensorRT's headers have warnings
    _run([*command, "-o", str(library), "-x", "c++", *map(str, sources)])
    return library


def build_with_nvcc(library: Path, arch: str, *options: str, source: Path = KERNEL) -> str:
    """Compile with nvcc; what the compiler said."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("no nvcc")
    command = [nvcc, "-std=c++17", "-O3", "-shared", "-Xcompiler=-fPIC,-Wall,-Wextra", arch]
    return _run([*command, *options, f"-I{KERNEL.parent}", "-o", str(library), str(source)])


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=250)
    if done.returncode != 0:
        pytest.fail(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Inputs of a pool; `points` are depth index, pixel index and cell of each that counts."""

    depth: np.ndarray
    feat: np.ndarray
    runs: np.ndarray
    cell_start: np.ndarray
    points: tuple[np.ndarray, np.ndarray, np.ndarray]

    @property
    def num_cells(self) -> int:
        return len(self.cell_start) - 1

    def exact(self) -> np.ndarray:
        """The pool in float64, point by point."""
        depth, pixel, cell = self.points
        weight = self.depth.astype(np.float64).reshape(-1)[depth]
        feat = self.feat.astype(np.float64).reshape(-1, self.feat.shape[-1])[pixel]
        bev = np.zeros((self.num_cells, self.feat.shape[-1]))
        np.add.at(bev, cell, weight[:, None] * feat)
        return bev

    def magnitude(self) -> np.ndarray:
        """Sum of the products' sizes: what rounding errors are measured by."""
        positive = {"depth": np.abs(self.depth), "feat": np.abs(self.feat)}
        return dataclasses.replace(self, **positive).exact()


def problem_of_cells(
    cell: np.ndarray, num_cells: int, channels: int, dtype: type = np.float32, seed: int = 0
) -> Problem:
    """Random tensors for the cells of points [n, d, h, w]; NaN wherever no point counts."""
    random = np.random.default_rng(seed)
    n, _, h, w = cell.shape
    runs, cell_start = table_of_cells(cell, num_cells)
    points = points_of(runs, cell_start, w)
    depth = np.full(cell.size, np.nan, dtype)
    depth[points[0]] = random.uniform(0, 1, len(points[0]))
    feat = np.full((n * h * w, channels), np.nan, dtype)
    used = np.unique(points[1])
    feat[used] = random.normal(size=(len(used), channels))
    return Problem(
        depth=depth.reshape(cell.shape),
        feat=feat.reshape(n, h, w, channels),
        runs=runs,
        cell_start=cell_start,
        points=points,
    )


def upright_cells(
    shape: tuple[int, int, int, int], num_cells: int, seed: int, share: float = 0.7
) -> np.ndarray:
    """Cells in pieces of columns, as a camera's are; `share` of the pieces count."""
    random = np.random.default_rng(seed)
    n, d, h, w = shape
    cells = random.integers(0, num_cells, (n, d, 3, w))
    cells[random.uniform(size=cells.shape) > share] = -1
    return np.repeat(cells, -(-h // 3), axis=2)[:, :, :h]


class CudaPool:
    """The launchers of a compiled library."""

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(os.fspath(library))
        pointers, sizes = [ctypes.c_void_p] * 5, [ctypes.c_int32] * 4
        for name in ("bev_pool_launch_f32", "bev_pool_launch_f16"):
            getattr(self._library, name).argtypes = [*pointers, *sizes, ctypes.c_void_p]

    def launch(
        self, dtype: object, pointers: Sequence[int | None], sizes: Sequence[int], stream: int = 0
    ) -> int:
        """Call a launcher with raw pointers: depth, feat, runs, cell_start, bev."""
        is_half = str(dtype).endswith("float16")
        name = "bev_pool_launch_f16" if is_half else "bev_pool_launch_f32"
        return getattr(self._library, name)(*pointers, *sizes, stream)

    def pool(self, problem: Problem, grid_width: int = 0) -> np.ndarray:
        """Pool arrays of the host on the emulated grid, into an output of NaN with a guard."""
        cells, channels = problem.num_cells, problem.feat.shape[-1]
        store = np.full((cells + 1) * channels + 16, np.nan, problem.feat.dtype)
        skip = -store.ctypes.data % 16 // store.itemsize  # on 16 bytes, as device memory is
        bev = store[skip : skip + cells * channels]
        arrays = (problem.depth, problem.feat, problem.runs, problem.cell_start)
        kept = [np.ascontiguousarray(array) for array in arrays]
        code = self.launch(
            bev.dtype,
            [*(array.ctypes.data for array in kept), bev.ctypes.data],
            (cells, problem.depth.shape[-1], channels, grid_width),
        )
        assert code == 0
        assert np.isnan(store[:skip]).all()
        assert np.isnan(store[skip + bev.size :]).all()
        return bev.reshape(cells, channels)
