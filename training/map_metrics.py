"""Map IoU as the field reports it: best of seven thresholds per layer, over the whole set.

Source: specs, base network section 11.2.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64

from perception.data.map_layers import MapRaster
from perception.geometry.grid import BevGrid
from perception.messages import MapMask
from perception.taxonomy import MAP_CLASSES
from training.distance_bands import DistanceBand

THRESHOLDS = (0.35, 0.40, 0.45, 0.50, 0.55, 0.60, 0.65)


class MapIou:
    """Accumulates counts over frames; a layer that a frame does not know is left out of it.

    Args:
        bands: Distance bands that are also counted apart; they may not overlap. A cell belongs to
            the band of its centre. Each band is a set of its own: its thresholds are chosen on it.
    """

    def __init__(self, bands: Sequence[DistanceBand] = ()) -> None:
        self.bands = tuple(bands)
        # cells by band (the last: outside all), layer, truth and how many thresholds they reach
        shape = (len(self.bands) + 1, len(MAP_CLASSES), 2, len(THRESHOLDS) + 1)
        self._num_cells = np.zeros(shape, np.int64)
        self._grid: BevGrid | None = None
        self._band_of_cell = np.zeros((0, 0), np.int64)

    def add(self, predicted: MapMask, truth: MapRaster) -> None:
        """Count one frame; a layer that was not predicted is nowhere."""
        if predicted.grid != self._grid:
            self._grid = predicted.grid
            self._band_of_cell = _band_of_cell(predicted.grid, self.bands)
        nowhere = np.zeros(truth.mask.shape[1:], np.float32)
        prob = dict(zip(predicted.classes, predicted.prob, strict=True))
        num_bins = len(THRESHOLDS) + 1
        for layer in np.flatnonzero(truth.labelled):
            said = prob.get(MAP_CLASSES[layer], nowhere)
            reached = np.zeros(said.shape, np.int64)
            for threshold in THRESHOLDS:
                reached += said >= np.float32(threshold)
            true = truth.mask[layer] > 0.5
            index = (self._band_of_cell * 2 + true) * num_bins + reached
            counts = np.bincount(index.ravel(), minlength=(len(self.bands) + 1) * 2 * num_bins)
            self._num_cells[:, layer] += counts.reshape(-1, 2, num_bins)

    def result(self, band: DistanceBand | None = None) -> dict[str, float]:
        """IoU of each layer that any frame knew (there), at its best threshold.

        Args:
            band: One of `bands`; None takes every cell of the raster.
        """
        num_cells = self._num_cells
        if band is not None:
            num_cells = num_cells[[self.bands.index(band)]]
        # said at threshold j: the cells that reach more than j thresholds
        said = num_cells.sum(axis=0)[..., ::-1].cumsum(axis=-1)[..., -2::-1]
        hit, num_true = said[:, 1], num_cells.sum(axis=(0, 3))[:, 1]
        iou = hit / (said[:, 0] + num_true[:, None] + 1e-7)
        known = np.flatnonzero(num_cells.sum(axis=(0, 2, 3)))
        return {MAP_CLASSES[layer]: float(iou[layer].max()) for layer in known}


def _band_of_cell(grid: BevGrid, bands: Sequence[DistanceBand]) -> Int64[np.ndarray, "y x"]:
    """Index of the band that holds each cell's centre; `len(bands)` outside all."""
    x, y = np.meshgrid(grid.x_centers(), grid.y_centers())
    distance = np.hypot(x, y)
    index = np.full(distance.shape, len(bands), np.int64)
    for number, band in enumerate(bands):
        index[(distance >= band.near) & (distance < band.far)] = number
    return index
