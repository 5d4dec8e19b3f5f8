"""A TensorRT engine against ONNX Runtime, before the engine is written: no torch.

The frames are noise, noise without some sensors, and the first frame again: behind the few rows of
a short frame lies what a long one left, and a long one comes after a short one.
"""

import dataclasses

from export.parity_frames import noise_frame, with_missing_sensors
from perception.errors import InputError
from perception.geometry.sparse_tables import build_sparse_tables
from perception.model_card import ModelCard
from perception.model_inputs import ModelInputs
from runtime.agreement import BOUNDS, Agreement, frame_agreement, non_finite, shape_fault
from runtime.engines.base import Engine, EngineError
from runtime.engines.engine_manifest import Precision


def check_frames(card: ModelCard) -> list[ModelInputs]:
    """Frames on which an engine is tried, in this order."""
    noise = noise_frame(card.inputs)
    frames = [noise, *with_missing_sensors(noise), noise]
    levels = card.sparse_levels
    if levels is None:
        return frames
    return [
        dataclasses.replace(
            frame, sparse_tables=build_sparse_tables(frame.pillar_cell, levels).by_name
        )
        for frame in frames
    ]


def compare(engine: Engine, reference: Engine, card: ModelCard, precision: Precision) -> Agreement:
    """Run both on the same frames.

    Raises:
        InputError: The engine fails, or is further from the reference than its precision explains.
    """
    bounds = BOUNDS[precision]
    per_frame = []
    for index, frame in enumerate(check_frames(card)):
        expected = reference.run(frame)
        try:
            got = engine.run(frame)
        except EngineError as error:
            raise _refusal(index, f"it fails ({error})") from error
        if fault := shape_fault(expected, got) or non_finite(got):
            raise _refusal(index, fault)
        agreement = frame_agreement(expected, got, bounds)
        if fault := agreement.fault(bounds):
            raise _refusal(index, fault)
        per_frame.append(agreement)
    return Agreement(
        scores=max(a.scores for a in per_frame),
        map_prob=max(a.map_prob for a in per_frame),
        map_mean=max(a.map_mean for a in per_frame),
        num_found=sum(a.num_found for a in per_frame),
        num_boxes=sum(a.num_boxes for a in per_frame),
    )


def _refusal(index: int, fault: str) -> InputError:
    return InputError(
        f"The engine was not written: on frame {index + 1} of noise {fault}; report it, and build "
        "with --precision fp32 where the bundle is of that."
    )
