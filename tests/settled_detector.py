"""A small network that was not trained and yet says something of what it sees."""

import torch
from small_detector import small_config

from perception.checkpoint import Checkpoint
from perception.data.collate import collate_inputs
from perception.data.nuscenes_log import NuScenesLog
from perception.model_inputs import prepare_frame
from perception.models.detector import build_detector
from perception.taxonomy import MAP_CLASSES


def settled_checkpoint(log: NuScenesLog) -> Checkpoint:
    """Random weights; batch norm has seen two frames: before, all activations are nearly zero."""
    torch.manual_seed(0)
    config = small_config()
    detector = build_detector(config)
    for module in detector.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
    tokens = log.keyframe_tokens()
    frames = [log.keyframe(token) for token in (tokens[0], tokens[-1])]
    inputs = [prepare_frame(frame, config.inputs).inputs for frame in frames]
    with torch.no_grad():
        detector.train()(collate_inputs(inputs, config.inputs))
    return Checkpoint(
        detector=detector.eval(), config=config, recipe="small", trained_map_classes=MAP_CLASSES
    )
