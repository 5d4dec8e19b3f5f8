import pytest
import torch
from small_detector import small_config

from perception.checkpoint import CHECKPOINT_FILE, Checkpoint, load_checkpoint, save_checkpoint
from perception.errors import InputError
from perception.models.detector import build_detector


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(1)
    detector = build_detector(small_config())
    checkpoint = Checkpoint(
        detector=detector,
        config=small_config(),
        recipe="small",
        trained_map_classes=("drivable_area", "divider"),
    )
    save_checkpoint(tmp_path / CHECKPOINT_FILE, checkpoint)
    return tmp_path, detector


def test_round_trip(saved):
    run, detector = saved
    checkpoint = load_checkpoint(run)
    assert checkpoint.config == small_config()
    assert checkpoint.recipe == "small"
    assert checkpoint.trained_map_classes == ("drivable_area", "divider")
    assert checkpoint.map_channels == [0, 5]
    for name, tensor in detector.state_dict().items():
        assert torch.equal(checkpoint.detector.state_dict()[name], tensor), name


def test_no_checkpoint(tmp_path):
    with pytest.raises(InputError, match=r"holds no checkpoint\.safetensors"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("damage", ["truncate", "flip a weight", "no safetensors"])
def test_a_damaged_file_is_refused(saved, damage):
    path = saved[0] / CHECKPOINT_FILE
    content = bytearray(path.read_bytes())
    if damage == "truncate":
        content = content[: len(content) // 2]
    elif damage == "flip a weight":  # safetensors itself loads this without a word
        content[-1000] ^= 0xFF
    else:
        content = bytearray(b"hello")
    path.write_bytes(content)
    with pytest.raises(InputError, match="train again"):
        load_checkpoint(saved[0])
