"""What the pipeline asks of an engine: tensors in, tensors out, no knowledge of sensors."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int64

from perception.geometry.pool_table import table_fault
from perception.input_spec import InputSpec
from perception.model_card import Precision
from perception.model_inputs import ModelInputs


class EngineError(RuntimeError):
    """The engine could not compute this frame; the next one may work."""


@dataclass(frozen=True, kw_only=True)
class ModelOutputs:
    """The network's answer for one frame; field names are the exported graph's tensor names."""

    boxes_ego: Float32[np.ndarray, "k 9"]
    """Columns as in `perception.geometry.boxes`, in the ego frame at the frame's stamp."""
    scores: Float32[np.ndarray, " k"]
    """Confidence, 0..1."""
    labels: Int64[np.ndarray, " k"]
    """Index into the card's `detection_classes`."""
    map_prob: Float32[np.ndarray, "c y x"]
    """Probability per map layer, 0..1; row = y, column = x, both growing with the coordinate."""


def check_pool_table(inputs: ModelInputs, spec: InputSpec) -> None:
    """Refuse a table that points outside the feature maps: kernels follow an index anywhere.

    Raises:
        EngineError: It does.
    """
    fault = table_fault(
        inputs.pool_runs,
        inputs.cell_start,
        len(spec.cameras),
        spec.frustum.num_depths,
        spec.feature_height,
        spec.feature_width,
    )
    if fault is not None:
        raise EngineError(f"the pool table cannot be used: {fault}")


OUTPUT_NAMES = tuple(ModelOutputs.__dataclass_fields__)


@runtime_checkable
class Engine(Protocol):
    """Runs the exported graph."""

    @property
    def description(self) -> str:
        """Library, version and settings in one line, for logs and results."""
        ...

    @property
    def precision(self) -> Precision:
        """What the layers with weights compute in: says how far answers may be from the golden."""
        ...

    def input_buffer(self, name: str) -> np.ndarray | None:
        """Memory that an input is read from, for who writes it in place; None where there is none.

        It is the caller's until `run`, and again after it.
        """
        ...

    def run(self, inputs: ModelInputs) -> ModelOutputs:
        """Compute one frame.

        Raises:
            EngineError: This frame could not be computed, or the engine is closed.
        """
        ...

    def close(self) -> None:
        """Give memory back, the GPU's too; may be called again.

        Nothing may be computed any more, and memory of `input_buffer` is gone.
        """
        ...
