"""Sparse 3D convolution: only occupied voxels are kept, as rows of features.

Which input row meets which output row at which kernel offset is worked out once per level, from
the voxels' integer coordinates, and shared by all convolutions of that shape. Two forms of one sum:

    pairs   out[out_row] += x[in_row] @ weight[k], offset by offset: least work; for training
    table   concat(0, x)[table].reshape(n_out, k * c_in) @ weight: Gather and MatMul; for export

Weights are `[k, c_in, c_out]`; k counts the kernel's offsets row by row in (z, y, x), so that
`weight.reshape(kz, ky, kx, c_in, c_out)` is a dense convolution's, written in another order.

Rows in a table are counted from 1; 0 where nothing is.

Source: Graham et al. 2018 (submanifold convolution); search by lines and both forms are ours.
"""

import itertools
import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from perception.geometry.sparse_tables import Axes, ConvShape


class VoxelLevel:
    """Occupied voxels of b frames at one resolution, one row per voxel, in any order.

    Args:
        key: Place of each row's voxel, `((frame * nz + z) * ny + y) * nx + x`, no place twice.
        size: nz, ny, nx.
    """

    def __init__(self, key: Int[Tensor, " v"], size: Axes):
        self.size = size
        self.key = key.long()
        self.sorted_key, row = torch.sort(self.key)
        self._row_of_rank = torch.cat([row + 1, row.new_zeros(1)])

    @property
    def num_rows(self) -> int:
        """Occupied voxels of all frames."""
        return self.key.shape[0]

    def frame_and_place(self) -> tuple[Int[Tensor, " v"], Int[Tensor, "v 3"]]:
        """Frame and (z, y, x) of each row."""
        nz, ny, nx = self.size
        x, y, z = self.key % nx, self.key // nx % ny, self.key // (nx * ny) % nz
        return self.key // (nx * ny * nz), torch.stack([z, y, x], dim=1)

    def row_of_rank(self, rank: Int[Tensor, "*n"]) -> Int[Tensor, "*n"]:
        """Row, counted from 1, of the voxel `rank`-th by key; 0 for the one behind the last."""
        return self._row_of_rank[rank]


def output_level(level: VoxelLevel, conv: ConvShape) -> VoxelLevel:
    """Voxels that a strided convolution reaches: all whose kernel covers an occupied one.

    Raises:
        ValueError: The kernel does not fit into the level's grid.
    """
    size = conv.output_size(level.size)
    if min(size) < 1:
        raise ValueError(
            f"voxel grid is {level.size} (z, y, x), expected at least the kernel {conv.kernel} "
            f"with padding {conv.padding}: use smaller voxels or a larger range"
        )
    frame, place = level.frame_and_place()
    stride, padding, kernel, limit = (
        place.new_tensor(axes) for axes in (conv.stride, conv.padding, conv.kernel, size)
    )
    last = (place + padding).div(stride, rounding_mode="floor")
    reach = [range(math.ceil(k / s)) for k, s in zip(conv.kernel, conv.stride, strict=True)]
    keys = []
    for back in itertools.product(*reach):
        out = last - place.new_tensor(back)
        covered = place + padding - out * stride < kernel
        valid = (covered & (out >= 0) & (out < limit)).all(dim=1)
        keys.append(_key(frame, out, size)[valid])
    return VoxelLevel(torch.unique(torch.cat(keys)), size)


def neighbour_table(
    level_in: VoxelLevel, level_out: VoxelLevel, conv: ConvShape
) -> Int[Tensor, "n_out k"]:
    """Input row, counted from 1, that each output row sees at each kernel offset, int32.

    Where a place is empty or outside the grid it is 0: the row of zeros before the features.
    """
    frame, place = level_out.frame_and_place()
    origin = place * place.new_tensor(conv.stride) - place.new_tensor(conv.padding)
    limit = place.new_tensor(level_in.size)
    nothing = level_in.key.new_full((1,), torch.iinfo(torch.int64).min)
    keys = torch.cat([level_in.sorted_key, nothing])
    columns = []
    for kz, ky in itertools.product(range(conv.kernel[0]), range(conv.kernel[1])):
        seen = origin + place.new_tensor((kz, ky, 0))
        on_line = ((seen >= 0) & (seen < limit))[:, :2].all(dim=1)
        first = _key(frame, seen, level_in.size)
        # one search per line of the kernel: the voxels of a line follow one another by rank
        rank = torch.searchsorted(level_in.sorted_key, first)
        for kx in range(conv.kernel[2]):
            x = seen[:, 2] + kx
            occupied = keys[rank] == first + kx
            valid = occupied & on_line & (x >= 0) & (x < level_in.size[2])
            row = level_in.row_of_rank(torch.where(valid, rank, level_in.num_rows))
            columns.append(row.int())
            rank = rank + occupied
    return torch.stack(columns, dim=1)


def dense_table(level: VoxelLevel, num_frames: int) -> Int[Tensor, " b_z_y_x"]:
    """Row of each place of the whole grid, counted from 1, frame by frame; 0 where it is empty."""
    num_places = num_frames * math.prod(level.size)
    table = torch.zeros(num_places, dtype=torch.int32, device=level.key.device)
    rows = torch.arange(1, level.num_rows + 1, dtype=torch.int32, device=level.key.device)
    table[level.key] = rows
    return table


@dataclass(frozen=True, kw_only=True)
class ConvPairs:
    """Which input row goes to which output row, grouped by kernel offset."""

    in_row: Int[Tensor, " p"]
    out_row: Int[Tensor, " p"]
    """No row occurs twice within an offset, on either side."""
    counts: tuple[int, ...]
    """Pairs of each offset, adding up to p."""
    num_out: int
    """Output rows."""


def pairs_of_table(table: Int[Tensor, "n_out k"]) -> ConvPairs:
    """List the entries of a table that are not empty."""
    by_offset = table.t()
    offset, out_row = torch.nonzero(by_offset, as_tuple=True)
    counts = torch.bincount(offset, minlength=table.shape[1]).tolist()
    return ConvPairs(
        in_row=by_offset[offset, out_row].long() - 1,
        out_row=out_row,
        counts=tuple(counts),
        num_out=table.shape[0],
    )


def sparse_conv_pairs(
    x: Float[Tensor, "n_in c_in"], weight: Float[Tensor, "k c_in c_out"], pairs: ConvPairs
) -> Float[Tensor, "n_out c_out"]:
    """Convolve in the pairs form; products in the type of x, summed in at least fp32.

    Note: bits do not change from run to run, on a GPU neither: offsets are added one after the
    other, and within an offset no row is written twice.
    """
    return _PairsConv.apply(x, weight, pairs)


def sparse_conv_table(
    x: Float[Tensor, "n_in c_in"],
    weight: Float[Tensor, "k c_in c_out"],
    bias: Float[Tensor, " c_out"],
    table: Int[Tensor, "n_out k"],
) -> Float[Tensor, "n_out c_out"]:
    """Convolve in the table form.

    Note: agreement with the pairs form 1e-6 relative in fp32 (another order of summation).
    """
    padded = torch.cat([x.new_zeros(1, x.shape[1]), x])
    columns = padded.index_select(0, table.reshape(-1))
    k, c_in, c_out = weight.shape
    return columns.reshape(-1, k * c_in) @ weight.reshape(k * c_in, c_out) + bias


@torch.library.custom_op("perception::sparse_conv", mutates_args=())
def sparse_conv(x: Tensor, table: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`sparse_conv_table` as one operator, which an exported graph has as one node; no gradient."""
    return sparse_conv_table(x, weight, bias, table)


@sparse_conv.register_fake
def _(x: Tensor, table: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return x.new_empty(table.shape[0], weight.shape[2])


class _PairsConv(torch.autograd.Function):
    """The pairs form; keeps its inputs only and gathers again for the backward pass."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, pairs: ConvPairs) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.pairs = pairs
        dtype = torch.promote_types(x.dtype, torch.float32)
        out = x.new_zeros(pairs.num_out, weight.shape[2], dtype=dtype)
        with torch.autocast(x.device.type, enabled=False):
            for k, (in_row, out_row) in _offsets(pairs):
                product = x.index_select(0, in_row) @ weight[k]
                out.index_add_(0, out_row, product.to(dtype))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        grad_x = torch.zeros_like(x, dtype=grad_out.dtype) if ctx.needs_input_grad[0] else None
        grad_weight = torch.zeros_like(weight)
        grad_out = grad_out.to(x.dtype)
        with torch.autocast(x.device.type, enabled=False):
            for k, (in_row, out_row) in _offsets(ctx.pairs):
                grad = grad_out.index_select(0, out_row)
                grad_weight[k] = x.index_select(0, in_row).t() @ grad
                if grad_x is not None:
                    grad_x.index_add_(0, in_row, (grad @ weight[k].t()).to(grad_x.dtype))
        return grad_x if grad_x is None else grad_x.to(x.dtype), grad_weight, None


def _offsets(pairs: ConvPairs):
    """Offset and its rows, for those that have any."""
    rows = zip(pairs.in_row.split(pairs.counts), pairs.out_row.split(pairs.counts), strict=True)
    return ((k, both) for k, both in enumerate(rows) if pairs.counts[k])


def _key(frame: Tensor, place: Tensor, size: Axes) -> Tensor:
    """Key of a place; one that lies outside in x borrows a neighbouring line's."""
    nz, ny, nx = size
    return ((frame * nz + place[:, 0]) * ny + place[:, 1]) * nx + place[:, 2]
