"""LiDAR voxels to the BEV grid: sparse 3D convolutions, then height folded into channels.

    voxels --> 16 --> [2 blocks 16] --> 32 --> [2 blocks 32] --> 64 --> [2 blocks 64] --> 128
                                    /2       /2              /2 (z unpadded)
           --> [2 blocks 128] --> 128 --> dense [b, 128 * z, y, x]
                              z/2

In training each convolution runs over pairs of rows; `SparseEncoder.tables` and `encode_tables`
are the same network as Gather and MatMul, for export.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from perception.geometry.grid import BevGrid
from perception.geometry.pillars import INTENSITY_MAX, POINT_COLUMNS, PillarConfig
from perception.geometry.sparse_tables import SUBMANIFOLD, Axes, ConvShape, encoder_levels
from perception.models import sparse_conv_spconv
from perception.ops.sparse_conv import (
    ConvPairs,
    VoxelLevel,
    dense_table,
    neighbour_table,
    output_level,
    pairs_of_table,
    sparse_conv,
    sparse_conv_pairs,
)

XY_STRIDE = 8
"""BEV cell in voxels. Source: specs, base network section 5."""
Meeting = ConvPairs | Int[Tensor, "_ _"]
"""Which input rows an output row sees: pairs (any use) or a neighbour table (evaluation)."""


@dataclass(frozen=True, kw_only=True)
class SparseEncoderConfig:
    """Width of the LiDAR branch over voxels."""

    kind: Literal["sparse"] = "sparse"
    """Tells this encoder from the others in a file."""
    channels: tuple[int, int, int, int] = (16, 32, 64, 128)
    """Channels of the four stages. Source: specs, base network section 5."""
    num_blocks: int = 2
    """Residual blocks per stage. Source: same."""
    norm_momentum: float = 0.01
    """Share of a batch in the stored statistics. Source: same; runs of less than about 500 steps
    need more, or evaluation normalises by what has not arrived yet."""
    accelerator: Literal["none", "spconv"] = "none"
    """Library for the convolutions on NVIDIA GPUs; same weights, no effect on a file's content."""

    def __post_init__(self) -> None:
        """Refuse what is no network."""
        if min(self.channels) < 1 or self.num_blocks < 0:
            raise ValueError(
                f"channels are {self.channels} and num_blocks {self.num_blocks}, expected channels "
                "of at least 1 and a number of blocks"
            )


class TableTensors(NamedTuple):
    """`perception.geometry.sparse_tables.SparseTables` of one batch, as tensors of a graph."""

    stages: tuple[Int[Tensor, "_ 27"], ...]
    """Submanifold table of each stage."""
    strided: tuple[Int[Tensor, "_ _"], ...]
    """Table of each strided convolution: into stages 2, 3, 4 and the output."""
    dense: Int[Tensor, " b_y_x_z"]
    """Row of the output, counted from 1, at each place of the grid (frame, y, x, z)."""


class SparseConvNorm(nn.Module):
    """Sparse convolution without bias, batch norm over its rows."""

    def __init__(self, c_in: int, c_out: int, shape: ConvShape, momentum: float):
        super().__init__()
        self.shape = shape
        # He et al. 2015; empty neighbours make it less, which the norm mends
        std = (2.0 / (shape.num_offsets * c_in)) ** 0.5
        self.weight = nn.Parameter(torch.randn(shape.num_offsets, c_in, c_out) * std)
        # Source of eps: specs, base network section 5
        self.norm = nn.BatchNorm1d(c_out, eps=1e-3, momentum=momentum)

    def forward(
        self, x: Float[Tensor, "n_in c_in"], meeting: Meeting
    ) -> Float[Tensor, "n_out c_out"]:
        """Convolve and normalise.

        Args:
            x: Features of the input's rows.
            meeting: Pairs: convolved in the type of the autocast region, if there is one, and
                normalised in fp32. Or a table: normalised by the weights, for evaluation only.
        """
        if not isinstance(meeting, ConvPairs):
            return sparse_conv(x, meeting, *self.folded())
        weight: Tensor = self.weight
        kind = x.device.type
        # raw columns hold metres, which bf16 would round to a quarter
        if torch.is_autocast_enabled(kind) and x.shape[1] != len(POINT_COLUMNS):
            dtype = torch.get_autocast_dtype(kind)
            x, weight = x.to(dtype), weight.to(dtype)
        return self.normalise(sparse_conv_pairs(x, weight, meeting))

    def normalise(self, x: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        """Batch norm over rows; none, or a single one, have no statistics of their own."""
        norm = self.norm
        # a norm that gathers its rows from several processes must be called by all of them
        if type(norm) is nn.BatchNorm1d and norm.training and len(x) < 2:
            stored = norm.running_mean, norm.running_var
            return F.batch_norm(x, *stored, norm.weight, norm.bias, eps=norm.eps)
        return norm(x)

    def folded(self) -> tuple[Float[Tensor, "k c_in c_out"], Float[Tensor, " c_out"]]:
        """Weight and bias of the convolution together with its norm in evaluation."""
        norm = self.norm
        if norm.running_mean is None or norm.running_var is None:
            raise ValueError("batch norm has no running statistics, expected track_running_stats")
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        return self.weight * scale, norm.bias - norm.running_mean * scale


class SparseBlock(nn.Module):
    """Two submanifold convolutions and a skip. Source: specs, base network section 5."""

    def __init__(self, channels: int, momentum: float):
        super().__init__()
        self.first = SparseConvNorm(channels, channels, SUBMANIFOLD, momentum)
        self.second = SparseConvNorm(channels, channels, SUBMANIFOLD, momentum)

    def forward(self, x: Float[Tensor, "n c"], meeting: Meeting) -> Float[Tensor, "n c"]:
        """Return x plus what the convolutions add."""
        return torch.relu(x + self.second(torch.relu(self.first(x, meeting)), meeting))


class SparseStage(nn.Module):
    """Residual blocks at one resolution, then the convolution that leaves it."""

    def __init__(self, c_in: int, c_out: int, num_blocks: int, down: ConvShape, momentum: float):
        super().__init__()
        self.blocks = nn.ModuleList(SparseBlock(c_in, momentum) for _ in range(num_blocks))
        self.down = SparseConvNorm(c_in, c_out, down, momentum)

    def forward(
        self, x: Float[Tensor, "n_in c_in"], within: Meeting, down: Meeting
    ) -> Float[Tensor, "n_out c_out"]:
        """Encode the rows of one level, return those of the next."""
        for block in self.blocks:
            x = block(x, within)
        return torch.relu(self.down(x, down))


class SparseEncoder(nn.Module):
    """Voxel means through sparse convolutions. Source: specs, base network section 5."""

    def __init__(self, config: SparseEncoderConfig, pillars: PillarConfig, bev_grid: BevGrid):
        super().__init__()
        grid = pillars.grid
        bev_grid.fine_cells(grid, allowed=(XY_STRIDE,))
        self.num_slices = pillars.num_slices
        levels = encoder_levels(pillars)
        self.size: Axes = levels.size
        self.convs = levels.convs
        self.output_size: Axes = levels.sizes[-1]
        c = config.channels
        self.out_channels = c[3] * self.output_size[0]
        momentum = config.norm_momentum
        self.stem = SparseConvNorm(len(POINT_COLUMNS), c[0], SUBMANIFOLD, momentum)
        widths = zip(c, (*c[1:], c[3]), self.convs, strict=True)
        self.stages = nn.ModuleList(
            SparseStage(c_in, c_out, config.num_blocks, conv, momentum)
            for c_in, c_out, conv in widths
        )
        self.accelerator = config.accelerator

    def forward(
        self,
        pillar_points: Float[Tensor, "v m 5"],
        pillar_num_points: Int[Tensor, " v"],
        pillar_cell: Int[Tensor, " v"],
        cell_pillar: Int[Tensor, " _"],
        lidar_mask: Float[Tensor, "b 1"],
        tables: TableTensors | None = None,
    ) -> Float[Tensor, "b c y x"]:
        """Encode voxels; a masked LiDAR gives zeros and has no part in the batch's statistics.

        Args:
            pillar_points: Points of each voxel, zero where unused.
            pillar_num_points: Points used per voxel.
            pillar_cell: Voxel's cell, `((frame * num_slices + iz) * ny + iy) * nx + ix`.
            cell_pillar: Unused: neighbours are found by search.
            lidar_mask: 1 where the frame's LiDAR counts.
            tables: Neighbours of the voxels, for an exported graph in evaluation; see `tables`.
        """
        if tables is not None:
            return self.encode_tables(pillar_points, pillar_num_points, tables, lidar_mask)
        features = voxel_features(pillar_points, pillar_num_points)
        key, frame = self._key(pillar_cell)
        kept = torch.nonzero(lidar_mask[frame, 0])[:, 0]
        level, features = VoxelLevel(key[kept], self.size), features[kept]
        if self.accelerator == "spconv":
            bev = sparse_conv_spconv.encode(self, features, level, lidar_mask.shape[0])
        else:
            bev = self._encode_pairs(features, level, lidar_mask.shape[0])
        return bev * lidar_mask[:, :, None, None]

    def encode_tables(
        self,
        pillar_points: Float[Tensor, "v m 5"],
        pillar_num_points: Int[Tensor, " v"],
        tables: TableTensors,
        lidar_mask: Float[Tensor, "b 1"],
    ) -> Float[Tensor, "b c y x"]:
        """The evaluation of `forward`, made of what every inference engine has."""
        x = voxel_features(pillar_points, pillar_num_points)
        x = torch.relu(self.stem(x, tables.stages[0]))
        for stage, within, down in zip(self.stages, tables.stages, tables.strided, strict=True):
            x = stage(x, within, down)
        rows = torch.cat([x.new_zeros(1, x.shape[1]), x])
        nz, ny, nx = self.output_size
        bev = rows.index_select(0, tables.dense).reshape(-1, ny, nx, nz, x.shape[1])
        bev = bev.permute(0, 4, 3, 1, 2).reshape(-1, self.out_channels, ny, nx)
        return bev * lidar_mask[:, :, None, None]

    @torch.no_grad()
    def tables(self, pillar_cell: Int[Tensor, " v"], num_frames: int = 1) -> TableTensors:
        """The tables of a batch; `encode_tables` takes its voxels in this very order."""
        level = VoxelLevel(self._key(pillar_cell)[0], self.size)
        stages, strided = [], []
        for conv in self.convs:
            stages.append(neighbour_table(level, level, SUBMANIFOLD))
            level_out = output_level(level, conv)
            strided.append(neighbour_table(level, level_out, conv))
            level = level_out
        dense = dense_table(level, num_frames).reshape(num_frames, *self.output_size)
        return TableTensors(
            stages=tuple(stages),
            strided=tuple(strided),
            dense=dense.permute(0, 2, 3, 1).reshape(-1).contiguous(),
        )

    def _encode_pairs(
        self, x: Float[Tensor, "v 5"], level: VoxelLevel, num_frames: int
    ) -> Float[Tensor, "b c y x"]:
        within = _pairs(level, level, SUBMANIFOLD)
        x = torch.relu(self.stem(x, within))
        for i, (stage, conv) in enumerate(zip(self.stages, self.convs, strict=True)):
            if i > 0:
                within = _pairs(level, level, SUBMANIFOLD)
            level_out = output_level(level, conv)
            x = stage(x, within, _pairs(level, level_out, conv))
            level = level_out
        nz, ny, nx = self.output_size
        bev = x.new_zeros(num_frames * nz * ny * nx, x.shape[1]).index_copy(0, level.key, x)
        bev = bev.reshape(num_frames, nz, ny, nx, -1).permute(0, 4, 1, 2, 3)
        return bev.reshape(num_frames, self.out_channels, ny, nx)

    def _key(self, pillar_cell: Int[Tensor, " v"]) -> tuple[Int[Tensor, " v"], Int[Tensor, " v"]]:
        """Place of each voxel on the padded grid, and its frame."""
        cell = pillar_cell.long()
        frame = cell // (self.num_slices * self.size[1] * self.size[2])
        return cell + frame * (self.size[1] * self.size[2]), frame


def voxel_features(
    pillar_points: Float[Tensor, "v m 5"], pillar_num_points: Int[Tensor, " v"]
) -> Float[Tensor, "v 5"]:
    """Mean of each voxel's points. Source: specs, base network section 5."""
    mean = pillar_points.sum(dim=1) / pillar_num_points.clamp(min=1).unsqueeze(1)
    # intensity to 0..1, as for pillars; the other columns as they are
    return mean / mean.new_tensor((1.0, 1.0, 1.0, INTENSITY_MAX, 1.0))


def _pairs(level_in: VoxelLevel, level_out: VoxelLevel, conv: ConvShape) -> ConvPairs:
    with torch.no_grad():
        return pairs_of_table(neighbour_table(level_in, level_out, conv))
