"""Frames to a batch: lists and pillars are laid end to end, each frame's indices shifted."""

import dataclasses
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import torch

from perception.input_spec import InputSpec
from perception.model_inputs import ModelInputs
from perception.models.detector import InputTensors

Tensors = TypeVar("Tensors", bound=Any)


def to_device(tensors: Tensors, device: torch.device) -> Tensors:
    """Copy every field of a dataclass of tensors to a device; None stays."""
    values = ((f.name, getattr(tensors, f.name)) for f in dataclasses.fields(tensors))
    return dataclasses.replace(
        tensors, **{name: value.to(device) for name, value in values if value is not None}
    )


def collate_inputs(frames: Sequence[ModelInputs], spec: InputSpec) -> InputTensors:
    """Batch the inputs of b frames that were prepared with `spec`.

    Raises:
        ValueError: The batch has more cells than 32-bit indices can tell apart.
    """
    if len(frames) * spec.pillars.num_cells >= 1 << 31:
        raise ValueError(
            f"{len(frames)} frames of {spec.pillars.num_cells} cells are too many for 32-bit "
            f"indices, expected at most {((1 << 31) - 1) // spec.pillars.num_cells} frames: use a "
            "smaller micro-batch"
        )
    num_pixels = len(spec.cameras) * spec.feature_height * spec.feature_width
    first_of_frame = np.array([num_pixels * spec.frustum.num_depths, num_pixels, 0], np.int32)
    first_run = np.cumsum([0] + [len(f.pool_runs) for f in frames])
    first_pillar = np.cumsum([0] + [len(f.pillar_points) for f in frames])
    indexed = list(enumerate(frames))
    arrays = {
        "images": np.stack([f.images for f in frames]),
        "camera_mask": np.stack([f.camera_mask for f in frames]),
        "pool_runs": np.concatenate([f.pool_runs + i * first_of_frame for i, f in indexed]),
        "cell_start": np.concatenate(
            [f.cell_start[:-1] + first_run[i] for i, f in indexed] + [first_run[-1:]]
        ),
        "pillar_points": np.concatenate([f.pillar_points for f in frames]),
        "pillar_num_points": np.concatenate([f.pillar_num_points for f in frames]),
        "depth_img": np.stack([f.depth_img for f in frames]),
        "pillar_cell": np.concatenate(
            [f.pillar_cell + i * spec.pillars.num_cells for i, f in indexed]
        ),
        # row 0 is the empty pillar of the whole batch
        "cell_pillar": np.concatenate(
            [np.where(f.cell_pillar > 0, f.cell_pillar + first_pillar[i], 0) for i, f in indexed]
        ),
        "lidar_mask": np.stack([f.lidar_mask for f in frames]),
    }
    integers = {"pool_runs", "cell_start", "pillar_cell", "cell_pillar"}
    tensors: dict[str, Any] = {
        name: torch.from_numpy(array.astype(np.int32) if name in integers else array)
        for name, array in arrays.items()
    }
    return InputTensors(**tensors)
