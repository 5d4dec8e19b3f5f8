"""Map IoU as the field reports it: best of seven thresholds per layer, over the whole set.

Source: specs, base network section 11.2.
"""

import numpy as np
from jaxtyping import Float

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

    def add(
        self,
        prob: Float[np.ndarray, "k y x"],
        mask: Float[np.ndarray, "k y x"],
        labelled: Float[np.ndarray, " k"],
    ) -> None:
        """Count one frame."""
        for layer in np.flatnonzero(labelled):
            said = prob[layer][None] >= np.array(THRESHOLDS, np.float32)[:, None, None]
            true = (mask[layer] > 0.5)[None]
            self._hit[layer] += (said & true).sum(axis=(1, 2))
            self._wrong[layer] += (said & ~true).sum(axis=(1, 2))
            self._missed[layer] += (~said & true).sum(axis=(1, 2))
            self._num_frames[layer] += 1

    def result(self) -> dict[str, float]:
        """IoU of each layer that any frame knew, at its best threshold."""
        iou = self._hit / (self._hit + self._wrong + self._missed + 1e-7)
        known = np.flatnonzero(self._num_frames)
        return {MAP_CLASSES[layer]: float(iou[layer].max()) for layer in known}
