"""Which parts of a network bear rounding: each alone, then as many as the error allows.

The error is looked for in what the heads say before it is decoded: there every cell counts, not
only those that became a box. And where each sensor's branch ends: a network may hardly look at one
sensor, so that its heads do not show what happened there, until the other sensor fails.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from jaxtyping import Float, Float64

from export.graph_scopes import leaving, with_outputs
from export.quantization import Quantizer, inner_layers, layer_groups
from export.stage_parity import GraphRunner
from perception.errors import InputError
from perception.model_inputs import ModelInputs

HEADS = ("detector.box_head.heatmap", "detector.box_head", "detector.map_head")
"""Modules whose values are measured. The first is found in heads of queries only, and stands for
the second there: rounding may choose other queries, so nothing that they say can be compared."""

BRANCHES = ("detector.view_transform", "detector.point_encoder")
"""Modules that end a sensor's branch: what leaves them is measured, too."""

MIN_SCALE = 0.1
"""Least scale that a channel's error is relative to, of the root mean square of all channels of
its value. A channel that says nothing may err by what rounding does to its neighbours, and one that
varies little, such as a velocity, is not lost among larger ones. Source: ours."""


@dataclass(frozen=True, kw_only=True)
class GroupRow:
    """One part of the network."""

    group: str
    num_layers: int
    error: float
    """Error when this part alone is rounded, see `Reference.error`."""
    is_rounded: bool
    """Whether it is rounded in the result."""


@dataclass(frozen=True, kw_only=True)
class SensitivityReport:
    """What rounding does to a network, part by part."""

    rows: tuple[GroupRow, ...]
    """The most sensitive first."""
    num_frames: int
    """Frames that the errors were measured on; none of them was used for the ranges."""
    max_error: float
    """Error that was allowed."""
    error: float
    """Error of the result."""
    error_of_all: float
    """Error when every part is rounded."""

    @property
    def rounded_layers(self) -> int:
        """Layers that are rounded in the result."""
        return sum(row.num_layers for row in self.rows if row.is_rounded)

    def markdown(self) -> str:
        """Table, the most sensitive part first."""
        lines = [
            "| part, rounded alone | layers | error | in the result |",
            "|---|---:|---:|---|",
        ]
        lines += [
            f"| {row.group} | {row.num_layers} | {row.error:.4f} | "
            f"{'rounded' if row.is_rounded else 'fp32'} |"
            for row in self.rows
        ]
        num_layers = sum(row.num_layers for row in self.rows)
        lines += [
            f"| all of them | {num_layers} | {self.error_of_all:.4f} | |",
            f"| **the result** | {self.rounded_layers} | {self.error:.4f} | "
            f"allowed: {self.max_error:g} |",
            "",
            "Error: root mean square of a channel's difference to fp32, of its standard deviation "
            f"(at least {MIN_SCALE:g} of the value's root mean square); the worst channel of the "
            f"branches and the heads in the worst of {self.num_frames} frames.",
        ]
        return "\n".join(lines)


class Reference:
    """What the fp32 graph says of some frames.

    Args:
        model: The exported graph, in fp32.
        frames: What the error is measured on.
        runner: What runs the graphs.
    """

    def __init__(
        self, model: onnx.ModelProto, frames: Sequence[ModelInputs], runner: GraphRunner
    ) -> None:
        self.names = measured_values(model)
        self.num_frames = len(frames)
        self._frames, self._runner = frames, runner
        self._expected = list(self._values(model))
        self._scales = [channel_scales(of_value) for of_value in zip(*self._expected, strict=True)]

    def error(self, model: onnx.ModelProto) -> float:
        """Root mean square of the difference in a channel, of the channel's scale.

        The worst channel in the worst frame. Infinite where anything is not a number.
        """
        worst = 0.0
        for got, expected in zip(self._values(model), self._expected, strict=True):
            for a, b, scale in zip(got, expected, self._scales, strict=True):
                worst = float(np.maximum(worst, np.max(_rms(a - b) / scale)))  # keeps NaN
        return worst if np.isfinite(worst) else float("inf")

    def _values(self, model: onnx.ModelProto) -> Iterator[list[Float[np.ndarray, "c n"]]]:
        """What is measured, frame by frame."""
        made = {name for node in model.graph.node for name in node.output}
        # `to_half` gives what it computes in half another name
        names = [name if name in made else f"{name}_half" for name in self.names]
        for arrays in self._runner.run(with_outputs(model, names), names, self._frames):
            yield [_by_channel(array) for array in arrays]


def channel_scales(frames: Sequence[Float[np.ndarray, "c _"]]) -> Float64[np.ndarray, " c"]:
    """What the error of each channel of a value is relative to.

    Args:
        frames: The value in each frame, channels first.

    Returns:
        The channel's standard deviation over all frames, and at least `MIN_SCALE` of the root mean
        square of the whole value; 1 where that is zero everywhere.
    """
    value = np.concatenate(frames, axis=1).astype(np.float64)
    least = MIN_SCALE * float(np.max(_rms(value.reshape(1, -1))))
    spread = _rms(value - (np.mean(value, axis=1, keepdims=True) if value.size else 0.0))
    return np.maximum(spread, least) if least > 0 else np.ones(len(value))


def _by_channel(array: Float[np.ndarray, "..."]) -> Float[np.ndarray, "c n"]:
    """Channels first: maps have them third from the end, features of voxels at the end."""
    axis = -3 if array.ndim > 2 else -1
    moved = np.moveaxis(array.astype(np.float32), axis, 0)
    return moved.reshape(len(moved), array.size // max(1, len(moved)))


def _rms(values: Float[np.ndarray, "c n"]) -> Float64[np.ndarray, " c"]:
    """Root mean square of each row; 0 of a row without values."""
    sums = np.sum(np.square(values, dtype=np.float64), axis=1)
    return np.sqrt(sums / max(1, values.shape[1]))


def measured_values(model: onnx.ModelProto) -> list[str]:
    """What the error is looked for in: where branches end, and what the heads say.

    Raises:
        InputError: The graph does not say which modules its nodes come from.
    """
    ends = [name for module in BRANCHES for name in leaving(model, module)]
    return list(dict.fromkeys(ends + head_values(model)))


def head_values(model: onnx.ModelProto) -> list[str]:
    """What the heads say before it is decoded.

    Raises:
        InputError: The graph does not say which modules its nodes come from.
    """
    found = {module: leaving(model, module) for module in HEADS}
    boxes = found[HEADS[0]] or found[HEADS[1]]
    if not boxes or not found[HEADS[2]]:
        raise InputError(
            "The graph does not say which nodes are its heads: export it again with to_onnx.py."
        )
    return boxes + found[HEADS[2]]


def choose_layers(
    model: onnx.ModelProto, quantizer: Quantizer, reference: Reference, max_error: float
) -> tuple[onnx.ModelProto, SensitivityReport]:
    """Round as much of a network as the error allows.

    Parts are left in fp32 one after the other, the most sensitive first, until the error of the
    whole network is allowed.

    Args:
        model: The exported graph, in fp32.
        quantizer: Rounds layers of it.
        reference: Measures the error.
        max_error: Error that is allowed, see `Reference.error`.

    Returns:
        The quantised graph and what was measured.

    Raises:
        InputError: Even the least sensitive part alone is beyond the error.
    """
    groups = layer_groups(model, inner_layers(model, reference.names))
    errors = {group: reference.error(quantizer.quantize(groups[group])) for group in groups}
    ranked = sorted(groups, key=lambda group: -errors[group])
    error_of_all = None
    for num_kept in range(len(ranked)):
        rounded = ranked[num_kept:]
        layers = [name for group in groups if group in rounded for name in groups[group]]
        result = quantizer.quantize(layers)
        error = reference.error(result)
        error_of_all = error if error_of_all is None else error_of_all
        if error <= max_error:
            break
    else:
        raise InputError(
            f"No part of the network can be rounded within --max-error {max_error:g} (the least "
            f"sensitive has {min(errors.values(), default=float('nan')):.3g}): allow more, or take "
            "fp16."
        )
    rows = tuple(
        GroupRow(
            group=group,
            num_layers=len(groups[group]),
            error=errors[group],
            is_rounded=group in rounded,
        )
        for group in ranked
    )
    return result, SensitivityReport(
        rows=rows,
        num_frames=reference.num_frames,
        max_error=max_error,
        error=error,
        error_of_all=error_of_all,
    )
