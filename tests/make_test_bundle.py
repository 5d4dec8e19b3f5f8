"""Export the tiny network with random weights: the bundle that the ROS tests run.

python tests/make_test_bundle.py OUT
"""

import sys
from pathlib import Path

import torch

from export.to_onnx import export_checkpoint
from perception.checkpoint import Checkpoint
from perception.errors import run_command
from perception.models.detector import build_detector
from perception.taxonomy import MAP_CLASSES
from training.recipes import tiny_fusion


def main() -> None:
    """Export random weights, without a log."""
    torch.manual_seed(0)
    config = tiny_fusion().detector
    checkpoint = Checkpoint(
        detector=build_detector(config).eval(),
        config=config,
        recipe="tiny_fusion",
        trained_map_classes=MAP_CLASSES,
    )
    export_checkpoint(checkpoint, Path(sys.argv[1]), frames=[], overwrite=True)


if __name__ == "__main__":
    run_command(main)
