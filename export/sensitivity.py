"""Which parts of a network bear rounding: each alone, then as many as the error allows.

The error is looked for in what the heads say before it is decoded: there every cell counts, not
only those that became a box.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from jaxtyping import Float64

from export.graph_scopes import leaving, with_outputs
from export.quantization import Quantizer, inner_layers, layer_groups
from export.stage_parity import GraphRunner
from perception.errors import InputError
from perception.model_inputs import ModelInputs

HEADS = ("detector.box_head.heatmap", "detector.box_head", "detector.map_head")
"""Modules whose values are measured. The first is found in heads of queries only, and stands for
the second there: rounding may choose other queries, so nothing that they say can be compared."""


@dataclass(frozen=True, kw_only=True)
class GroupRow:
    """One part of the network."""

    group: str
    num_layers: int
    error: float
    """Error of the heads' values when this part alone is rounded, see `Reference.error`."""
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
            "| part, rounded alone | layers | error of the heads | in the result |",
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
            "Error: root mean square of the difference to fp32, of the value's standard deviation; "
            f"the worst of the heads' values over {self.num_frames} frames.",
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
        self.names = head_values(model)
        self.num_frames = len(frames)
        self._frames, self._runner = frames, runner
        self._expected = self._values(model)

    def error(self, model: onnx.ModelProto) -> float:
        """Root mean square of the difference, of the value's standard deviation; the worst value.

        Infinite where anything is not a number.
        """
        got = self._values(model)
        errors = [
            np.sqrt(np.mean((got[name] - expected) ** 2)) / max(float(np.std(expected)), 1e-12)
            for name, expected in self._expected.items()
        ]
        worst = float(np.max(errors))
        return worst if np.isfinite(worst) else float("inf")

    def _values(self, model: onnx.ModelProto) -> Mapping[str, Float64[np.ndarray, " n"]]:
        outputs = self._runner.run(with_outputs(model, self.names), self.names, self._frames)
        per_value = zip(*([array.ravel() for array in arrays] for arrays in outputs), strict=True)
        return {
            name: np.concatenate(arrays).astype(np.float64)
            for name, arrays in zip(self.names, per_value, strict=True)
        }


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
