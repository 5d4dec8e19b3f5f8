"""The golden frame: one input and its expected output, which an engine answers before it drives."""

import io
import logging
import time
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from perception import atomic_file
from perception.bundle import GOLDEN_FILE, Bundle
from perception.errors import InputError
from perception.model_card import Precision, TensorSpec
from perception.model_inputs import TENSOR_NAMES, ModelInputs
from runtime.agreement import BOUNDS, Agreement, frame_agreement, non_finite, shape_fault
from runtime.engines.base import OUTPUT_NAMES, EngineError, ModelOutputs
from runtime.pipeline import Pipeline

_LOG = logging.getLogger(__name__)

_INPUT, _OUTPUT = "input.", "output."

_UNREADABLE = (
    *(OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error),
    *(AttributeError, TypeError),  # the file is one array, not an archive of them
)
"""What numpy raises for a file that is no archive of arrays, or not this one."""


@dataclass(frozen=True, kw_only=True)
class SelfTestReport:
    """A self-test that was passed."""

    engine: str
    """What was tested, in one line."""
    precision: Precision
    """The engine's: decides how far its answer may be from the golden one."""
    agreement: Agreement
    """How far it is."""
    time_ms: float
    """Time of the engine [ms]."""

    def __str__(self) -> str:
        """One line."""
        return f"{self.engine}: on the golden frame, {self.agreement}"


def write_golden(folder: Path, inputs: ModelInputs, outputs: ModelOutputs) -> None:
    """Write a bundle's golden frame; the manifest must be written after it.

    Args:
        folder: The bundle's.
        inputs: One frame, with everything that the graph takes.
        outputs: What the bundle's graph gives for it.

    Raises:
        InputError: The file cannot be written.
    """
    arrays = {_INPUT + name: array for name, array in inputs.tensors.items()}
    arrays |= {_OUTPUT + name: getattr(outputs, name) for name in OUTPUT_NAMES}
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    atomic_file.write_bytes(folder / GOLDEN_FILE, content.getvalue())


def read_golden(bundle: Bundle) -> tuple[ModelInputs, ModelOutputs]:
    """A bundle's golden frame and the expected answer.

    Raises:
        InputError: The bundle has none, or one that cannot be read or is of another graph.
    """
    path = bundle.path / GOLDEN_FILE
    if GOLDEN_FILE not in bundle.files:
        raise InputError(
            f"{bundle.path} lists no {GOLDEN_FILE}, so that nothing shows whether its engine "
            "computes what was trained: export the bundle again, or do without the self-test."
        )
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        inputs = {name: arrays.pop(_INPUT + name) for name in bundle.card.input_names}
        outputs = {name: arrays.pop(_OUTPUT + name) for name in OUTPUT_NAMES}
    except _UNREADABLE as error:
        raise InputError(
            f"{path} is no golden frame of this bundle ({error}): export the bundle again."
        ) from error
    arrays = {**inputs, **outputs}
    for spec in (*bundle.card.input_tensors, *bundle.card.output_tensors):
        if not _is_of(spec, arrays[spec.name]):
            raise InputError(
                f"{path} has {spec.name} as {arrays[spec.name].dtype} "
                f"{list(arrays[spec.name].shape)}, the model card says {spec.dtype} "
                f"{list(spec.shape)}: export the bundle again."
            )
    tensors = {name: inputs.pop(name) for name in TENSOR_NAMES}
    return ModelInputs(**tensors, sparse_tables=inputs), ModelOutputs(**outputs)


def _is_of(spec: TensorSpec, array: np.ndarray) -> bool:
    return (
        array.dtype.name == spec.dtype
        and array.ndim == len(spec.shape)
        and all(
            not said.isdigit() or int(said) == size
            for said, size in zip(spec.shape, array.shape, strict=True)
        )
    )


def self_test(pipeline: Pipeline) -> SelfTestReport:
    """Run the golden frame of a pipeline's bundle through its engine.

    Raises:
        InputError: The bundle has no golden frame, the engine fails on it, or its answer is further
            from the expected one than its precision explains: another graph, other weights or a
            wrong operator.
    """
    bundle, engine = pipeline.bundle, pipeline.engine
    inputs, expected = read_golden(bundle)
    bounds = BOUNDS[engine.precision]
    start = time.perf_counter()
    try:
        got = pipeline.checked(engine.run(inputs))
    except EngineError as error:
        raise _refusal(pipeline, f"the engine fails ({error})") from error
    time_ms = (time.perf_counter() - start) * 1e3
    if fault := shape_fault(expected, got) or non_finite(got):
        raise _refusal(pipeline, fault)
    agreement = frame_agreement(expected, got, bounds)
    if fault := agreement.fault(bounds):
        raise _refusal(pipeline, fault)
    if agreement.weakness:
        _LOG.warning("The self-test of %s is weak%s", bundle.path, agreement.weakness)
    return SelfTestReport(
        engine=engine.description,
        precision=engine.precision,
        agreement=agreement,
        time_ms=time_ms,
    )


def _refusal(pipeline: Pipeline, fault: str) -> InputError:
    return InputError(
        f"{pipeline.bundle.path} does not pass its self-test with {pipeline.engine.description}: "
        f"on the golden frame {fault}; export the bundle or build its engine again."
    )
