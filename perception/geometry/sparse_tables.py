"""Neighbour tables of sparse 3D convolutions: which rows each output row sees, for one frame.

With them every convolution of the exported encoder is Gather and MatMul. They depend on the voxels'
places alone and are built on the host: by the compiled library where there is one, else by numpy,
with equal results.

    level 0 --strided 0--> level 1 --strided 1--> ... --> dense map
      stage 0 (3x3x3)        stage 1

Rows of level 0 are the voxels in the order given, those of the other levels are sorted by place.
An entry is a row of the table's input level counted from 1; 0, where nothing is, stands for a row
of zeros before the features. So an engine of fixed shapes may follow the tables with any rows: what
those compute is seen by none.
"""

import ctypes
import dataclasses
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int32, Int64

from perception import native
from perception.geometry.pillars import PillarConfig

Axes = tuple[int, int, int]
"""One number per axis, in the order z, y, x."""

CAPACITY_SHARES = (1.0, 1.25, 0.75, 0.3, 0.25)
"""Room for the voxels of each level against those of the first. Source: ours; ten sweeps at 0.075 m
(90,000 of 160,000 voxels) take 1.0, 0.46, 0.15 and 0.13, one sweep of nuScenes (15,000) up to 1.7,
1.2, 0.6 and 0.5, far below the capacity."""

LARGEST_KERNEL = LARGEST_STRIDE = 16
"""Source: export/plugins/kernels/sparse_tables.h; ours, far beyond any network's."""

MOST_PLACES = 2**31 - 2
"""Voxels of a level that int32 can number from 1. Source: arithmetic."""

_NATIVE_ERRORS = {
    1: "a size is out of range",
    2: "a voxel lies outside the grid",
    3: "a voxel is listed twice",
}
"""Source: export/plugins/kernels/sparse_tables.h."""


@dataclass(frozen=True, kw_only=True)
class ConvShape:
    """Kernel, stride and padding of a convolution, in voxels (z, y, x)."""

    kernel: Axes
    stride: Axes = (1, 1, 1)
    padding: Axes = (0, 0, 0)

    def __post_init__(self) -> None:
        """Refuse what no convolution of voxels has."""
        sound = (
            1 <= k <= LARGEST_KERNEL and 1 <= s <= LARGEST_STRIDE and 0 <= p < k
            for k, s, p in zip(self.kernel, self.stride, self.padding, strict=True)
        )
        if not all(sound):
            raise ValueError(
                f"{self} is no convolution: expected kernels of 1 to {LARGEST_KERNEL} voxels, "
                f"strides of 1 to {LARGEST_STRIDE} and a padding below the kernel"
            )

    @property
    def num_offsets(self) -> int:
        """Offsets of the kernel: the k of the weight's layout."""
        return math.prod(self.kernel)

    def output_size(self, size: Axes) -> Axes:
        """Size of the output's grid; below 1 where the kernel does not fit."""
        z, y, x = (
            (n + 2 * p - k) // s + 1
            for n, k, s, p in zip(size, self.kernel, self.stride, self.padding, strict=True)
        )
        return z, y, x


SUBMANIFOLD = ConvShape(kernel=(3, 3, 3), padding=(1, 1, 1))
"""Output voxels are the input voxels: occupancy does not spread."""


def strided_convs(size: Axes) -> tuple[ConvShape, ...]:
    """The encoder's convolutions between the stages and behind the last: z 41 to 21, 11, 5 and 2.

    Source: specs, base network section 5.

    Raises:
        ValueError: There are too few slices. With fewer than three left at the output, its kernel
            covers those there are (ours: the reference knows 40 slices only).
    """
    half = ConvShape(kernel=(3, 3, 3), stride=(2, 2, 2), padding=(1, 1, 1))
    half_no_z_padding = ConvShape(kernel=(3, 3, 3), stride=(2, 2, 2), padding=(0, 1, 1))
    convs = (half, half, half_no_z_padding)
    level = size
    for conv in convs:
        level = conv.output_size(level)
    if level[0] < 1:
        raise ValueError(
            f"num_slices is {size[0] - 1}, expected at least 8: cut the height into more slices"
        )
    return (*convs, ConvShape(kernel=(min(3, level[0]), 1, 1), stride=(2, 1, 1)))


@dataclass(frozen=True, kw_only=True)
class SparseLevels:
    """Resolutions of an exported sparse encoder. Travels in the model card."""

    size: Axes
    """Voxels of the first level."""
    convs: tuple[ConvShape, ...]
    """From each level to the next."""
    capacities: tuple[int, ...]
    """Most rows of each level; what a frame has more is dropped and counted."""

    def __post_init__(self) -> None:
        """Refuse what is no chain of levels."""
        if len(self.capacities) != len(self.convs) + 1 or min(self.capacities) < 0:
            raise ValueError(
                f"capacities are {self.capacities}, expected {len(self.convs) + 1} numbers of "
                "rows, one per level"
            )
        if not self.convs or min(min(size) for size in self.sizes) < 1:
            raise ValueError(f"levels have the sizes {self.sizes}, expected at least one voxel")
        if max(math.prod(size) for size in self.sizes) > MOST_PLACES:
            raise ValueError(f"levels have the sizes {self.sizes}, expected below 2**31 voxels")

    @property
    def sizes(self) -> tuple[Axes, ...]:
        """Size of each level."""
        return tuple(itertools.accumulate(self.convs, _next_size, initial=self.size))

    @property
    def unlimited(self) -> "SparseLevels":
        """The same levels with room for every voxel."""
        capacities = tuple(math.prod(size) for size in self.sizes)
        return dataclasses.replace(self, capacities=capacities)

    @property
    def axis_sizes(self) -> dict[str, int]:
        """Most rows of each axis that varies, by its name in a graph; level 1 has the pillars'."""
        return {_axis_name(level): rows for level, rows in enumerate(self.capacities)}

    @property
    def table_axes(self) -> dict[str, str | None]:
        """Names of the tables as inputs of a graph, and of their first axis where it varies."""
        levels = range(len(self.convs))
        return {
            **{f"stage_table_{i + 1}": _axis_name(i) for i in levels},
            **{f"strided_table_{i + 1}": _axis_name(i + 1) for i in levels},
            "dense_table": None,
        }


def encoder_levels(
    pillars: PillarConfig, shares: tuple[float, ...] = CAPACITY_SHARES
) -> SparseLevels:
    """Levels of the sparse encoder over the voxels of a configuration.

    Args:
        pillars: Voxel grid; `max_pillars` is the capacity of the first level.
        shares: Capacity of each level against the first; no level needs more than its places.
    """
    # one slice of padding on top. Source: specs, base network section 3
    size: Axes = (pillars.num_slices + 1, pillars.grid.ny, pillars.grid.nx)
    convs = strided_convs(size)
    sizes = itertools.accumulate(convs, _next_size, initial=size)
    capacities = (
        min(math.ceil(share * pillars.max_pillars), math.prod(level))
        for share, level in zip(shares, sizes, strict=True)
    )
    return SparseLevels(size=size, convs=convs, capacities=tuple(capacities))


@dataclass(frozen=True, kw_only=True)
class SparseTables:
    """The tables of one frame."""

    stages: tuple[Int32[np.ndarray, "_ 27"], ...]
    """What each row sees within its own level, for every level but the last."""
    strided: tuple[Int32[np.ndarray, "_ _"], ...]
    """What each row of a level sees in the level before, for every level but the first."""
    dense: Int32[np.ndarray, " y_x_z"]
    """Row of the last level at each of its places, ordered (y, x, z), counted from 1."""
    num_rows: tuple[int, ...]
    """Occupied voxels of each level that the tables hold."""
    num_dropped: tuple[int, ...]
    """Voxels of each level beyond its capacity: of the first those listed last, of the others
    those of the highest places."""

    @property
    def by_name(self) -> dict[str, Int32[np.ndarray, "..."]]:
        """The tables as inputs of a graph, named as in `SparseLevels.table_axes`."""
        return {
            **{f"stage_table_{i}": table for i, table in enumerate(self.stages, start=1)},
            **{f"strided_table_{i}": table for i, table in enumerate(self.strided, start=1)},
            "dense_table": self.dense,
        }


def build_sparse_tables(
    cells: Int32[np.ndarray, " v"],
    levels: SparseLevels,
    *,
    num_threads: int = 1,
) -> SparseTables:
    """Build the tables of a frame.

    Args:
        cells: Place of each voxel, `(iz * ny + iy) * nx + ix`, no place twice, in any order.
        levels: Grids and convolutions.
        num_threads: Threads of the compiled library; results do not depend on it.

    Raises:
        ValueError: A voxel lies outside the grid or is listed twice, or `cells` is no such array.
    """
    if cells.dtype != np.int32 or cells.ndim != 1:
        raise ValueError(f"cells are {cells.dtype}{list(cells.shape)}, expected int32 on one axis")
    library = native.library()
    if library is None:
        return build_with_numpy(cells, levels)
    entry = library.functions.sparse_tables_build
    return build_with_library(entry, cells, levels, num_threads=num_threads)


def build_with_library(
    entry: Callable[..., int],
    cells: Int32[np.ndarray, " v"],
    levels: SparseLevels,
    *,
    num_threads: int = 1,
) -> SparseTables:
    """As `build_sparse_tables`, by the C function `sparse_tables_build`."""
    # pages of np.empty that nothing is written to cost nothing
    room = _room(len(cells), levels)
    stages = [np.empty((rows, 27), np.int32) for rows in room[:-1]]
    strided = [
        np.empty((rows, conv.num_offsets), np.int32)
        for rows, conv in zip(room[1:], levels.convs, strict=True)
    ]
    dense = np.empty(math.prod(levels.sizes[-1]), np.int32)
    num_rows, num_dropped = np.zeros((2, len(room)), np.int32)
    shapes = np.array([(c.kernel, c.stride, c.padding) for c in levels.convs], np.int32)
    cells = np.ascontiguousarray(cells)
    error = entry(
        *(native.address(cells), len(cells), native.address(np.array(levels.size, np.int32))),
        *(native.address(shapes), len(levels.convs), native.address(np.array(room, np.int32))),
        *(num_threads, _addresses(stages), _addresses(strided), native.address(dense)),
        *(native.address(num_rows), native.address(num_dropped)),
    )
    if error == 10:
        raise MemoryError("no memory for the tables of sparse convolutions")
    if error:
        raise ValueError(_message(_NATIVE_ERRORS.get(error, f"error {error}"), levels))
    rows = num_rows.tolist()
    return SparseTables(
        stages=tuple(table[:n] for table, n in zip(stages, rows[:-1], strict=True)),
        strided=tuple(table[:n] for table, n in zip(strided, rows[1:], strict=True)),
        dense=dense,
        num_rows=tuple(num_rows.tolist()),
        num_dropped=tuple(num_dropped.tolist()),
    )


def build_with_numpy(cells: Int32[np.ndarray, " v"], levels: SparseLevels) -> SparseTables:
    """As `build_sparse_tables`, without compiled code: slower, and the definition."""
    kept = cells[: levels.capacities[0]]
    order = np.argsort(kept, kind="stable")
    key = kept[order].astype(np.int64)
    if len(key) and (key[0] < 0 or key[-1] >= math.prod(levels.size)):
        raise ValueError(_message(_NATIVE_ERRORS[2], levels))
    if (key[1:] == key[:-1]).any():
        raise ValueError(_message(_NATIVE_ERRORS[3], levels))
    stages, strided = [], []
    num_rows, num_dropped = [len(key)], [len(cells) - len(kept)]
    level = _Level(key, order, levels.size)
    for conv, capacity in zip(levels.convs, levels.capacities[1:], strict=True):
        reached = _reached(level, conv)
        key = reached[:capacity]
        num_rows.append(len(key))
        num_dropped.append(len(reached) - len(key))
        level_out = _Level(key, np.arange(len(key)), conv.output_size(level.size))
        stages.append(_table(level, level, SUBMANIFOLD))
        strided.append(_table(level, level_out, conv))
        level = level_out
    dense = np.zeros(levels.sizes[-1], np.int32)
    dense.reshape(-1)[level.key] = level.row + 1
    return SparseTables(
        stages=tuple(stages),
        strided=tuple(strided),
        dense=dense.transpose(1, 2, 0).reshape(-1),
        num_rows=tuple(num_rows),
        num_dropped=tuple(num_dropped),
    )


@dataclass(frozen=True)
class _Level:
    """Occupied voxels of one resolution."""

    key: Int64[np.ndarray, " n"]
    """Places in rising order."""
    row: Int64[np.ndarray, " n"]
    """Row of each of them."""
    size: Axes

    def places(self) -> tuple[Int64[np.ndarray, " n"], ...]:
        """z, y, x of each key."""
        _, ny, nx = self.size
        return self.key // (ny * nx), self.key // nx % ny, self.key % nx


def _reached(level: _Level, conv: ConvShape) -> Int64[np.ndarray, " m"]:
    """Places of all output voxels whose kernel covers an occupied one, in rising order."""
    size = conv.output_size(level.size)
    keys = []
    for offset in itertools.product(*(range(k) for k in conv.kernel)):
        axes = zip(level.places(), conv.padding, offset, conv.stride, size, strict=True)
        valid, key = np.ones(len(level.key), bool), np.zeros(len(level.key), np.int64)
        for place, padding, k, stride, limit in axes:
            out, rest = np.divmod(place + padding - k, stride)
            valid &= (rest == 0) & (out >= 0) & (out < limit)
            key = key * limit + out
        keys.append(key[valid])
    return np.unique(np.concatenate(keys))


def _table(level_in: _Level, level_out: _Level, conv: ConvShape) -> Int32[np.ndarray, "n k"]:
    table = np.zeros((len(level_out.key), conv.num_offsets), np.int32)
    key = np.append(level_in.key, -1)  # what a search finds behind the last voxel
    places = level_out.places()
    for k, offset in enumerate(itertools.product(*(range(k) for k in conv.kernel))):
        axes = zip(places, conv.stride, conv.padding, offset, level_in.size, strict=True)
        valid: Bool[np.ndarray, " n"] = np.ones(len(level_out.key), bool)
        seen = np.zeros(len(level_out.key), np.int64)
        for place, stride, padding, o, limit in axes:
            coordinate = place * stride - padding + o
            valid &= (coordinate >= 0) & (coordinate < limit)
            seen = seen * limit + coordinate
        rank = np.searchsorted(level_in.key, seen)
        valid &= key[rank] == seen
        table[level_out.row[valid], k] = level_in.row[rank[valid]] + 1
    return table


def _room(num_voxels: int, levels: SparseLevels) -> list[int]:
    """Rows that the tables of so many voxels can need at most, within the capacities."""
    room = [min(num_voxels, levels.capacities[0])]
    for conv, size, capacity in zip(
        levels.convs, levels.sizes[1:], levels.capacities[1:], strict=True
    ):
        spread = math.prod(math.ceil(k / s) for k, s in zip(conv.kernel, conv.stride, strict=True))
        room.append(min(room[-1] * spread, math.prod(size), capacity))
    return room


def _axis_name(level: int) -> str:
    return f"voxels_{level + 1}" if level else "pillars"


def _next_size(size: Axes, conv: ConvShape) -> Axes:
    return conv.output_size(size)


def _addresses(arrays: list[np.ndarray]) -> ctypes.Array:
    return (ctypes.c_void_p * len(arrays))(*(array.ctypes.data for array in arrays))


def _message(fault: str, levels: SparseLevels) -> str:
    return f"{fault}, expected each voxel of a grid of {levels.size} (z, y, x) at most once"
