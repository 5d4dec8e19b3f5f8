"""Torch against the exported file, output by output, on the same frames."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float32

from export.deploy_graph import DeployGraph
from perception.geometry import boxes as box_geometry
from perception.model_inputs import TENSOR_NAMES, ModelInputs
from runtime.engines.base import OUTPUT_NAMES, Engine, ModelOutputs

MAX_ERROR = {
    "scores": 1e-4,
    "center [m]": 1e-3,
    "size [m]": 1e-3,
    "yaw [rad]": 1e-3,
    "velocity [m/s]": 1e-3,
    "map_prob": 1e-4,
}
"""Largest difference allowed. fp32 on both sides: sums differ in order only, about 1e-6 of a map's
scale; decoding multiplies it (exp of a size, a cell of 0.8 m). Source: ours."""

MATCH_DISTANCE = 0.05
"""Boxes of one class whose centres are this close [m] are the same box."""

TIE_MARGIN = 1e-5
"""Choices this close are a tie that rounding decides, ten times the error of a score: a box that
leads a neighbouring cell, or the last box kept, by less may come out or not."""


MIN_COMPARED_SHARE = 0.1
"""Boxes that no tie decides, of all: with fewer, the comparison says little. Source: ours, networks
of random weights have a third and more."""


@dataclass(frozen=True, kw_only=True)
class ParityRow:
    """One output over all frames."""

    output: str
    max_error: float
    bound: float

    @property
    def passed(self) -> bool:
        """Whether the difference is allowed; NaN is not."""
        return self.max_error <= self.bound


@dataclass(frozen=True, kw_only=True)
class ParityReport:
    """The comparison."""

    rows: tuple[ParityRow, ...]
    num_frames: int
    num_boxes: int
    """Boxes of torch that no tie decided, or that agree all the same."""
    num_matched: int
    """Of these, found in the file's output with the same class."""
    num_ties: int
    """Boxes of torch that are left out, because rounding decides whether they come out."""

    @property
    def passed(self) -> bool:
        """Whether enough was compared, every box of it was found again and all agrees."""
        return self.boxes_passed and all(row.passed for row in self.rows)

    @property
    def boxes_passed(self) -> bool:
        """Whether every compared box was found again, and enough were compared."""
        enough = MIN_COMPARED_SHARE * (self.num_boxes + self.num_ties)
        return 0 < self.num_boxes == self.num_matched and self.num_boxes >= enough

    def table(self) -> str:
        """Plain-text table."""
        lines = [f"{'output':<16}{'max |torch - onnx|':>20}{'allowed':>12}"]
        for row in self.rows:
            verdict = "" if row.passed else "   FAILED"
            lines.append(f"{row.output:<16}{row.max_error:>20.2e}{row.bound:>12.0e}{verdict}")
        verdict = "" if self.boxes_passed else "   FAILED"
        lines.append(
            f"{self.num_matched} of {self.num_boxes} boxes matched in {self.num_frames} frames"
            f"{verdict}; {self.num_ties} ties left out"
        )
        return "\n".join(lines)


def compare(graph: DeployGraph, engine: Engine, frames: Sequence[ModelInputs]) -> ParityReport:
    """Run both on each frame and keep the largest difference of each output."""
    errors = dict.fromkeys(MAX_ERROR, 0.0)
    num_boxes = num_matched = num_ties = 0
    for frame in frames:
        (expected, lead), got = run_with_leads(graph, frame), engine.run(frame)
        is_compared = decided(expected, got, lead) | agreeing(expected, got)
        matched = match_boxes(expected, got, is_compared)
        num_boxes += int(is_compared.sum())
        num_ties += int((~is_compared).sum())
        num_matched += len(matched)
        for name, error in frame_errors(expected, got, matched).items():
            errors[name] = float(np.maximum(errors[name], error))  # keeps NaN
    rows = [
        ParityRow(output=name, max_error=errors[name], bound=MAX_ERROR[name]) for name in errors
    ]
    return ParityReport(
        rows=tuple(rows),
        num_frames=len(frames),
        num_boxes=num_boxes,
        num_matched=num_matched,
        num_ties=num_ties,
    )


@torch.no_grad()
def run_torch(graph: DeployGraph, inputs: ModelInputs) -> ModelOutputs:
    """Run the graph in torch on one frame: a sparse encoder as it was trained, without tables."""
    tensors = {name: torch.from_numpy(getattr(inputs, name)) for name in TENSOR_NAMES}
    outputs = (output.numpy() for output in graph(**tensors))
    return ModelOutputs(**dict(zip(OUTPUT_NAMES, outputs, strict=True)))


@torch.no_grad()
def run_with_leads(
    graph: DeployGraph, inputs: ModelInputs
) -> tuple[ModelOutputs, Float32[np.ndarray, " k"]]:
    """Outputs of torch, and by how much each box was chosen before what nearly was."""
    head = graph.detector.box_head
    raw: list[Any] = []
    hook = head.register_forward_hook(lambda module, args, output: raw.append(output))
    try:
        outputs = run_torch(graph, inputs)
    finally:
        hook.remove()
    return outputs, head.leads(raw[0])[0].numpy()


def decided(
    expected: ModelOutputs, got: ModelOutputs, lead: Float32[np.ndarray, " k"]
) -> Bool[np.ndarray, " k"]:
    """Which boxes of torch must come out of the file, too: no tie decides about them.

    A plateau of a hardly trained heatmap that falls into peaks in one and not in the other may
    also push the last boxes off the end of the list; the higher of both ends is the cut.
    """
    cut = np.maximum(expected.scores.min(), got.scores.min())
    return (expected.scores > cut + TIE_MARGIN) & (lead > TIE_MARGIN)


def agreeing(expected: ModelOutputs, got: ModelOutputs) -> Bool[np.ndarray, " k"]:
    """Which boxes of torch the file has within the bounds, whatever may have decided about them.

    The queries of a hardly trained network are all close to a tie, and mostly come out alike.
    """
    found = np.zeros(len(expected.scores), bool)
    for k, j in match_boxes(expected, got, ~found):
        errors = box_errors(expected, got, [(k, j)])
        found[k] = all(error <= MAX_ERROR[name] for name, error in errors.items())
    return found


def match_boxes(
    expected: ModelOutputs,
    got: ModelOutputs,
    is_compared: Bool[np.ndarray, " k"],
    max_distance: float = MATCH_DISTANCE,
) -> list[tuple[int, int]]:
    """Pairs of the same box, nearest first come, each used once; centres at most so far apart."""
    distance = np.linalg.norm(
        expected.boxes_ego[:, None, :2].astype(np.float64) - got.boxes_ego[None, :, :2], axis=-1
    )
    distance[expected.labels[:, None] != got.labels[None, :]] = np.inf
    pairs = []
    for k in np.flatnonzero(is_compared):
        j = int(distance[k].argmin())
        if distance[k, j] <= max_distance:
            pairs.append((int(k), j))
            distance[:, j] = np.inf
    return pairs


def frame_errors(
    expected: ModelOutputs, got: ModelOutputs, matched: list[tuple[int, int]]
) -> Mapping[str, float]:
    """Largest difference of each output in one frame."""
    map_error = _largest(np.abs(expected.map_prob - got.map_prob))
    return {**box_errors(expected, got, matched), "map_prob": map_error}


def box_errors(
    expected: ModelOutputs, got: ModelOutputs, matched: list[tuple[int, int]]
) -> Mapping[str, float]:
    """Largest difference of each output that is a box's, pair by pair."""
    pairs = np.array(matched, dtype=np.int64).reshape(-1, 2)
    a, b = expected.boxes_ego[pairs[:, 0]], got.boxes_ego[pairs[:, 1]]
    turn = box_geometry.wrap_angle(a[:, box_geometry.YAW] - b[:, box_geometry.YAW])
    difference = np.abs(a - b)
    return {
        "scores": _largest(np.abs(expected.scores[pairs[:, 0]] - got.scores[pairs[:, 1]])),
        "center [m]": _largest(difference[:, box_geometry.CENTER]),
        "size [m]": _largest(difference[:, box_geometry.SIZE]),
        "yaw [rad]": _largest(np.abs(turn)),
        "velocity [m/s]": _largest(difference[:, box_geometry.VELOCITY]),
    }


def _largest(values: np.ndarray) -> float:
    return float(values.max(initial=0.0))
