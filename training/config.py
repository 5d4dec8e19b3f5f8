"""What fixes a training run. Written to the run folder in full."""

from dataclasses import dataclass
from typing import Literal

from perception.models.detector import DetectorConfig


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which keyframes are trained on."""

    log: str = ""
    """Root of a nuScenes log: the folder that holds samples/, maps/ and v1.0-*/."""
    version: str = ""
    """Folder of the tables, such as v1.0-mini; empty takes the only one that is there."""
    split: str
    """Official or the log's own split whose scenes are used, such as mini_train, or "all"."""
    frames: Literal["all", "complete"]
    """All keyframes, or only those of which every sensor's file is whole."""


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Optimiser and schedule."""

    steps: int
    """Optimiser steps."""
    batch_size: int
    """Frames per step."""
    lr: float
    """Peak learning rate of the one-cycle schedule."""
    weight_decay: float = 0.01
    """Source: specs, base network section 9."""
    clip_norm: float = 35.0
    """Largest norm of the gradient. Source: same."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of the convolutions; geometry, pooling and losses stay in fp32. bf16 halves a step
    where the processor has instructions for it, and is slower where it has none."""
    box_weight: float = 1.0
    """Weight of the box head's losses."""
    map_weight: float = 1.0
    """Weight of the map head's loss."""
    sensor_dropout: float
    """Probability that a frame's LiDAR is masked, and that each camera is, so that the network
    learns to do without. Never all of them."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A run."""

    recipe: str
    """Name of the recipe that it started from."""
    detector: DetectorConfig
    data: DataConfig
    optim: OptimConfig
    seed: int = 0
    """Fixes initial weights, order and dropout."""
    num_threads: int = 0
    """CPU threads of torch; 0 leaves torch's choice."""
    cache_samples: bool = False
    """Keep prepared samples in memory (5 MB each with the tiny network)."""
    num_workers: int = 2
    """Processes that prepare samples; not used with cache_samples."""
