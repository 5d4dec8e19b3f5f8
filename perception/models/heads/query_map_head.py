"""Map layers as one learned query each: the light head and its loss.

    BEV --> 1x1 --> half size + sine position --> memory --.
                                                           v
    a query per layer --> decoder layer --> decoder layer --> mask embedding --.
    BEV --> 1x1 --> raster --> 3x3 --> pixel embedding --------- product ------+--> logits

Source: Cheng et al. 2021 (MaskFormer); specs, FULLER section 5.2.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from perception.geometry.grid import BevGrid
from perception.models.heads.map_head import MapHeadOutput, MapTargets, RasterSampler, mask_loss
from perception.models.heads.query_decoder import QueryDecoderLayer, QueryDecoderSize


@dataclass(frozen=True, kw_only=True)
class QueryMapHeadConfig:
    """Size of the head; defaults are the specification's."""

    kind: Literal["query"] = "query"
    """Tells the map heads apart."""
    grid: BevGrid
    """The output raster."""
    channels: int = 128
    """Channels of queries, memory and pixels; a multiple of 4."""
    num_layers: int = 2
    """Decoder layers."""
    num_heads: int = 8
    """Heads of each attention."""
    ffn_channels: int = 256
    """Inner width of each feed-forward part."""
    dropout: float = 0.1
    """Share of values dropped in training."""
    class_frequency: float = 0.1
    """Share of the raster that a layer is expected to cover before training. Source: ours."""

    def __post_init__(self) -> None:
        """Refuse impossible numbers."""
        if not 0.0 < self.class_frequency < 1.0:
            raise ValueError(
                f"class_frequency is {self.class_frequency}, expected more than 0 and less than 1"
            )
        if self.num_layers < 1:
            raise ValueError(f"num_layers is {self.num_layers}, expected 1 or more")


class QueryMapHead(nn.Module):
    """Each layer's query reads the scene, then is compared with every pixel."""

    position: Tensor

    def __init__(self, config: QueryMapHeadConfig, c_in: int, num_classes: int, bev_grid: BevGrid):
        super().__init__()
        c = config.channels
        self.query = nn.Parameter(torch.randn(num_classes, c))
        self.to_memory = nn.Conv2d(c_in, c, 1)
        position = sine_position(c, bev_grid.ny // 2, bev_grid.nx // 2)
        self.register_buffer("position", position, persistent=False)
        size = QueryDecoderSize(
            channels=c,
            num_heads=config.num_heads,
            ffn_channels=config.ffn_channels,
            dropout=config.dropout,
        )
        self.decoder = nn.ModuleList(QueryDecoderLayer(size) for _ in range(config.num_layers))
        # without a bias the 1x1 convolution may come before the resampling: fewer channels
        self.to_pixels = nn.Conv2d(c_in, c, 1, bias=False)
        self.resample = RasterSampler(bev_grid, config.grid)
        self.pixels = nn.Sequential(
            # a constant map stays constant up to its edge
            nn.Conv2d(c, c, 3, padding=1, groups=c, bias=False, padding_mode="replicate"),
            nn.Conv2d(c, c, 1, bias=False),
            nn.BatchNorm2d(c),
            nn.ReLU(inplace=True),
        )
        self.to_mask = nn.Sequential(
            nn.Linear(c, c), nn.ReLU(), nn.Linear(c, c), nn.ReLU(), nn.Linear(c, c)
        )
        log_odds = math.log(config.class_frequency / (1 - config.class_frequency))
        self.class_bias = nn.Parameter(torch.full((num_classes,), log_odds))

    def forward(self, bev: Float[Tensor, "b c y x"]) -> MapHeadOutput:
        """Predict the layers, after each decoder layer."""
        memory = F.avg_pool2d(self.to_memory(bev), 2).flatten(2).transpose(1, 2) + self.position
        pixels = self.pixels(self.resample(self.to_pixels(bev)))
        query = self.query.expand(bev.shape[0], -1, -1)
        logits = []
        for layer in self.decoder:
            query = layer(query, None, memory)
            logits.append(self._logits(query, pixels))
        return MapHeadOutput(logits=logits[-1], aux_logits=tuple(logits[:-1]))

    def counts(self, targets: MapTargets) -> dict[str, Float[Tensor, " k"]]:
        """What each loss is divided by: the frames that know each layer."""
        frames = targets.labelled.sum(dim=0)
        return {"map": frames, "map_aux": frames}

    def loss(
        self, output: MapHeadOutput, targets: MapTargets, counts: Mapping[str, Tensor]
    ) -> dict[str, Float[Tensor, ""]]:
        """`mask_loss` of the last logits, and its sum over the earlier ones.

        Args:
            output: What the head said.
            targets: What it should have said.
            counts: As `counts`, summed over all that one step of the optimiser sees; may hold
                those of other heads, too.
        """
        aux = [mask_loss(x, targets, counts["map_aux"]) for x in output.aux_logits]
        return {
            "map": mask_loss(output.logits, targets, counts["map"]),
            "map_aux": torch.stack(aux).sum() if aux else output.logits.new_zeros(()).float(),
        }

    def _logits(
        self, query: Float[Tensor, "b k c"], pixels: Float[Tensor, "b c y x"]
    ) -> Float[Tensor, "b k y x"]:
        mask = self.to_mask(query) / math.sqrt(query.shape[-1])
        product = torch.matmul(mask, pixels.flatten(2)).unflatten(2, pixels.shape[2:])
        return product + self.class_bias[:, None, None]


def sine_position(channels: int, ny: int, nx: int) -> Float[Tensor, "n channels"]:
    """Sines and cosines of the cells' centres, row by row: half the channels for y, half for x.

    Source: Carion et al. 2020 (DETR), positions scaled to 2 pi, temperature 10000.
    """
    if channels % 4:
        raise ValueError(f"channels is {channels}, expected a multiple of 4")
    quarter = channels // 4
    wavelength = 10000.0 ** (torch.arange(quarter) / quarter)
    codes = []
    for size in (ny, nx):
        angle = (torch.arange(size) + 0.5) / size * 2 * math.pi
        phase = angle[:, None] / wavelength
        codes.append(torch.cat([phase.sin(), phase.cos()], dim=-1))
    y = codes[0][:, None].expand(ny, nx, -1)
    x = codes[1][None, :].expand(ny, nx, -1)
    return torch.cat([y, x], dim=-1).flatten(0, 1)
