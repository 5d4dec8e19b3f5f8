"""What fixes a training run. Written to the run folder in full."""

from dataclasses import dataclass, field
from typing import Literal

from perception.data.augment import BevAugmentConfig, ImageAugmentConfig
from perception.data.faults import FaultConfig
from perception.models.detector import DetectorConfig
from training.gradient_calibration import IntraConfig
from training.task_rules import InterConfig


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which keyframes are trained on, and what is done to them."""

    log: str = ""
    """Root of a nuScenes log: the folder that holds samples/, maps/ and v1.0-*/."""
    version: str = ""
    """Folder of the tables, such as v1.0-mini; empty takes the only one that is there."""
    split: str
    """Official or the log's own split whose scenes are used, such as mini_train, or "all"."""
    frames: Literal["all", "complete"]
    """All keyframes, or only those of which every sensor's file is whole."""
    cbgs: bool = False
    """Show keyframes with rare classes more often. Source: specs, base network section 1."""
    image_augment: ImageAugmentConfig | None = None
    """Random resize, crop, flip and rotation of each image; None leaves images as they are."""
    bev_augment: BevAugmentConfig | None = None
    """Random rotation, scale, shift and flips of the whole scene; None leaves it as it is."""
    faults: FaultConfig = field(default_factory=FaultConfig)
    """How often which sensor is dropped, late, frozen or noisy."""
    skip_damaged: bool = True
    """Leave out a keyframe with an unusable file; False trains on what is there, with masks, for
    logs that lack files on purpose."""
    max_damaged_share: float = 0.001
    """Largest share of keyframes that may be damaged before training stops; one always may."""
    num_workers: int = 2
    """Processes per rank that prepare samples; has no influence on any number."""

    def __post_init__(self) -> None:
        """Refuse impossible numbers."""
        _at_least(self.num_workers, 0, "num_workers")
        _at_least(self.max_damaged_share, 0, "max_damaged_share")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Optimiser and schedule."""

    steps: int
    """Optimiser steps."""
    batch_size: int
    """Frames per optimiser step, over all ranks."""
    micro_batch: int = 0
    """Frames per forward pass of one rank; fewer need less memory and more time, and batch norm
    sees only these frames (of all ranks). 0 takes a rank's whole share at once."""
    lr: float
    """Peak learning rate."""
    weight_decay: float = 0.01
    """Source: specs, base network section 9."""
    clip_norm: float = 35.0
    """Largest norm of the gradient. Source: same."""
    schedule: Literal["one_cycle", "cosine"] = "one_cycle"
    """How the learning rate rises and falls, see `training.schedule`."""
    warmup_share: float = 0.2
    """Share of the steps in which one_cycle rises. Ours; specs, base network section 9 has 0.4."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Arithmetic of the convolutions; geometry, pooling and losses stay in fp32. bf16 halves a step
    where the processor has instructions for it, and is slower where it has none."""
    cross_rank_batch_norm: bool = False
    """Let one process compute batch norm as several do, which is slower: their curves then agree to
    rounding. Several always do."""
    ema_decay: float = 0.0
    """Decay per step of the moving average of the weights that evaluation uses; 0 has none."""
    box_weight: float = 1.0
    """Weight of the box head's losses."""
    map_weight: float = 1.0
    """Weight of the map head's losses."""
    depth_weight: float = 0.0
    """Weight of the depth loss; 0 makes no depth targets."""
    checkpoint_every: int = 500
    """Steps between checkpoints that training can resume from."""
    max_bad_steps: int = 3
    """Steps in a row with a loss or gradient that is not finite before the last checkpoint is gone
    back to."""

    def __post_init__(self) -> None:
        """Refuse impossible numbers."""
        for name in ("steps", "batch_size", "checkpoint_every", "max_bad_steps"):
            _at_least(getattr(self, name), 1, name)
        for name in ("micro_batch", "box_weight", "map_weight", "depth_weight"):
            _at_least(getattr(self, name), 0, name)
        for name in ("ema_decay", "warmup_share"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 0 <= {name} < 1")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A run."""

    recipe: str
    """Name of the recipe that it started from."""
    detector: DetectorConfig
    data: DataConfig
    optim: OptimConfig
    inter: InterConfig | None = None
    """How the gradients of boxes and map are combined where they meet; None adds them up."""
    intra: IntraConfig | None = None
    """How those of camera and LiDAR are brought to the same level; None leaves them alone."""
    init_from: tuple[str, ...] = ()
    """Run folders whose weights this one starts from: every tensor of the same name and shape is
    taken, of the first run that has it."""
    seed: int = 0
    """Fixes initial weights, order, augmentation and dropout."""
    num_threads: int = 0
    """CPU threads of torch; 0 leaves torch's choice."""

    def __post_init__(self) -> None:
        """Refuse impossible numbers."""
        _at_least(self.seed, 0, "seed")
        inputs = self.detector.inputs
        if self.intra is not None and not (inputs.cameras and inputs.use_lidar):
            raise ValueError("intra is given, expected a network with cameras and LiDAR")
        weights = (self.optim.box_weight, self.optim.map_weight)
        if self.inter is not None and not min(weights) > 0.0:
            raise ValueError(
                f"inter is given and box_weight, map_weight are {weights}, expected both above 0"
            )


def _at_least(value: float, smallest: float, name: str) -> None:
    if not value >= smallest:
        raise ValueError(f"{name} is {value}, expected at least {smallest}")
