"""Weights (safetensors) together with the configuration that they belong to. Never a pickle."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch

from perception import atomic_file, json_codec
from perception.errors import InputError
from perception.models.detector import BevDetector, DetectorConfig, build_detector
from perception.taxonomy import MAP_CLASSES

CHECKPOINT_FILE = "checkpoint.safetensors"
_CONFIG_KEY, _RECIPE_KEY, _DIGEST_KEY = "detector_config", "recipe", "sha256_weights"
_MAP_CLASSES_KEY = "trained_map_classes"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A trained detector."""

    detector: BevDetector
    """`load_checkpoint` gives it in evaluation mode, on the CPU."""
    config: DetectorConfig
    recipe: str
    trained_map_classes: tuple[str, ...]
    """Map layers that any training frame knew, in the order of the head's channels. What the head
    says of another layer means nothing, so nobody downstream gets to see it."""

    @property
    def map_channels(self) -> list[int]:
        """Channels of the trained layers."""
        return [MAP_CLASSES.index(name) for name in self.trained_map_classes]


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write weights, what belongs to them and a digest of the weights into one file."""
    state = checkpoint.detector.state_dict()
    weights = {name: tensor.contiguous() for name, tensor in state.items()}
    metadata = {
        _CONFIG_KEY: json_codec.to_json(checkpoint.config),
        _RECIPE_KEY: checkpoint.recipe,
        _MAP_CLASSES_KEY: " ".join(checkpoint.trained_map_classes),
        _DIGEST_KEY: _digest(weights),
    }
    atomic_file.write_bytes(path, safetensors.torch.save(weights, metadata))


def load_checkpoint(run: Path) -> Checkpoint:
    """Read the checkpoint of a run folder.

    Raises:
        InputError: There is none, it is damaged, or it belongs to another version of the network.
    """
    path, weights, metadata = _read(run)
    source = f"{path} (configuration)"
    config = json_codec.from_json(DetectorConfig, metadata[_CONFIG_KEY], source)
    detector = build_detector(config)
    try:
        detector.load_state_dict(weights)
    except RuntimeError as error:
        first = str(error).splitlines()[-1].strip()
        raise InputError(
            f"{path} is of another version of the network ({first}): train again."
        ) from error
    layers = metadata[_MAP_CLASSES_KEY].split()
    return Checkpoint(
        detector=detector.eval(),
        config=config,
        recipe=metadata[_RECIPE_KEY],
        trained_map_classes=tuple(name for name in MAP_CLASSES if name in layers),
    )


def read_weights(run: Path) -> dict[str, torch.Tensor]:
    """Weights and buffers of a run folder's checkpoint by name, whatever network they are of.

    Raises:
        InputError: There is none, or it is damaged.
    """
    return _read(run)[1]


def _read(run: Path) -> tuple[Path, dict[str, torch.Tensor], dict[str, str]]:
    path = run / CHECKPOINT_FILE
    if not path.is_file():
        raise InputError(
            f"{run} holds no {CHECKPOINT_FILE}: give a run folder made by training/train.py."
        )
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}
        keys = (_CONFIG_KEY, _RECIPE_KEY, _DIGEST_KEY, _MAP_CLASSES_KEY)
        metadata = {key: metadata[key] for key in keys}
    except (safetensors.SafetensorError, KeyError) as error:
        raise InputError(
            f"{path} is no checkpoint of this project ({error}): train again."
        ) from error
    if _digest(weights) != metadata[_DIGEST_KEY]:
        raise InputError(f"{path} is damaged (its weights do not match their digest): train again.")
    return path, weights, metadata


def _digest(weights: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(weights[name].detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
