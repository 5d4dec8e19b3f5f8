"""Torch against the exported file, output by output, on the same frames."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch

from export.deploy_graph import DeployGraph
from perception.bundle import Bundle
from perception.geometry import boxes as box_geometry
from perception.model_inputs import ModelInputs
from runtime.engines.base import OUTPUT_NAMES, ModelOutputs
from runtime.engines.onnx_engine import OnnxEngine

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

CUT_MARGIN = 1e-5
"""Boxes scored this little above the last one kept may fall on either side of the cut: ten times
the error of a score."""


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
    """Boxes of torch above the cut."""
    num_matched: int
    """Of these, found in the file's output with the same class."""

    @property
    def passed(self) -> bool:
        """Whether there was something to compare, every box was found again and all agrees."""
        return 0 < self.num_boxes == self.num_matched and all(row.passed for row in self.rows)

    def table(self) -> str:
        """Plain-text table."""
        lines = [f"{'output':<16}{'max |torch - onnx|':>20}{'allowed':>12}"]
        for row in self.rows:
            verdict = "" if row.passed else "   FAILED"
            lines.append(f"{row.output:<16}{row.max_error:>20.2e}{row.bound:>12.0e}{verdict}")
        verdict = "" if 0 < self.num_boxes == self.num_matched else "   FAILED"
        lines.append(
            f"{self.num_matched} of {self.num_boxes} boxes matched in {self.num_frames} frames"
            f"{verdict}"
        )
        return "\n".join(lines)


def compare(graph: DeployGraph, bundle: Bundle, frames: Sequence[ModelInputs]) -> ParityReport:
    """Run both on each frame and keep the largest difference of each output."""
    engine = OnnxEngine(bundle)
    errors = dict.fromkeys(MAX_ERROR, 0.0)
    num_boxes = num_matched = 0
    for frame in frames:
        expected, got = run_torch(graph, frame), engine.run(frame)
        matched = match_boxes(expected, got)
        num_boxes += int(above_cut(expected).sum())
        num_matched += len(matched)
        for name, error in frame_errors(expected, got, matched).items():
            errors[name] = float(np.fmax(errors[name], error)) if error == error else np.nan
    rows = [
        ParityRow(output=name, max_error=errors[name], bound=MAX_ERROR[name]) for name in errors
    ]
    return ParityReport(
        rows=tuple(rows), num_frames=len(frames), num_boxes=num_boxes, num_matched=num_matched
    )


@torch.no_grad()
def run_torch(graph: DeployGraph, inputs: ModelInputs) -> ModelOutputs:
    """Run the graph in torch on one frame."""
    tensors = {f.name: torch.from_numpy(getattr(inputs, f.name)) for f in fields(inputs)}
    outputs = (output.numpy() for output in graph(**tensors))
    return ModelOutputs(**dict(zip(OUTPUT_NAMES, outputs, strict=True)))


def above_cut(outputs: ModelOutputs) -> np.ndarray:
    """Boxes that clearly belong to the best k."""
    return outputs.scores > outputs.scores.min() + CUT_MARGIN


def match_boxes(expected: ModelOutputs, got: ModelOutputs) -> list[tuple[int, int]]:
    """Pairs of the same box, nearest first come, each used once."""
    distance = np.linalg.norm(
        expected.boxes_ego[:, None, :2].astype(np.float64) - got.boxes_ego[None, :, :2], axis=-1
    )
    distance[expected.labels[:, None] != got.labels[None, :]] = np.inf
    pairs = []
    for k in np.flatnonzero(above_cut(expected)):
        j = int(distance[k].argmin())
        if distance[k, j] <= MATCH_DISTANCE:
            pairs.append((int(k), j))
            distance[:, j] = np.inf
    return pairs


def frame_errors(
    expected: ModelOutputs, got: ModelOutputs, matched: list[tuple[int, int]]
) -> Mapping[str, float]:
    """Largest difference of each output in one frame; boxes are compared pair by pair."""
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
        "map_prob": _largest(np.abs(expected.map_prob - got.map_prob)),
    }


def _largest(values: np.ndarray) -> float:
    return float(values.max(initial=0.0))
