"""Boxes as peaks of a heatmap: the head, its decoding and its loss.

Source: Yin et al. 2021 (CenterPoint); specs, base network section 7, head B.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from perception.geometry.grid import BevGrid
from perception.models.blocks import conv_bn_relu
from perception.models.heads.box_code import (
    CODE_COLUMNS,
    CODE_PARTS,
    BoxTargets,
    cell_corner,
    code_loss,
    decode_boxes,
    labelled_objects,
)
from perception.models.heads.heatmap import (
    HEATMAP_BIAS,
    heatmap_loss,
    lead_over_neighbours,
    local_maxima,
    num_peaks,
)
from perception.taxonomy import DETECTION_CLASSES


@dataclass(frozen=True, kw_only=True)
class CenterHeadConfig:
    """Size of the head."""

    kind: Literal["center"] = "center"
    """Tells the box heads apart."""
    channels: int
    """Channels of the shared convolution and of the branches."""
    num_boxes: int
    """Boxes decoded per frame."""
    groups: tuple[tuple[str, ...], ...] = (DETECTION_CLASSES,)
    """Classes that share branches, in the order of `perception.taxonomy.DETECTION_CLASSES`."""
    branch_per_part: bool = False
    """A branch each for centre, height, size, heading and velocity instead of one for all."""

    def __post_init__(self) -> None:
        """Refuse groups that leave out, repeat or reorder classes."""
        names = tuple(name for group in self.groups for name in group)
        if not names or names != DETECTION_CLASSES[: len(names)] or () in self.groups:
            raise ValueError(
                f"groups hold {names}, expected the classes {DETECTION_CLASSES} in this order, "
                "cut into groups"
            )


@dataclass(frozen=True, kw_only=True)
class CenterHeadOutput:
    """Raw maps of the head."""

    heatmap_logits: Float[Tensor, "b k y x"]
    """Channels in the order of the classes, whatever the groups."""
    code: Float[Tensor, "b g 10 y x"]
    """Per group; columns as `CODE_COLUMNS`, from the cell's low corner."""


class CenterHead(nn.Module):
    """Heatmap per class, and one box code per cell and group of classes."""

    group_of_class: Tensor

    def __init__(self, config: CenterHeadConfig, c_in: int, num_classes: int, grid: BevGrid):
        super().__init__()
        sizes = [len(group) for group in config.groups]
        if sum(sizes) != num_classes:
            raise ValueError(f"groups hold {sum(sizes)} classes, expected {num_classes}")
        self.grid = grid
        self.num_boxes = config.num_boxes
        self.shared = conv_bn_relu(c_in, config.channels)
        self.groups = nn.ModuleList(_GroupBranches(config, size) for size in sizes)
        group_of_class = torch.tensor([g for g, size in enumerate(sizes) for _ in range(size)])
        self.register_buffer("group_of_class", group_of_class, persistent=False)

    def forward(self, bev: Float[Tensor, "b c y x"]) -> CenterHeadOutput:
        """Predict the maps."""
        x = self.shared(bev)
        heatmaps, codes = zip(*(group(x) for group in self.groups), strict=True)
        return CenterHeadOutput(
            heatmap_logits=torch.cat(heatmaps, dim=1), code=torch.stack(codes, dim=1)
        )

    def decode(
        self, output: CenterHeadOutput
    ) -> tuple[Float[Tensor, "b n 9"], Float[Tensor, "b n"], Int[Tensor, "b n"]]:
        """Read metric boxes off the peaks, best first.

        Returns:
            Boxes in the ego frame (columns as `perception.geometry.boxes`), scores 0..1, labels.
        """
        scores, labels, cell = self.peaks(output)
        code = self._code_at(output, labels, cell)
        return decode_boxes(code, cell_corner(cell, self.grid), self.grid), scores, labels

    def peaks(
        self, output: CenterHeadOutput
    ) -> tuple[Float[Tensor, "b n"], Int[Tensor, "b n"], Int[Tensor, "b n"]]:
        """Scores, labels and flat cells of the highest peaks, best first."""
        score = torch.sigmoid(output.heatmap_logits.float())
        peak_score = (score * local_maxima(score)).flatten(1)
        scores, index = peak_score.topk(self.num_boxes, dim=1)
        return scores, index // self.grid.num_cells, index % self.grid.num_cells

    def leads(self, output: CenterHeadOutput) -> Float[Tensor, "b n"]:
        """By how much each box's score leads the eight cells around it, in `decode`'s order."""
        lead = lead_over_neighbours(torch.sigmoid(output.heatmap_logits.float()))
        _, labels, cell = self.peaks(output)
        return lead.flatten(1).gather(1, labels * self.grid.num_cells + cell)

    def counts(self, targets: BoxTargets) -> dict[str, Float[Tensor, ""]]:
        """What each loss is divided by: peaks and objects of the labelled frames."""
        return {"heatmap": num_peaks(targets), "box": labelled_objects(targets).sum().float()}

    def loss(
        self,
        output: CenterHeadOutput,
        targets: BoxTargets,
        counts: Mapping[str, Tensor],
    ) -> dict[str, Float[Tensor, ""]]:
        """Focal loss on the heatmap and L1 on the codes of the labelled frames.

        Args:
            output: What the head said.
            targets: What it should have said.
            counts: As `counts`, summed over all that one step of the optimiser sees; may hold
                those of other heads, too.
        """
        code = self._code_at(output, targets.label, targets.cell)
        error = torch.where(labelled_objects(targets), code_loss(code, targets.code), 0.0)
        return {
            "heatmap": heatmap_loss(output.heatmap_logits, targets, counts["heatmap"]),
            "box": error.sum() / counts["box"].clamp(min=1.0),
        }

    def _code_at(
        self, output: CenterHeadOutput, label: Int[Tensor, "b n"], cell: Int[Tensor, "b n"]
    ) -> Float[Tensor, "b n 10"]:
        """Codes that the groups of these classes give at these cells."""
        code = output.code.float().flatten(3).transpose(2, 3).flatten(1, 2)
        place = self.group_of_class[label] * self.grid.num_cells + cell
        return code.gather(1, place.unsqueeze(-1).expand(-1, -1, len(CODE_COLUMNS)))


class _GroupBranches(nn.Module):
    """Heatmap and code of one group of classes."""

    def __init__(self, config: CenterHeadConfig, num_classes: int):
        super().__init__()
        c = config.channels
        to_heatmap = nn.Conv2d(c, num_classes, 1)
        nn.init.constant_(cast(Tensor, to_heatmap.bias), HEATMAP_BIAS)
        self.heatmap = nn.Sequential(conv_bn_relu(c, c), to_heatmap)
        parts = CODE_PARTS if config.branch_per_part else (len(CODE_COLUMNS),)
        self.code = nn.ModuleList(
            nn.Sequential(conv_bn_relu(c, c), nn.Conv2d(c, size, 1)) for size in parts
        )

    def forward(
        self, x: Float[Tensor, "b c y x"]
    ) -> tuple[Float[Tensor, "b k y x"], Float[Tensor, "b 10 y x"]]:
        return self.heatmap(x), torch.cat([part(x) for part in self.code], dim=1)
