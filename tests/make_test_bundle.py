"""Export the tiny network with random weights: the bundle that the ROS tests run.

python tests/make_test_bundle.py OUT
"""

import sys
import tempfile
from pathlib import Path

import torch

from export.to_onnx import export_run
from perception.checkpoint import CHECKPOINT_FILE, Checkpoint, save_checkpoint
from perception.errors import run_command
from perception.models.detector import build_detector
from perception.taxonomy import MAP_CLASSES
from training.recipes import tiny


def main() -> None:
    """Save random weights as a run, export it without a log."""
    torch.manual_seed(0)
    config = tiny().detector
    with tempfile.TemporaryDirectory() as run:
        checkpoint = Checkpoint(
            detector=build_detector(config),
            config=config,
            recipe="tiny",
            trained_map_classes=MAP_CLASSES,
        )
        save_checkpoint(Path(run) / CHECKPOINT_FILE, checkpoint)
        export_run(Path(run), Path(sys.argv[1]), frames=[], overwrite=True)


if __name__ == "__main__":
    run_command(main)
