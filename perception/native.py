"""The compiled library `bev_plugins`: where it lies, and its functions on numpy arrays.

An install builds it where there is a C++ compiler (sources: `export/plugins`); without it
`library()` is None and every caller has a slower form in Python. `$BEV_PLUGINS` names another file,
or nothing (`BEV_PLUGINS=`) to do without.
"""

import ctypes
import os
import sysconfig
from functools import lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int32

from perception.errors import InputError
from perception.geometry.frustum import Frustum
from perception.geometry.grid import BevGrid

VERSION = 3
"""What `bev_plugins_version` must say: raised with each change of the C interface."""

LIBRARY_NAME = "libbev_plugins.so"

INT32_MAX = int(np.iinfo(np.int32).max)
"""Largest index of a table."""

_BAD_SIZE = 1
_FAULTS = {
    _BAD_SIZE: "a size is not positive or more than 32 bits can index",
    2: "cell_start does not begin at 0",
    3: "cell_start decreases",
    4: "cell_start ends beyond the runs",
    5: "a run has no rows",
    6: "a run begins outside depth",
    7: "a run's pixel is not the one of its depth",
    8: "a run leaves its image at the bottom",
    9: "there is no room for the runs",
    10: "memory is exhausted",
}
"""Codes of `export/plugins/kernels/bev_pool.h` in words."""


class _FrustumStruct(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_double) for name in ("depth_min", "depth_step", "z_min", "z_max")),
        *((name, ctypes.c_int32) for name in ("num_depths", "height", "width", "stride")),
    ]


class _GridStruct(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_double) for name in ("x_min", "y_min", "cell")),
        *((name, ctypes.c_int32) for name in ("nx", "ny")),
    ]


class NativeLibrary:
    """Functions of the loaded library. Arrays are C-contiguous; outputs are written in place.

    Tables are trusted: `pool_table_fault` looks at one that comes from outside. Each function
    raises InputError for arrays that are not of the types and shapes annotated.
    """

    def __init__(self, path: Path) -> None:
        """Load the library.

        Raises:
            OSError: It cannot be loaded, or is of another version.
        """
        self.path = path
        self.functions = ctypes.CDLL(str(path))
        try:
            version = self.functions.bev_plugins_version()
        except AttributeError:
            version = None
        if version != VERSION:
            raise OSError(f"{path} has version {version}, expected {VERSION}: build it anew")
        self.functions.bev_plugins_isa.restype = ctypes.c_char_p

    @property
    def isa(self) -> str:
        """Instruction set in use."""
        return self.functions.bev_plugins_isa().decode()

    def bev_pool_forward(
        self,
        depth: Float32[np.ndarray, "n d h w"],
        feat: Float32[np.ndarray, "n h w c"],
        runs: Int32[np.ndarray, "r 3"],
        cell_start: Int32[np.ndarray, " g_plus_1"],
        bev: Float32[np.ndarray, "g c"],
        num_threads: int = 1,
    ) -> None:
        """Write `bev`, the sum of depth times feature over each cell's runs: `PoolTable`."""
        _require(
            len(bev) == len(cell_start) - 1
            and bev.shape[1] == feat.shape[3]
            and depth.shape[2:] == feat.shape[1:3]
            and len(depth) == len(feat),
            "bev_pool",
            floats=(depth, feat, bev),
            table=(runs, cell_start),
        )
        code = self.functions.bev_pool_forward_f32(
            *_pointers(depth, feat, runs, cell_start),
            *_sizes(len(bev), depth.shape[3], feat.shape[3], num_threads),
            *_pointers(bev),
        )
        _raise_fault(code)

    def bev_pool_backward(
        self,
        grad_bev: Float32[np.ndarray, "g c"],
        depth: Float32[np.ndarray, "n d h w"],
        feat: Float32[np.ndarray, "n h w c"],
        runs: Int32[np.ndarray, "r 3"],
        cell_start: Int32[np.ndarray, " g_plus_1"],
        grad_depth: Float32[np.ndarray, "n d h w"],
        grad_feat: Float32[np.ndarray, "n h w c"],
        num_threads: int = 1,
    ) -> None:
        """Write the gradients of `bev_pool_forward` with respect to depth and feat."""
        _require(
            len(grad_bev) == len(cell_start) - 1
            and grad_bev.shape[1] == feat.shape[3]
            and depth.shape[2:] == feat.shape[1:3]
            and len(depth) == len(feat)
            and grad_depth.shape == depth.shape
            and grad_feat.shape == feat.shape,
            "bev_pool_backward",
            floats=(grad_bev, depth, feat, grad_depth, grad_feat),
            table=(runs, cell_start),
        )
        code = self.functions.bev_pool_backward_f32(
            *_pointers(grad_bev, depth, feat, runs, cell_start),
            *_sizes(len(grad_bev), *depth.shape, feat.shape[3], num_threads),
            *_pointers(grad_depth, grad_feat),
        )
        _raise_fault(code)

    def pool_table_fault(
        self,
        runs: Int32[np.ndarray, "r 3"],
        cell_start: Int32[np.ndarray, " g_plus_1"],
        depth_shape: tuple[int, int, int, int],
    ) -> str | None:
        """Why a table may not be used with a depth of this shape [n, d, h, w]; None if it may.

        A point that is in two runs is not looked for: it counts twice.
        """
        _require(len(depth_shape) == 4, "pool_table_fault", table=(runs, cell_start))
        if max(depth_shape) > INT32_MAX:
            return _FAULTS[_BAD_SIZE]
        code = self.functions.bev_pool_check_table(
            *_pointers(runs),
            ctypes.c_int64(len(runs)),
            *_pointers(cell_start),
            *_sizes(len(cell_start) - 1, *depth_shape),
        )
        return _FAULTS[code] if code else None

    def build_pool_table(
        self,
        R_ego_pixel: Float64[np.ndarray, "cam 3 3"],
        t_ego: Float64[np.ndarray, "cam 3"],
        used: Bool[np.ndarray, " cam"],
        frustum: Frustum,
        grid: BevGrid,
        feature_height: int,
        feature_width: int,
        num_threads: int = 1,
    ) -> tuple[Int32[np.ndarray, "r 3"], Int32[np.ndarray, " g_plus_1"]]:
        """Runs and starts of a rig's table: the one that `pool_table` builds, entry by entry.

        Args:
            R_ego_pixel: Takes (u d, v d, d) to the ego frame's axes, per camera.
            t_ego: Camera's place in the ego frame, per camera [m].
            used: False for a camera that gives no points; its matrices are not read.
            frustum: Depth bins and stride.
            grid: The cells.
            feature_height: Rows of the feature map.
            feature_width: Columns of the feature map.
            num_threads: At most one per camera is used.
        """
        _require(
            used.shape == (len(used),)
            and R_ego_pixel.shape == (len(used), 3, 3)
            and t_ego.shape == (len(used), 3),
            "build_pool_table",
            doubles=(R_ego_pixel, t_ego),
            flags=(used,),
        )
        num_points = len(used) * frustum.num_depths * feature_height * feature_width
        if num_points > INT32_MAX or grid.num_cells >= INT32_MAX:
            _raise_fault(_BAD_SIZE)
        runs = np.empty((num_points, 3), np.int32)  # memory is taken where it is written: little
        cell_start = np.empty(grid.num_cells + 1, np.int32)
        frustum_struct = _FrustumStruct(
            frustum.depth_min,
            frustum.depth_step,
            frustum.z_min,
            frustum.z_max,
            frustum.num_depths,
            feature_height,
            feature_width,
            frustum.stride,
        )
        grid_struct = _GridStruct(grid.x_min, grid.y_min, grid.cell, grid.nx, grid.ny)
        code = self.functions.bev_pool_build_table(
            *_pointers(R_ego_pixel, t_ego, used),
            *_sizes(len(used)),
            ctypes.byref(frustum_struct),
            ctypes.byref(grid_struct),
            *_sizes(num_threads),
            ctypes.c_int64(num_points),
            *_pointers(runs, cell_start),
        )
        _raise_fault(code)
        return runs[: cell_start[-1]].copy(), cell_start


def library() -> NativeLibrary | None:
    """The library, or None where it was not built or does not load.

    Raises:
        InputError: `$BEV_PLUGINS` names a file that is not this library.
    """
    return _load()[0]


def library_path() -> Path | None:
    """The library's file."""
    loaded = library()
    return loaded.path if loaded else None


def description() -> str:
    """One line: which form of the kernels is in use, and why."""
    loaded, why = _load()
    if loaded is None:
        return f"kernels in Python ({why})"
    return f"compiled kernels, {loaded.isa} ({loaded.path})"


@lru_cache(maxsize=1)
def _load() -> tuple[NativeLibrary | None, str]:
    """The library, and why there is none."""
    named = os.environ.get("BEV_PLUGINS")
    if named == "":
        return None, "BEV_PLUGINS is empty"
    if named is not None:
        try:
            return NativeLibrary(Path(named).absolute()), ""
        except OSError as error:
            raise InputError(
                f"BEV_PLUGINS names {named}, expected a {LIBRARY_NAME} ({error}): build it, or "
                "unset the variable"
            ) from error
    # an editable install has the Python files here and the library in the environment
    package = Path(__file__).resolve().parent
    folders = [package, Path(sysconfig.get_path("platlib")) / package.name]
    build = package.parent / "build" / "plugins"
    why = []
    for path in (folder / LIBRARY_NAME for folder in (*folders, build)):
        if path.is_file():
            try:
                return NativeLibrary(path), ""
            except OSError as error:
                why.append(str(error))
    missing = f"{LIBRARY_NAME} was not built when this was installed, which takes a C++ compiler"
    return None, "; ".join(why) or missing


def address(array: np.ndarray) -> ctypes.c_void_p:
    """Where an array's numbers lie, for a compiled function; keeps the array alive."""
    return array.ctypes.data_as(ctypes.c_void_p)


def _pointers(*arrays: np.ndarray) -> list[ctypes.c_void_p]:
    """Addresses of arrays, once they are known to be contiguous."""
    for array in arrays:
        if not array.flags.c_contiguous:
            raise InputError(f"array of shape {array.shape} is not contiguous, pass a copy of it")
    return [ctypes.c_void_p(array.ctypes.data) for array in arrays]


def _sizes(*sizes: int) -> list[ctypes.c_int32]:
    return [ctypes.c_int32(size) for size in sizes]


def _require(
    condition: bool,
    name: str,
    *,
    floats: tuple[np.ndarray, ...] = (),
    doubles: tuple[np.ndarray, ...] = (),
    flags: tuple[np.ndarray, ...] = (),
    table: tuple[np.ndarray, ...] = (),
) -> None:
    """Refuse arrays of wrong types, or that do not belong together."""
    if table:
        runs, cell_start = table
        condition = condition and runs.shape == (len(runs), 3) and cell_start.ndim == 1
    kinds = ((floats, np.float32), (doubles, np.float64), (flags, np.bool_), (table, np.int32))
    given = [(array, np.dtype(kind)) for arrays, kind in kinds for array in arrays]
    if not condition or any(array.dtype != kind for array, kind in given):
        got = ", ".join(f"{array.dtype}{list(array.shape)}" for array, _ in given)
        expected = ", ".join(kind.name for _, kind in given)
        raise InputError(f"{name} got {got}, expected {expected} of the shapes of one problem")


def _raise_fault(code: int) -> None:
    if code:
        raise InputError(f"the compiled kernel refused its arguments: {_FAULTS[code]}")
