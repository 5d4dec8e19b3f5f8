"""How far an engine's answer is from the expected one, and how far its precision lets it be."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from perception.geometry import boxes as box_geometry
from perception.model_card import Precision
from runtime.engines.base import OUTPUT_NAMES, ModelOutputs


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """Largest differences that are allowed."""

    scores: float
    """Of a score."""
    map_prob: float
    """Of a map probability; the mean over the map may be a tenth of it."""
    boxes: float
    """Of a box's columns [m, rad, m/s]; of sizes above 1 m the share."""
    found_share: float
    """Least share of the boxes that are found again: rounding decides which of two neighbours that
    are nearly alike comes out."""

    @property
    def tie(self) -> float:
        """Boxes so close in score to the last one kept may come out or not."""
        return self.scores / 10


BOUNDS: Mapping[Precision, Bounds] = {
    "fp32": Bounds(scores=1e-3, map_prob=1e-3, boxes=0.01, found_share=0.9),
    "fp16": Bounds(scores=0.03, map_prob=0.1, boxes=0.2, found_share=0.5),
    "int8": Bounds(scores=0.1, map_prob=0.3, boxes=0.5, found_share=0.5),
    "uint8": Bounds(scores=0.1, map_prob=0.3, boxes=0.5, found_share=0.5),
}
"""By the engine's precision. Wide enough for rounding, far below what a wrong engine shows: what
precision costs is told by `export/accuracy.py`. Source: ours."""


MIN_DECISIVE_BOXES = 5
"""With fewer boxes to be found again, boxes are as good as not compared. Source: ours."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """The comparison over all frames."""

    scores: float
    """Largest difference of a score."""
    map_prob: float
    """Largest difference of a map probability."""
    map_mean: float
    """Mean difference of a frame's map probabilities, largest of all frames."""
    num_found: int
    """Expected boxes that the engine has, too."""
    num_boxes: int
    """Expected boxes that no tie with the last one decides (`is_decisive`)."""

    def fault(self, bounds: Bounds) -> str | None:
        """What is out of bounds, in words; None where nothing is."""
        if not self.scores <= bounds.scores:
            return f"a score is off by {self.scores:.1e}, allowed is {bounds.scores:g}"
        if not (self.map_prob <= bounds.map_prob and self.map_mean <= bounds.map_prob / 10):
            return (
                f"map_prob is off by {self.map_prob:.1e} and by {self.map_mean:.1e} in the mean, "
                f"allowed is {bounds.map_prob:g} and a tenth of it"
            )
        if self.num_found < bounds.found_share * self.num_boxes:
            return f"only {self.num_found} of {self.num_boxes} expected boxes are found"
        return None

    def __str__(self) -> str:
        """One line."""
        return (
            f"the largest difference is {self.scores:.1e} of a score, "
            f"{self.map_prob:.1e} of a map probability; {self.num_found} of {self.num_boxes} boxes "
            f"found again{self.weakness or ''}"
        )

    @property
    def weakness(self) -> str | None:
        """What the comparison cannot show, in words; None where there are boxes enough."""
        if self.num_boxes >= MIN_DECISIVE_BOXES:
            return None
        return (
            f" (fewer than {MIN_DECISIVE_BOXES}: boxes are hardly compared, export with a log in "
            "which the network sees something)"
        )


def frame_agreement(expected: ModelOutputs, got: ModelOutputs, bounds: Bounds) -> Agreement:
    """Compare one frame; scores by rank, because equal ones come in any order.

    The answers are finite and have the same shapes: `shape_fault` and `non_finite` first.
    """
    is_compared = is_decisive(expected, bounds)
    is_found = found_again(expected, got, bounds)
    map_errors = np.abs(got.map_prob - expected.map_prob)
    return Agreement(
        scores=float(np.abs(np.sort(got.scores) - np.sort(expected.scores)).max(initial=0.0)),
        map_prob=float(map_errors.max(initial=0.0)),
        map_mean=float(map_errors.mean()) if map_errors.size else 0.0,
        num_found=int((is_found & is_compared).sum()),
        num_boxes=int(is_compared.sum()),
    )


def is_decisive(expected: ModelOutputs, bounds: Bounds) -> Bool[np.ndarray, " k"]:
    """Boxes that a sound engine finds, too: those with a score clearly above the last one's.

    The others say nothing one by one: an engine may take any of the many with nearly that score.
    """
    return expected.scores > expected.scores.min(initial=1.0) + bounds.tie


def found_again(
    expected: ModelOutputs, got: ModelOutputs, bounds: Bounds
) -> Bool[np.ndarray, " k"]:
    """Which expected boxes the engine has, too, with class and score; each is used once."""
    difference = expected.boxes_ego[:, None].astype(np.float64) - got.boxes_ego[None]
    difference[..., box_geometry.YAW] = box_geometry.wrap_angle(difference[..., box_geometry.YAW])
    sizes = expected.boxes_ego[:, None, box_geometry.SIZE]
    difference[..., box_geometry.SIZE] /= np.maximum(1.0, sizes)  # exp of what the network says
    difference = np.abs(difference).max(axis=-1)
    difference[expected.labels[:, None] != got.labels[None]] = np.inf
    difference[np.abs(expected.scores[:, None] - got.scores[None]) > bounds.scores] = np.inf
    is_found = np.zeros(len(expected.scores), bool)
    for k in range(len(is_found)):
        j = int(difference[k].argmin())
        if difference[k, j] <= bounds.boxes:
            is_found[k] = True
            difference[:, j] = np.inf
    return is_found


def shape_fault(expected: ModelOutputs, got: ModelOutputs) -> str | None:
    """Which output has another shape or type than expected, in words; None where none has."""
    for name in OUTPUT_NAMES:
        want, is_ = getattr(expected, name), getattr(got, name)
        if want.shape != is_.shape or want.dtype != is_.dtype:
            return (
                f"{name} is {is_.dtype} {list(is_.shape)}, expected {want.dtype} {list(want.shape)}"
            )
    return None


def non_finite(outputs: ModelOutputs) -> str | None:
    """Which outputs hold a number that is not finite, in words; None where all are."""
    names = [name for name in OUTPUT_NAMES if not np.isfinite(getattr(outputs, name)).all()]
    return f"its {', '.join(names)} is not finite" if names else None
