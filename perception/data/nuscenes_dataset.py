"""Training samples: the inputs of a keyframe and what the heads should say of it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch.utils.data import Dataset

from perception.data.collate import collate_inputs, to_device
from perception.data.map_layers import MapLayers, MapRaster
from perception.data.nuscenes_log import Annotations, NuScenesLog
from perception.data.targets import FrameBoxTargets, box_targets
from perception.geometry import boxes as box_geometry
from perception.geometry import rigid
from perception.geometry.grid import BevGrid
from perception.messages import SensorFrame
from perception.model_inputs import InputSpec, ModelInputs, prepare_frame
from perception.models.detector import InputTensors
from perception.models.heads.center_head import BoxTargets
from perception.models.heads.map_head import MapTargets
from perception.taxonomy import DETECTION_CLASS_OF_CATEGORY, DETECTION_CLASSES


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One keyframe."""

    inputs: ModelInputs
    boxes: FrameBoxTargets
    map_raster: MapRaster


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Several keyframes as tensors."""

    inputs: InputTensors
    boxes: BoxTargets
    map: MapTargets

    def to(self, device: torch.device) -> "Batch":
        """Copy every tensor to a device."""
        return Batch(
            inputs=to_device(self.inputs, device),
            boxes=to_device(self.boxes, device),
            map=to_device(self.map, device),
        )


class NuScenesDataset(Dataset[Sample]):
    """Keyframes of a log."""

    def __init__(self, log: NuScenesLog, tokens: Sequence[str], spec: InputSpec, map_grid: BevGrid):
        self.log = log
        self.tokens = tuple(tokens)
        self.spec = spec
        self.map_layers = MapLayers(log, map_grid)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> Sample:
        token = self.tokens[index]
        frame = self.log.keyframe(token, self.spec.pillars.num_sweeps)
        boxes_ego, labels = training_boxes(self.log.annotations(token), frame)
        return Sample(
            inputs=prepare_frame(frame, self.spec).inputs,
            boxes=box_targets(boxes_ego, labels, len(DETECTION_CLASSES), self.spec.bev),
            map_raster=self.map_layers.at(self.log.scene_of(token), ego_pose(frame)),
        )

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Batch samples; for a `DataLoader`."""
        boxes = [sample.boxes for sample in samples]
        rasters = [sample.map_raster for sample in samples]
        return Batch(
            inputs=collate_inputs([sample.inputs for sample in samples], self.spec),
            boxes=BoxTargets(
                heatmap=torch.from_numpy(np.stack([b.heatmap for b in boxes])),
                cell=torch.from_numpy(np.stack([b.cell for b in boxes])),
                code=torch.from_numpy(np.stack([b.code for b in boxes])),
                object_mask=torch.from_numpy(np.stack([b.object_mask for b in boxes])),
                labelled=torch.ones(len(boxes)),
            ),
            map=MapTargets(
                mask=torch.from_numpy(np.stack([r.mask for r in rasters])),
                labelled=torch.from_numpy(np.stack([r.labelled for r in rasters])),
            ),
        )


def training_boxes(
    annotations: Annotations, frame: SensorFrame
) -> tuple[Float64[np.ndarray, "k 9"], Int64[np.ndarray, " k"]]:
    """Boxes of the ten classes that any LiDAR or radar point hit, in the frame's ego frame.

    Source: specs, base network section 1 (the "valid" flag).
    """
    classes = [DETECTION_CLASS_OF_CATEGORY.get(name) for name in annotations.categories]
    hit = annotations.num_lidar_points + annotations.num_radar_points > 0
    kept = [k for k, name in enumerate(classes) if name is not None and hit[k]]
    labels = [DETECTION_CLASSES.index(str(classes[k])) for k in kept]
    T_ego_global = rigid.inverse(ego_pose(frame))
    boxes_ego = box_geometry.transform(T_ego_global, annotations.boxes_global[kept])
    return boxes_ego, np.array(labels, dtype=np.int64)


def ego_pose(frame: SensorFrame) -> Float64[np.ndarray, "4 4"]:
    """The frame's ego pose, which a log always knows."""
    if frame.T_global_ego is None:
        raise ValueError("the frame has no ego pose, expected one: a log's keyframes have")
    return frame.T_global_ego
