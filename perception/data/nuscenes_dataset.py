"""Training samples: the inputs of a keyframe and what the heads should say of it.

    SampleKey(index, draw) --> read --> faults --> augmentation --> inputs, targets --> Sample
                                 |                                                        |
                                 '--> DamagedSample (named, never raised) ------------> Batch

A sample is a function of the log, the configuration and its key: in which process, after which
others and how often it is made does not matter.
"""

import dataclasses
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64
from torch.utils.data import Dataset

from perception.data.augment import (
    Augmentation,
    BevAugmentConfig,
    ImageAugmentConfig,
    augment_boxes,
    draw_augmentation,
)
from perception.data.collate import collate_inputs, to_device
from perception.data.faults import FaultConfig, inject
from perception.data.map_layers import MapLayers, MapRaster
from perception.data.nuscenes_log import Annotations, NuScenesLog
from perception.data.sensor_files import jpeg_decoder
from perception.data.targets import FrameBoxTargets, box_targets
from perception.errors import InputError
from perception.geometry import boxes as box_geometry
from perception.geometry import rigid
from perception.messages import Calibration, SensorFrame
from perception.model_inputs import ModelInputs, camera_rig, prepare_frame, rig_depth_images
from perception.models.depth_supervision import UNKNOWN, DepthTargets, depth_bins
from perception.models.detector import DetectorConfig, InputTensors
from perception.models.heads.box_code import BoxTargets
from perception.models.heads.map_head import MapTargets
from perception.taxonomy import DETECTION_CLASS_OF_CATEGORY, DETECTION_CLASSES, LIDAR, MAP_CLASSES
from perception.usable_data import frame_points


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """How a keyframe becomes a sample."""

    image_augment: ImageAugmentConfig | None = None
    """How images are changed at random; None leaves them as they are."""
    bev_augment: BevAugmentConfig | None = None
    """How the ego frame is changed at random; None leaves it as it is."""
    faults: FaultConfig = dataclasses.field(default_factory=FaultConfig)
    """How often sensors fail."""
    depth_targets: bool = False
    """Whether the LiDAR's depths are targets of the camera branch."""
    skip_damaged: bool = True
    """Leave out a keyframe of which a file or a box cannot be used. False trains on what is there:
    for logs that lack files on purpose."""


class SampleKey(NamedTuple):
    """Which sample."""

    index: int  # type: ignore[assignment]  # hides tuple.index
    """Of the keyframe."""
    draw: int
    """0 or more, unique over a training: with the seed it fixes all that is random."""


@dataclass(frozen=True, kw_only=True)
class DamagedSample:
    """A keyframe that cannot be used."""

    token: str
    reasons: tuple[str, ...]
    """What is wrong, with the names of files and annotations."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One keyframe."""

    inputs: ModelInputs
    boxes: FrameBoxTargets
    map_raster: MapRaster
    depth_bin: Int64[np.ndarray, "cam h8 w8"] | None
    """As `perception.models.depth_supervision.depth_bins`; None where not asked for."""
    labelled: bool = True
    """False for a stand-in of which nothing is known."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Several keyframes as tensors."""

    inputs: InputTensors
    boxes: BoxTargets
    map: MapTargets
    depth: DepthTargets | None
    """None where depths are no targets."""
    damaged: tuple[DamagedSample, ...] = ()
    """Keyframes that the tensors lack."""

    def to(self, device: torch.device) -> "Batch":
        """Copy every tensor to a device."""
        return dataclasses.replace(
            self,
            inputs=to_device(self.inputs, device),
            boxes=to_device(self.boxes, device),
            map=to_device(self.map, device),
            depth=None if self.depth is None else to_device(self.depth, device),
        )


class NuScenesDataset(Dataset[Sample | DamagedSample]):
    """Keyframes of a log.

    Args:
        log: Where they are.
        tokens: Which of them.
        detector: What the network wants.
        sampling: How they are changed.
        seed: Fixes all that is random, together with a sample's key.
    """

    def __init__(
        self,
        log: NuScenesLog,
        tokens: Sequence[str],
        detector: DetectorConfig,
        sampling: SampleConfig,
        seed: int,
    ):
        self.log = log
        self.tokens = tuple(tokens)
        self.spec = detector.inputs
        self.sampling = sampling
        self.seed = seed
        self.map_layers = MapLayers(log, detector.map_head.grid)
        if self.spec.cameras:
            jpeg_decoder()  # what is not installed is no damage of samples
        self._with_depth = sampling.depth_targets and bool(self.spec.cameras)
        self._sensors = {*self.spec.sensors, LIDAR} if self._with_depth else set(self.spec.sensors)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, key: SampleKey | int) -> Sample | DamagedSample:
        """Make a sample; an index alone gives it without anything random. Damage never raises."""
        index, draw = key if isinstance(key, tuple) else (key, None)
        token = self.tokens[index]
        try:
            return self._sample(token, draw)
        except InputError as error:  # the tables contradict themselves here
            return DamagedSample(token=token, reasons=(str(error),))

    def _sample(self, token: str, draw: int | None) -> Sample | DamagedSample:
        reading = self.log.read_keyframe(token, self.spec.pillars.num_sweeps, self._sensors)
        annotations = self.log.annotations(token)
        reasons = [file.reason for file in reading.unusable] + box_faults(annotations)
        if reading.frame.T_global_ego is None:
            return DamagedSample(
                token=token, reasons=("the tables list no file for this keyframe",)
            )
        if reasons and self.sampling.skip_damaged:
            return DamagedSample(token=token, reasons=tuple(reasons))
        frame, augmentation = self._changed(reading.frame, token, draw)
        T_ego_aug_ego = np.eye(4) if augmentation is None else augmentation.T_ego_aug_ego
        boxes_ego, labels = training_boxes(annotations, frame)
        inputs = prepare_frame(frame, self.spec, augmentation=augmentation).inputs
        depth_bin = None
        if self._with_depth:
            depth_img = inputs.depth_img
            if not self.spec.depth_image or frame.sweeps is not reading.frame.sweeps:
                # the points as they were measured, the cameras as they are shown
                rig = camera_rig(frame, self.spec, augmentation)
                points_ego = frame_points(reading.frame, self.spec)
                depth_img = rig_depth_images(points_ego, rig, self.spec)
            depth_bin = depth_bins(depth_img, self.spec.frustum)
        return Sample(
            inputs=inputs,
            boxes=box_targets(
                augment_boxes(T_ego_aug_ego, boxes_ego),
                labels,
                len(DETECTION_CLASSES),
                self.spec.bev,
            ),
            map_raster=self.map_layers.at(self.log.scene_of(token), ego_pose(frame), T_ego_aug_ego),
            depth_bin=depth_bin,
        )

    def _changed(
        self, frame: SensorFrame, token: str, draw: int | None
    ) -> tuple[SensorFrame, Augmentation | None]:
        """The frame with its faults, and how it is turned and cut."""
        if not self.spec.use_lidar:  # read for the targets alone
            frame = dataclasses.replace(frame, sweeps=())
        if draw is None:
            return frame, None
        config = self.sampling
        rng = np.random.default_rng([self.seed, draw])
        augmentation = draw_augmentation(rng, config.image_augment, config.bev_augment, self.spec)
        frame = inject(frame, config.faults, rng, partial(self.log.message_before, token))
        return frame, augmentation

    def collate(self, samples: Sequence[Sample | DamagedSample]) -> Batch:
        """Batch samples; for a `DataLoader`. Where all are damaged a blank one stands in."""
        whole = [sample for sample in samples if isinstance(sample, Sample)] or [self._blank()]
        boxes = [sample.boxes for sample in whole]
        rasters = [sample.map_raster for sample in whole]
        bins = [sample.depth_bin for sample in whole if sample.depth_bin is not None]
        return Batch(
            inputs=collate_inputs([sample.inputs for sample in whole], self.spec),
            boxes=BoxTargets(
                heatmap=torch.from_numpy(np.stack([b.heatmap for b in boxes])),
                cell=torch.from_numpy(np.stack([b.cell for b in boxes])),
                code=torch.from_numpy(np.stack([b.code for b in boxes])),
                label=torch.from_numpy(np.stack([b.label for b in boxes])),
                object_mask=torch.from_numpy(np.stack([b.object_mask for b in boxes])),
                labelled=torch.tensor([float(sample.labelled) for sample in whole]),
            ),
            map=MapTargets(
                mask=torch.from_numpy(np.stack([r.mask for r in rasters])),
                labelled=torch.from_numpy(np.stack([r.labelled for r in rasters])),
            ),
            depth=DepthTargets(bin=torch.from_numpy(np.stack(bins))) if bins else None,
            damaged=tuple(sample for sample in samples if isinstance(sample, DamagedSample)),
        )

    def _blank(self) -> Sample:
        """Every sensor masked, nothing labelled: it adds nothing to any loss.

        Batch norm counts its black images and its empty grid all the same.
        """
        spec, grid = self.spec, self.map_layers.grid
        frame = SensorFrame(
            stamp_ns=0,
            T_global_ego=np.eye(4),
            images={},
            sweeps=(),
            calibration=Calibration(cameras={}, T_ego_lidar=np.eye(4)),
            missing={},
        )
        nothing = np.zeros((0, box_geometry.NUM_COLUMNS))
        bins = (len(spec.cameras), spec.feature_height, spec.feature_width)
        return Sample(
            inputs=prepare_frame(frame, spec).inputs,
            boxes=box_targets(nothing, np.zeros(0, np.int64), len(DETECTION_CLASSES), spec.bev),
            map_raster=MapRaster(
                mask=np.zeros((len(MAP_CLASSES), grid.ny, grid.nx), np.float32),
                labelled=np.zeros(len(MAP_CLASSES), np.float32),
            ),
            depth_bin=np.full(bins, UNKNOWN, np.int64) if self._with_depth else None,
            labelled=False,
        )


def training_boxes(
    annotations: Annotations, frame: SensorFrame
) -> tuple[Float64[np.ndarray, "k 9"], Int64[np.ndarray, " k"]]:
    """Boxes of the ten classes that any LiDAR or radar point hit, in the frame's ego frame.

    A box that is none (see `box_faults`) is left out.

    Source: specs, base network section 1 (the "valid" flag).
    """
    labels = _training_labels(annotations)
    kept = np.flatnonzero(labels >= 0)
    T_ego_global = rigid.inverse(ego_pose(frame))
    return box_geometry.transform(T_ego_global, annotations.boxes_global[kept]), labels[kept]


def box_faults(annotations: Annotations) -> list[str]:
    """What is wrong with boxes of which no box can be made, with their tokens."""
    broken = np.flatnonzero(~_is_box(annotations))
    return [
        f"annotation {annotations.tokens[k]} has centre {box[box_geometry.CENTER].tolist()}, size "
        f"{box[box_geometry.SIZE].tolist()} and yaw {box[box_geometry.YAW]}"
        for k, box in zip(broken, annotations.boxes_global[broken], strict=True)
    ]


def classes_of_frames(log: NuScenesLog, tokens: Sequence[str]) -> list[Collection[int]]:
    """Labels of each keyframe's training boxes, for `perception.data.sampling.cbgs_indices`.

    A keyframe whose tables are broken has none: it is named when it is read.
    """
    found: list[Collection[int]] = []
    for token in tokens:
        try:
            labels = _training_labels(log.annotations(token))
        except InputError:
            labels = np.zeros(0, np.int64)
        found.append(frozenset(labels[labels >= 0].tolist()))
    return found


def _training_labels(annotations: Annotations) -> Int64[np.ndarray, " k"]:
    """Class of each box; -1 for one that is no target."""
    classes = [DETECTION_CLASS_OF_CATEGORY.get(name) for name in annotations.categories]
    labels = [-1 if name is None else DETECTION_CLASSES.index(name) for name in classes]
    hit = annotations.num_lidar_points + annotations.num_radar_points > 0
    return np.where(hit & _is_box(annotations), np.array(labels, dtype=np.int64), -1)


def _is_box(annotations: Annotations) -> Bool[np.ndarray, " k"]:
    rows = annotations.boxes_global
    is_finite = np.isfinite(rows[:, : box_geometry.YAW + 1]).all(axis=1)
    return is_finite & (rows[:, box_geometry.SIZE] > 0).all(axis=1)


def ego_pose(frame: SensorFrame) -> Float64[np.ndarray, "4 4"]:
    """The frame's ego pose, which a log always knows."""
    if frame.T_global_ego is None:
        raise ValueError("the frame has no ego pose, expected one: a log's keyframes have")
    return frame.T_global_ego
