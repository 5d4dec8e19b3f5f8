from pathlib import Path

import onnx
import pytest
import torch
from settled_detector import settled_checkpoint
from small_detector import small_config

from export.deploy_graph import DeployGraph
from export.parity_frames import noise_frame
from export.to_onnx import export_graph
from perception.checkpoint import CHECKPOINT_FILE, Checkpoint, save_checkpoint
from perception.data.nuscenes_log import NuScenesLog
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


@pytest.fixture(scope="session")
def settled(small_log_root) -> Checkpoint:
    """A small network with activations as large as a trained one's: nobody may change it."""
    return settled_checkpoint(NuScenesLog(small_log_root))


@pytest.fixture(scope="session")
def small_export(settled) -> tuple[DeployGraph, onnx.ModelProto]:
    """The settled network and what it is exported to: nobody may change them."""
    graph = DeployGraph(settled)
    return graph, export_graph(graph, noise_frame(settled.config.inputs))
