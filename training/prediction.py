"""Run a detector in PyTorch on frames and give results as the car gives them."""

import dataclasses

import numpy as np
import torch

from perception.data.collate import collate_inputs
from perception.messages import Detections, MapMask, PerceptionResult, SensorFrame
from perception.model_inputs import prepare_frame
from perception.models.detector import BevDetector, DetectorConfig, InputTensors
from perception.taxonomy import DETECTION_CLASSES, MAP_CLASSES


@torch.no_grad()
def predict(
    detector: BevDetector, config: DetectorConfig, frame: SensorFrame, score_threshold: float = 0.0
) -> PerceptionResult:
    """Detect in one frame.

    Args:
        detector: In evaluation mode.
        config: The detector's.
        frame: Raw sensor data.
        score_threshold: Boxes below this score are left out.
    """
    prepared = prepare_frame(frame, config.inputs)
    device = next(detector.parameters()).device
    tensors = collate_inputs([prepared.inputs], config.inputs)
    output = detector(_move(tensors, device))
    boxes, scores, labels = (x[0].cpu().numpy() for x in detector.box_head.decode(output.boxes))
    kept = scores >= score_threshold
    return PerceptionResult(
        stamp_ns=frame.stamp_ns,
        T_global_ego=frame.T_global_ego,
        detections=Detections(
            boxes_ego=boxes[kept].astype(np.float32),
            scores=scores[kept].astype(np.float32),
            labels=labels[kept],
            classes=DETECTION_CLASSES,
        ),
        map_mask=MapMask(
            prob=torch.sigmoid(output.map_logits.float())[0].cpu().numpy(),
            classes=MAP_CLASSES,
            grid=config.map_head.grid,
        ),
        sensors_used=prepared.sensors_used,
        sensors_missing=prepared.sensors_missing,
        stage_ms={},
    )


def _move(inputs: InputTensors, device: torch.device) -> InputTensors:
    names = [field.name for field in dataclasses.fields(inputs)]
    return InputTensors(**{name: getattr(inputs, name).to(device) for name in names})
