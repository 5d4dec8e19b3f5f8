"""What the weights of a run start from: random numbers, an image backbone's file, other runs."""

from pathlib import Path

import torch

from perception.checkpoint import read_weights
from perception.errors import InputError
from perception.models.detector import BevDetector, build_detector
from perception.models.image_encoder import load_pretrained
from training.config import TrainConfig

FUSION_WEIGHT = "fusion.mix.0.weight"
SENSOR_PARTS = ("view_transform.", "point_encoder.")
"""What the fuser concatenates, in its order: camera, LiDAR."""


def initial_detector(
    config: TrainConfig, random_only: bool = False
) -> tuple[BevDetector, list[str]]:
    """Build the detector of a run.

    Args:
        config: The run.
        random_only: Read no file: the weights will be replaced.

    Returns:
        The detector, and a sentence for each source of weights besides the seed.

    Raises:
        InputError: A source is missing, damaged, or has nothing for this network.
    """
    torch.manual_seed(config.seed)
    detector = build_detector(config.detector)
    notes: list[str] = []
    if random_only:
        return detector, notes
    encoder = config.detector.image_encoder
    if encoder is not None and encoder.weights and detector.image_encoder is not None:
        loaded = load_pretrained(detector.image_encoder, encoder.weights)
        notes.append(f"image backbone: {loaded.num_used} tensors from {loaded.path}")
    taken: set[str] = set()
    for run in config.init_from:
        notes.append(take_weights(detector, Path(run), taken))
    return detector, notes


def take_weights(detector: BevDetector, run: Path, taken: set[str]) -> str:
    """Copy every tensor of the same name and shape that no earlier run gave.

    A fuser takes the weights of a single sensor's network for this sensor's channels.

    Args:
        detector: Changed in place.
        run: Run folder.
        taken: Names that are not to be touched; gains those that were copied.

    Returns:
        How many tensors of how many came into each part.

    Raises:
        InputError: There is no such run, or no tensor of it fits.
    """
    source, own = read_weights(run), detector.state_dict()
    fitting = {
        name: value
        for name, value in source.items()
        if name in own and own[name].shape == value.shape
    } | _fusion_columns(detector, source)
    if not fitting:
        raise InputError(
            f"No tensor of {run} fits this network by name and shape: take it out of --init-from."
        )
    new = {name: value for name, value in fitting.items() if name not in taken}
    detector.load_state_dict(own | new)
    taken.update(new)
    parts = dict.fromkeys(name.split(".")[0] for name in own)
    shares = [
        f"{part} {sum(n.split('.')[0] == part for n in new)} of "
        f"{sum(n.split('.')[0] == part for n in own)}"
        for part in parts
    ]
    return f"tensors from {run}: {', '.join(shares)}"


def _fusion_columns(
    detector: BevDetector, source: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The first weights of a fuser, from a network that has only one of its two sensors.

    They go where this sensor's channels are; those of the other sensor are zero. So the network
    begins as the one that it comes from, and the other sensor comes in as it is learnt.
    """
    own = detector.state_dict().get(FUSION_WEIGHT)
    theirs = source.get(FUSION_WEIGHT)
    if detector.view_transform is None or own is None or theirs is None:
        return {}
    has = [any(name.startswith(part) for name in source) for part in SENSOR_PARTS]
    c_camera = detector.view_transform.out_channels
    columns = {(True, False): slice(0, c_camera), (False, True): slice(c_camera, None)}
    place = columns.get((has[0], has[1]))
    if place is None or own[:, place].shape != theirs.shape:
        return {}
    mixed = torch.zeros_like(own)
    mixed[:, place] = theirs
    return {FUSION_WEIGHT: mixed}
