"""Which keyframes an epoch holds."""

from collections.abc import Collection, Sequence

import numpy as np
from jaxtyping import Int64


def cbgs_indices(
    classes_per_frame: Sequence[Collection[int]], num_classes: int, seed: int
) -> Int64[np.ndarray, " n"]:
    """Frames of an epoch in which every class has an equal share, class after class.

    For each class, frames that contain it are drawn with replacement; each class gets the same
    number of draws, together as many as there are (frame, class) pairs. A class that no frame
    contains gets none, a frame without objects is never drawn; where no frame has any object all
    frames are taken once.

    Args:
        classes_per_frame: Labels, 0 to num_classes - 1, that occur in each frame.
        num_classes: Classes in all.
        seed: Fixes the draws.

    Source: Zhu et al. 2019 (CBGS); specs, base network section 1.
    """
    frames_of_class = [
        [index for index, labels in enumerate(classes_per_frame) if label in labels]
        for label in range(num_classes)
    ]
    num_pairs = sum(len(frames) for frames in frames_of_class)
    if num_pairs == 0:
        return np.arange(len(classes_per_frame), dtype=np.int64)
    share = max(1, num_pairs // num_classes)
    rng = np.random.default_rng(seed)
    draws = [rng.choice(frames, share) for frames in frames_of_class if frames]
    return np.concatenate(draws).astype(np.int64)
