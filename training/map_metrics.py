"""Map IoU as the field reports it: best of seven thresholds per layer, over the whole set.

Source: specs, base network section 11.2.
"""

import numpy as np

from perception.data.map_layers import MapRaster
from perception.messages import MapMask
from perception.taxonomy import MAP_CLASSES

THRESHOLDS = (0.35, 0.40, 0.45, 0.50, 0.55, 0.60, 0.65)


class MapIou:
    """Accumulates counts over frames; a layer that a frame does not know is left out of it."""

    def __init__(self) -> None:
        shape = (len(MAP_CLASSES), len(THRESHOLDS))
        self._hit = np.zeros(shape, np.int64)
        self._wrong = np.zeros(shape, np.int64)
        self._missed = np.zeros(shape, np.int64)
        self._num_frames = np.zeros(len(MAP_CLASSES), np.int64)

    def add(self, predicted: MapMask, truth: MapRaster) -> None:
        """Count one frame; a layer that was not predicted is nowhere."""
        thresholds = np.array(THRESHOLDS, np.float32)[:, None, None]
        nowhere = np.zeros(truth.mask.shape[1:], np.float32)
        prob = dict(zip(predicted.classes, predicted.prob, strict=True))
        for layer in np.flatnonzero(truth.labelled):
            said = prob.get(MAP_CLASSES[layer], nowhere)[None] >= thresholds
            true = (truth.mask[layer] > 0.5)[None]
            self._hit[layer] += (said & true).sum(axis=(1, 2))
            self._wrong[layer] += (said & ~true).sum(axis=(1, 2))
            self._missed[layer] += (~said & true).sum(axis=(1, 2))
            self._num_frames[layer] += 1

    def result(self) -> dict[str, float]:
        """IoU of each layer that any frame knew, at its best threshold."""
        iou = self._hit / (self._hit + self._wrong + self._missed + 1e-7)
        known = np.flatnonzero(self._num_frames)
        return {MAP_CLASSES[layer]: float(iou[layer].max()) for layer in known}
