"""Run a detector in PyTorch on frames and give results as the car gives them."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch

from perception.checkpoint import Checkpoint
from perception.data.collate import collate_inputs, to_device
from perception.messages import Detections, MapMask, PerceptionResult, SensorFrame
from perception.model_inputs import PreparedFrame, prepare_frame
from perception.taxonomy import DETECTION_CLASSES

Precision = Literal["fp32", "bf16"]


def predict(checkpoint: Checkpoint, frame: SensorFrame) -> PerceptionResult:
    """Detect in one frame; see `predict_batch`."""
    prepared = prepare_frame(frame, checkpoint.config.inputs)
    return predict_batch(checkpoint, [frame], [prepared])[0]


@torch.no_grad()
def predict_batch(
    checkpoint: Checkpoint,
    frames: Sequence[SensorFrame],
    prepared: Sequence[PreparedFrame],
    precision: Precision = "fp32",
) -> list[PerceptionResult]:
    """Detect in several frames at once, on the device that the network is on.

    Args:
        checkpoint: A trained detector.
        frames: Raw sensor data; stamps and ego poses are taken from it.
        prepared: What `prepare_frame` made of each of them.
        precision: Of the network's layers; decoding is always in fp32.

    Returns:
        Per frame all boxes, whatever their score, except those that are not finite (the car drops
        them, too), and the map layers that were trained.
    """
    detector, config = checkpoint.detector, checkpoint.config
    device = next(detector.parameters()).device
    tensors = to_device(collate_inputs([p.inputs for p in prepared], config.inputs), device)
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        output = detector(tensors)
    boxes, scores, labels = (x.cpu().numpy() for x in detector.box_head.decode(output.boxes))
    logits = output.map.logits.float()[:, checkpoint.map_channels]
    map_prob = torch.sigmoid(logits).cpu().numpy()
    return [
        PerceptionResult(
            stamp_ns=frame.stamp_ns,
            T_global_ego=frame.T_global_ego,
            detections=_detections(boxes[i], scores[i], labels[i]),
            map_mask=MapMask(
                prob=map_prob[i],
                classes=checkpoint.trained_map_classes,
                grid=config.map_head.grid,
            ),
            sensors_used=prepared[i].sensors_used,
            sensors_missing=prepared[i].sensors_missing,
            stage_ms={},
        )
        for i, frame in enumerate(frames)
    ]


def _detections(boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray) -> Detections:
    finite = np.isfinite(boxes).all(axis=1) & np.isfinite(scores)
    return Detections(
        boxes_ego=boxes[finite].astype(np.float32),
        scores=scores[finite].astype(np.float32),
        labels=labels[finite].astype(np.int64),
        classes=DETECTION_CLASSES,
    )
