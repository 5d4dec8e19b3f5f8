"""Run a detector in PyTorch on frames and give results as the car gives them."""

import numpy as np
import torch

from perception.checkpoint import Checkpoint
from perception.data.collate import collate_inputs, to_device
from perception.messages import Detections, MapMask, PerceptionResult, SensorFrame
from perception.model_inputs import prepare_frame
from perception.taxonomy import DETECTION_CLASSES


@torch.no_grad()
def predict(checkpoint: Checkpoint, frame: SensorFrame) -> PerceptionResult:
    """Detect in one frame.

    Args:
        checkpoint: A trained detector.
        frame: Raw sensor data.

    Returns:
        All boxes, whatever their score, and the map layers that were trained.
    """
    detector, config = checkpoint.detector, checkpoint.config
    prepared = prepare_frame(frame, config.inputs)
    device = next(detector.parameters()).device
    tensors = collate_inputs([prepared.inputs], config.inputs)
    output = detector(to_device(tensors, device))
    boxes, scores, labels = (x[0].cpu().numpy() for x in detector.box_head.decode(output.boxes))
    map_prob = torch.sigmoid(output.map_logits.float())[0, checkpoint.map_channels]
    return PerceptionResult(
        stamp_ns=frame.stamp_ns,
        T_global_ego=frame.T_global_ego,
        detections=Detections(
            boxes_ego=boxes.astype(np.float32),
            scores=scores.astype(np.float32),
            labels=labels,
            classes=DETECTION_CLASSES,
        ),
        map_mask=MapMask(
            prob=map_prob.cpu().numpy(),
            classes=checkpoint.trained_map_classes,
            grid=config.map_head.grid,
        ),
        sensors_used=prepared.sensors_used,
        sensors_missing=prepared.sensors_missing,
        stage_ms={},
    )
