"""Boxes as queries that start at the peaks of a heatmap: the head, its decoding and its loss.

    BEV --> 3x3 --> heatmap --> the best peaks --> queries --> decoder layer --> box, class
                '--> memory ---------------------------------------^

Source: Bai et al. 2022 (TransFusion); specs, base network section 7, head A.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from perception.geometry.grid import BevGrid
from perception.models.assignment import FOCAL_ALPHA, MatchWeights, match
from perception.models.blocks import conv_bn_relu
from perception.models.heads.box_code import (
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
from perception.models.heads.query_decoder import QueryDecoderLayer, QueryDecoderSize
from perception.models.losses import sigmoid_focal_loss
from perception.taxonomy import DETECTION_CLASSES


@dataclass(frozen=True, kw_only=True)
class QueryBoxHeadConfig:
    """Size of the head; defaults are the specification's."""

    kind: Literal["query"] = "query"
    """Tells the box heads apart."""
    channels: int = 128
    """Channels of queries and memory."""
    num_queries: int = 200
    """Queries per frame: one box each."""
    num_layers: int = 1
    """Decoder layers."""
    num_heads: int = 8
    """Heads of each attention."""
    ffn_channels: int = 256
    """Inner width of each feed-forward part."""
    branch_channels: int = 64
    """Inner width of the branches that read a query."""
    dropout: float = 0.1
    """Share of values dropped in training."""
    point_classes: tuple[str, ...] = ("pedestrian", "traffic_cone")
    """Classes so small that neighbouring cells may be two objects: all their cells are peaks."""
    match: MatchWeights = field(default_factory=MatchWeights)
    """How queries and objects are paired for the loss."""
    keep_xy: float = 61.2
    """Boxes with |x| or |y| beyond this get the score 0 [m]."""
    keep_z: float = 10.0
    """Likewise |z| [m]."""

    @property
    def num_boxes(self) -> int:
        """Boxes decoded per frame."""
        return self.num_queries


@dataclass(frozen=True, kw_only=True)
class QueryBoxOutput:
    """Raw output: the heatmap, the queries it led to, and what they say."""

    heatmap_logits: Float[Tensor, "b k y x"]
    query_cell: Int[Tensor, "b q"]
    """Flat cell where each query started."""
    query_label: Int[Tensor, "b q"]
    """Class of the peak there."""
    query_score: Float[Tensor, "b q"]
    """Height of the peak, 0..1."""
    class_logits: Float[Tensor, "b q k"]
    code: Float[Tensor, "b q 10"]
    """Columns as `CODE_COLUMNS`, from the centre of the query's cell."""


class QueryBoxHead(nn.Module):
    """Heatmap, queries at its peaks, a decoder over the whole map, one box per query."""

    is_point: Tensor
    cell_position: Tensor

    def __init__(self, config: QueryBoxHeadConfig, c_in: int, num_classes: int, grid: BevGrid):
        super().__init__()
        if config.num_queries >= num_classes * grid.num_cells:
            raise ValueError(
                f"num_queries is {config.num_queries}, expected fewer than {num_classes} classes "
                f"in {grid.num_cells} cells"
            )
        self.config = config
        self.grid = grid
        c = config.channels
        self.shared = nn.Conv2d(c_in, c, 3, padding=1)
        to_heatmap = nn.Conv2d(c, num_classes, 3, padding=1)
        nn.init.constant_(cast(Tensor, to_heatmap.bias), HEATMAP_BIAS)
        self.heatmap = nn.Sequential(conv_bn_relu(c, c), to_heatmap)
        is_point = [name in config.point_classes for name in DETECTION_CLASSES[:num_classes]]
        self.register_buffer("is_point", torch.tensor(is_point)[:, None, None], persistent=False)
        position = cell_corner(torch.arange(grid.num_cells), grid) + 0.5
        self.register_buffer("cell_position", position, persistent=False)
        self.label_embedding = nn.Linear(num_classes, c)
        self.query_position, self.memory_position = PositionCode(c), PositionCode(c)
        size = QueryDecoderSize(
            channels=c,
            num_heads=config.num_heads,
            ffn_channels=config.ffn_channels,
            dropout=config.dropout,
        )
        self.decoder = nn.ModuleList(QueryDecoderLayer(size) for _ in range(config.num_layers))
        self.to_code = nn.ModuleList(_branch(config, columns) for columns in CODE_PARTS)
        self.to_class = _branch(config, num_classes)
        nn.init.constant_(cast(Tensor, self.to_class[-1].bias), HEATMAP_BIAS)

    def forward(self, bev: Float[Tensor, "b c y x"]) -> QueryBoxOutput:
        """Select queries and let them say a box each."""
        x = self.shared(bev)
        heatmap_logits = self.heatmap(x)
        score, label, cell = self._select(heatmap_logits)
        tokens = x.flatten(2).transpose(1, 2)
        query = tokens.gather(1, cell.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))
        one_hot = F.one_hot(label, heatmap_logits.shape[1]).to(query.dtype)
        query = query + self.label_embedding(one_hot)
        query_position = self.query_position(self.cell_position[cell])
        memory = tokens + self.memory_position(self.cell_position.unsqueeze(0))
        for layer in self.decoder:
            query = layer(query, query_position, memory)
        features = query.transpose(1, 2)
        code = torch.cat([branch(features) for branch in self.to_code], dim=1)
        return QueryBoxOutput(
            heatmap_logits=heatmap_logits,
            query_cell=cell,
            query_label=label,
            query_score=score,
            class_logits=self.to_class(features).transpose(1, 2),
            code=code.transpose(1, 2),
        )

    def decode(
        self, output: QueryBoxOutput
    ) -> tuple[Float[Tensor, "b n 9"], Float[Tensor, "b n"], Int[Tensor, "b n"]]:
        """Read metric boxes off the queries, best first; no two queries are merged.

        Returns:
            Boxes in the ego frame (columns as `perception.geometry.boxes`), scores 0..1, labels.
        """
        boxes_ego = self._boxes(output)
        label = output.query_label
        logit = output.class_logits.float().gather(2, label.unsqueeze(-1)).squeeze(-1)
        limit = boxes_ego.new_tensor([self.config.keep_xy, self.config.keep_xy, self.config.keep_z])
        kept = (boxes_ego[..., :3].abs() <= limit).all(dim=-1)
        scores, order = (torch.sigmoid(logit) * output.query_score * kept).topk(label.shape[1])
        boxes_ego = boxes_ego.gather(1, order.unsqueeze(-1).expand(-1, -1, boxes_ego.shape[-1]))
        return boxes_ego, scores, label.gather(1, order)

    def leads(self, output: QueryBoxOutput) -> Float[Tensor, "b n"]:
        """By how much the closest choice among possible queries was made, the same for all boxes.

        Queries look at each other, so one that is chosen by rounding alone changes all boxes.
        Counted in logits: most queries of a scene start at peaks that are hardly above 0.
        """
        logits = output.heatmap_logits.float()
        ranked, index = self._ranked(logits).flatten(1).topk(self.config.num_queries + 1)
        cut, missed = logits.flatten(1).gather(1, index[:, -2:]).unbind(dim=1)
        cut_lead = torch.where(ranked[:, -1] > 0, cut - missed, torch.inf)
        high_enough = torch.sigmoid(logits) >= ranked[:, -2, None, None, None]
        lead = lead_over_neighbours(logits).abs()
        lead = torch.where(high_enough & ~self.is_point, lead, torch.inf).flatten(1).amin(dim=1)
        return torch.minimum(lead, cut_lead).unsqueeze(1).expand_as(output.query_score)

    def counts(self, targets: BoxTargets) -> dict[str, Float[Tensor, ""]]:
        """What each loss is divided by: peaks, and objects that find a query."""
        objects = labelled_objects(targets).sum(dim=1).clamp(max=self.config.num_queries)
        num_objects = objects.sum().float()
        return {"heatmap": num_peaks(targets), "class": num_objects, "box": num_objects}

    def loss(
        self, output: QueryBoxOutput, targets: BoxTargets, counts: Mapping[str, Tensor]
    ) -> dict[str, Float[Tensor, ""]]:
        """Focal losses on heatmap and classes, L1 on the codes of the queries that have an object.

        Args:
            output: What the head said.
            targets: What it should have said.
            counts: As `counts`, summed over all that one step of the optimiser sees; may hold
                those of other heads, too.
        """
        frame, query, place = self._pairs(output, targets)
        logits = output.class_logits.float()
        wanted_class = torch.zeros_like(logits)
        wanted_class[frame, query, targets.label[frame, place]] = 1.0
        class_loss = sigmoid_focal_loss(logits, wanted_class, FOCAL_ALPHA)
        class_loss = (class_loss * targets.labelled[:, None, None]).sum()
        wanted = targets.code[frame, place]
        moved = (
            cell_corner(targets.cell[frame, place], self.grid)
            - self.cell_position[output.query_cell[frame, query]]
        )
        wanted = torch.cat([wanted[:, :2] + moved, wanted[:, 2:]], dim=1)
        box_loss = code_loss(output.code.float()[frame, query], wanted).sum()
        return {
            "heatmap": heatmap_loss(output.heatmap_logits, targets, counts["heatmap"]),
            "class": class_loss / counts["class"].clamp(min=1.0),
            "box": box_loss / counts["box"].clamp(min=1.0),
        }

    def _ranked(self, heatmap_logits: Float[Tensor, "b k y x"]) -> Float[Tensor, "b k y x"]:
        """Score of each peak, 0 where there is none."""
        score = torch.sigmoid(heatmap_logits.detach().float())
        return score * (local_maxima(score) | self.is_point)

    def _select(
        self, heatmap_logits: Float[Tensor, "b k y x"]
    ) -> tuple[Float[Tensor, "b q"], Int[Tensor, "b q"], Int[Tensor, "b q"]]:
        """Score, class and flat cell of the highest peaks over all classes."""
        score, index = self._ranked(heatmap_logits).flatten(1).topk(self.config.num_queries)
        return score, index // self.grid.num_cells, index % self.grid.num_cells

    def _boxes(self, output: QueryBoxOutput) -> Float[Tensor, "b q 9"]:
        position = self.cell_position[output.query_cell]
        return decode_boxes(output.code.float(), position, self.grid)

    @torch.no_grad()
    def _pairs(
        self, output: QueryBoxOutput, targets: BoxTargets
    ) -> tuple[Int[Tensor, " m"], Int[Tensor, " m"], Int[Tensor, " m"]]:
        """Frame, query and place of the object of each pair of all labelled frames."""
        boxes = self._boxes(output).cpu().numpy()
        logits = output.class_logits.float().cpu().numpy()
        corner = cell_corner(targets.cell, self.grid)
        objects = decode_boxes(targets.code, corner, self.grid).cpu().numpy()
        labels = targets.label.cpu().numpy()
        pairs = [np.zeros((3, 0), np.int64)]
        for frame, mask in enumerate(labelled_objects(targets).cpu().numpy()):
            places = np.flatnonzero(mask)
            queries, chosen = match(
                logits[frame],
                boxes[frame],
                objects[frame, places],
                labels[frame, places],
                self.grid,
                self.config.match,
            )
            pairs.append(np.stack([np.full_like(queries, frame), queries, places[chosen]]))
        frame, query, place = torch.from_numpy(np.concatenate(pairs, axis=1)).to(output.code.device)
        return frame, query, place


class PositionCode(nn.Module):
    """Code of places on the grid: a small network on their coordinates [cells]."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.BatchNorm1d(channels)
        self.first, self.second = nn.Linear(2, channels), nn.Linear(channels, channels)

    def forward(self, position: Float[Tensor, "b n 2"]) -> Float[Tensor, "b n c"]:
        """Encode; the first layer in fp32, because bf16 does not tell neighbouring cells apart."""
        with torch.autocast(position.device.type, enabled=False):
            x = self.first(position).transpose(1, 2)
            x = F.relu(self.norm(x)).transpose(1, 2)
        return self.second(x)


def _branch(config: QueryBoxHeadConfig, c_out: int) -> nn.Sequential:
    c = config.branch_channels
    return nn.Sequential(
        nn.Conv1d(config.channels, c, 1, bias=False),
        nn.BatchNorm1d(c),
        nn.ReLU(inplace=True),
        nn.Conv1d(c, c_out, 1),
    )
