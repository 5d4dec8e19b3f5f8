"""How both box heads write a box down, and what they are told to say."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from perception.geometry.grid import BevGrid

CODE_COLUMNS = ("dx", "dy", "z", "log_l", "log_w", "log_h", "sin", "cos", "vx", "vy")
"""Centre from a reference position [cells], height [m], log of the size [m], heading, velocity
[m/s] in the ego frame. Source: specs, base network section 2."""

CODE_PARTS = (2, 1, 3, 2, 2)
"""Columns that belong together: centre, height, size, heading, velocity."""

CODE_WEIGHTS = (1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.2, 0.2)
BOX_LOSS_WEIGHT = 0.25
"""Source: specs, base network section 7 (L1 weight 0.25, velocity 0.2)."""


@dataclass(frozen=True, kw_only=True)
class BoxTargets:
    """What a box head should have said; made by `perception.data.targets`."""

    heatmap: Float[Tensor, "b k y x"]
    """1 at the cell of each object, falling off around it."""
    cell: Int[Tensor, "b n"]
    """Flat cell of each object, `iy * nx + ix`."""
    label: Int[Tensor, "b n"]
    """Class of each object."""
    code: Float[Tensor, "b n 10"]
    """Columns as `CODE_COLUMNS`, from the cell's low corner; NaN where a value is not known
    (velocity): left out of the loss."""
    object_mask: Bool[Tensor, "b n"]
    """Which of the n places hold an object."""
    labelled: Float[Tensor, " b"]
    """1 where the frame's boxes were annotated, else 0: the frame is left out of the loss."""


def cell_corner(cell: Int[Tensor, "*b"], grid: BevGrid) -> Float[Tensor, "*b 2"]:
    """Low corner (x, y) of flat cells [cells]."""
    return torch.stack([cell % grid.nx, cell // grid.nx], dim=-1).float()


def decode_boxes(
    code: Float[Tensor, "*b 10"], reference: Float[Tensor, "*b 2"], grid: BevGrid
) -> Float[Tensor, "*b 9"]:
    """Codes to metric boxes in the ego frame, columns as `perception.geometry.boxes`.

    With the corners of the boxes' cells as reference it is the inverse of
    `perception.data.targets.encode_boxes`.

    Args:
        code: Columns as `CODE_COLUMNS`.
        reference: Where the centre is counted from, (x, y) [cells].
        grid: The head's grid.
    """
    center = grid.metric_coordinates(reference + code[..., 0:2])
    yaw = torch.atan2(code[..., 6], code[..., 7]).unsqueeze(-1)
    return torch.cat([center, code[..., 2:3], code[..., 3:6].exp(), yaw, code[..., 8:10]], dim=-1)


def code_loss(code: Float[Tensor, "*b 10"], wanted: Float[Tensor, "*b 10"]) -> Float[Tensor, "*b"]:
    """Weighted L1 per box over the columns that are known (not NaN in `wanted`)."""
    known = ~torch.isnan(wanted)
    error = (code - torch.where(known, wanted, 0.0)).abs() * known
    return BOX_LOSS_WEIGHT * (error * code.new_tensor(CODE_WEIGHTS)).sum(dim=-1)


def labelled_objects(targets: BoxTargets) -> Bool[Tensor, "b n"]:
    """Objects of the frames that were annotated."""
    return targets.object_mask & (targets.labelled > 0).unsqueeze(-1)
