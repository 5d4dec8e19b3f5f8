"""Boxes as peaks of a heatmap: the head, its decoding and its loss.

Source: Yin et al. 2021 (CenterPoint); specs, base network section 7, head B, with one group of
classes instead of six.
"""

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from perception.geometry.grid import BevGrid
from perception.models.blocks import conv_bn_relu
from perception.models.losses import gaussian_focal_loss

CODE_COLUMNS = ("dx", "dy", "z", "log_l", "log_w", "log_h", "sin", "cos", "vx", "vy")
"""What is regressed at a peak: offset of the centre inside its cell [cells], height [m], log of the
size [m], heading, velocity [m/s] in the ego frame."""

CODE_WEIGHTS = (1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.2, 0.2)
BOX_LOSS_WEIGHT = 0.25
"""Source: specs, base network section 7 (L1 weight 0.25, velocity 0.2)."""

HEATMAP_BIAS = -2.19
"""Start at a probability of 0.1. Source: Lin et al. 2017 (focal loss), section 4.1."""


@dataclass(frozen=True, kw_only=True)
class CenterHeadConfig:
    """Size of the head."""

    channels: int
    """Channels of the shared convolution."""
    num_boxes: int
    """Boxes decoded per frame."""


@dataclass(frozen=True, kw_only=True)
class CenterHeadOutput:
    """Raw maps of the head."""

    heatmap_logits: Float[Tensor, "b k y x"]
    code: Float[Tensor, "b 10 y x"]
    """Columns as `CODE_COLUMNS`."""


@dataclass(frozen=True, kw_only=True)
class BoxTargets:
    """What the head should have said; made by `perception.data.targets`."""

    heatmap: Float[Tensor, "b k y x"]
    cell: Int[Tensor, "b n"]
    """Flat cell of each object, `iy * nx + ix`."""
    code: Float[Tensor, "b n 10"]
    """NaN where a value is not known (velocity): left out of the loss."""
    object_mask: Bool[Tensor, "b n"]
    """Which of the n places hold an object."""
    labelled: Float[Tensor, " b"]
    """1 where the frame's boxes were annotated, else 0: the frame is left out of the loss."""


class CenterHead(nn.Module):
    """Heatmap per class and one box code per cell."""

    def __init__(self, config: CenterHeadConfig, c_in: int, num_classes: int, grid: BevGrid):
        super().__init__()
        self.grid = grid
        self.num_boxes = config.num_boxes
        c = config.channels
        self.shared = conv_bn_relu(c_in, c)
        to_heatmap = nn.Conv2d(c, num_classes, 1)
        nn.init.constant_(cast(Tensor, to_heatmap.bias), HEATMAP_BIAS)
        self.heatmap = nn.Sequential(conv_bn_relu(c, c), to_heatmap)
        self.code = nn.Sequential(conv_bn_relu(c, c), nn.Conv2d(c, len(CODE_COLUMNS), 1))

    def forward(self, bev: Float[Tensor, "b c y x"]) -> CenterHeadOutput:
        """Predict the maps."""
        x = self.shared(bev)
        return CenterHeadOutput(heatmap_logits=self.heatmap(x), code=self.code(x))

    def decode(
        self, output: CenterHeadOutput
    ) -> tuple[Float[Tensor, "b n 9"], Float[Tensor, "b n"], Int[Tensor, "b n"]]:
        """Read metric boxes off the peaks, best first.

        Returns:
            Boxes in the ego frame (columns as `perception.geometry.boxes`), scores 0..1, labels.
        """
        scores, labels, cell = self.peaks(output)
        code = output.code.float().flatten(2).transpose(1, 2)
        code = code.gather(1, cell.unsqueeze(-1).expand(-1, -1, len(CODE_COLUMNS)))
        return decode_boxes(code, cell, self.grid), scores, labels

    def peaks(
        self, output: CenterHeadOutput
    ) -> tuple[Float[Tensor, "b n"], Int[Tensor, "b n"], Int[Tensor, "b n"]]:
        """Scores, labels and flat cells of the highest peaks, best first."""
        score = torch.sigmoid(output.heatmap_logits.float())
        is_peak = score == F.max_pool2d(score, kernel_size=3, stride=1, padding=1)
        num_cells = score.shape[2] * score.shape[3]
        scores, index = (score * is_peak).flatten(1).topk(self.num_boxes, dim=1)
        return scores, index // num_cells, index % num_cells

    def loss(self, output: CenterHeadOutput, targets: BoxTargets) -> dict[str, Float[Tensor, ""]]:
        """Focal loss on the heatmap and L1 on the codes of the labelled frames."""
        labelled = targets.labelled[:, None, None, None]
        heatmap = gaussian_focal_loss(output.heatmap_logits.float(), targets.heatmap, labelled)
        code = output.code.float().flatten(2).transpose(1, 2)
        code = code.gather(1, targets.cell.unsqueeze(-1).expand(-1, -1, len(CODE_COLUMNS)))
        known = ~torch.isnan(targets.code)
        wanted = torch.where(known, targets.code, 0.0)
        used = known & targets.object_mask.unsqueeze(-1) & (targets.labelled[:, None, None] > 0)
        error = (code - wanted).abs() * used * code.new_tensor(CODE_WEIGHTS)
        num_objects = (targets.object_mask * targets.labelled[:, None]).sum().clamp(min=1.0)
        return {"heatmap": heatmap, "box": BOX_LOSS_WEIGHT * error.sum() / num_objects}


def decode_boxes(
    code: Float[Tensor, "b n 10"], cell: Int[Tensor, "b n"], grid: BevGrid
) -> Float[Tensor, "b n 9"]:
    """Codes at cells to metric boxes: the inverse of `perception.data.targets.encode_boxes`."""
    column = torch.stack([cell % grid.nx, cell // grid.nx], dim=-1).to(code.dtype)
    center = grid.metric_coordinates(column + code[..., 0:2])
    yaw = torch.atan2(code[..., 6], code[..., 7]).unsqueeze(-1)
    return torch.cat([center, code[..., 2:3], code[..., 3:6].exp(), yaw, code[..., 8:10]], dim=-1)
