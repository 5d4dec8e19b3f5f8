import dataclasses

import pytest
import torch
from small_detector import small_config

from export.parity_frames import noise_frame
from perception.checkpoint import CHECKPOINT_FILE, Checkpoint, save_checkpoint
from perception.data.collate import collate_inputs
from perception.errors import InputError
from perception.models.detector import build_detector
from training.initial_weights import FUSION_WEIGHT, take_weights

FUSION = small_config()
LIDAR = dataclasses.replace(
    FUSION,
    inputs=dataclasses.replace(FUSION.inputs, cameras=(), depth_image=False),
    image_encoder=None,
    view_transform=None,
)
CAMERA = dataclasses.replace(
    FUSION,
    inputs=dataclasses.replace(FUSION.inputs, use_lidar=False, depth_image=False),
    point_encoder=None,
)


def saved(config, folder, seed):
    torch.manual_seed(seed)
    detector = build_detector(config).eval()
    folder.mkdir()
    trained = Checkpoint(detector=detector, config=config, recipe="x", trained_map_classes=())
    save_checkpoint(folder / CHECKPOINT_FILE, trained)
    return detector


@torch.no_grad()
def run(detector, config):
    return detector(collate_inputs([noise_frame(config.inputs)], config.inputs))


def test_a_fusion_network_begins_as_the_lidar_network_it_comes_from(tmp_path):
    lidar = saved(LIDAR, tmp_path / "lidar", seed=1)
    camera = saved(CAMERA, tmp_path / "camera", seed=2)
    fusion, taken = build_detector(FUSION).eval(), set()
    said = take_weights(fusion, tmp_path / "lidar", taken)
    assert "point_encoder 21 of 21" in said
    assert "fusion 6 of 6" in said
    take_weights(fusion, tmp_path / "camera", taken)
    # all six cameras are there, and yet: their channels of the fuser are zero
    ours, theirs = run(fusion, FUSION), run(lidar, LIDAR)
    torch.testing.assert_close(ours.map.logits, theirs.map.logits)
    torch.testing.assert_close(ours.boxes.heatmap_logits, theirs.boxes.heatmap_logits)
    # what the LiDAR's network lacks came from the cameras'
    for name, value in camera.image_encoder.state_dict().items():
        assert torch.equal(fusion.image_encoder.state_dict()[name], value)


def test_the_first_run_wins_and_a_cameras_run_fills_the_cameras_channels(tmp_path):
    camera = saved(CAMERA, tmp_path / "camera", seed=2)
    saved(LIDAR, tmp_path / "lidar", seed=1)
    fusion, taken = build_detector(FUSION), set()
    take_weights(fusion, tmp_path / "camera", taken)
    take_weights(fusion, tmp_path / "lidar", taken)
    weight = fusion.state_dict()[FUSION_WEIGHT]
    assert torch.equal(weight[:, :8], camera.state_dict()[FUSION_WEIGHT])
    assert not weight[:, 8:].any()


def test_what_has_another_shape_stays_as_it_was(tmp_path):
    narrow = dataclasses.replace(FUSION.point_encoder, pillar_channels=4, channels=4)
    saved(dataclasses.replace(LIDAR, point_encoder=narrow), tmp_path / "narrow", seed=1)
    fusion = build_detector(FUSION)
    before = {name: value.clone() for name, value in fusion.state_dict().items()}
    said = take_weights(fusion, tmp_path / "narrow", set())
    assert "image_encoder 0 of" in said
    assert torch.equal(fusion.state_dict()[FUSION_WEIGHT], before[FUSION_WEIGHT])
    with pytest.raises(InputError, match=r"holds no checkpoint\.safetensors"):
        take_weights(fusion, tmp_path, set())
