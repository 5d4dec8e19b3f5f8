from pathlib import Path

import pytest
import torch
from small_detector import small_config

from perception.checkpoint import CHECKPOINT_FILE, Checkpoint, save_checkpoint
from perception.models.detector import build_detector


@pytest.fixture(scope="session")
def small_run(tmp_path_factory) -> Path:
    """A run folder with random weights that have seen no data."""
    torch.manual_seed(0)
    run = tmp_path_factory.mktemp("export") / "run"
    run.mkdir()
    config = small_config()
    checkpoint = Checkpoint(
        detector=build_detector(config),
        config=config,
        recipe="small",
        trained_map_classes=("drivable_area", "walkway"),
    )
    save_checkpoint(run / CHECKPOINT_FILE, checkpoint)
    return run
