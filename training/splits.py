"""Which keyframes of a log belong to a split."""

from nuscenes.utils.splits import create_splits_scenes

from perception.data.nuscenes_log import NuScenesLog
from perception.errors import InputError

ALL_SCENES = "all"


def split_tokens(log: NuScenesLog, split: str, frames: str) -> tuple[str, ...]:
    """Keyframes of a split, in time order.

    Args:
        log: The log.
        split: An official nuScenes split, or "all".
        frames: "all", or "complete" for those of which every sensor's file is whole.

    Raises:
        InputError: The split is not known, or the log holds no such keyframe.
    """
    if split == ALL_SCENES:
        scenes = log.scenes
    else:
        official = create_splits_scenes()
        if split not in official:
            raise InputError(
                f"There is no split {split!r}: take 'all' or one of {', '.join(official)}."
            )
        scenes = tuple(scene for scene in log.scenes if scene in official[split])
    tokens = [token for scene in scenes for token in log.keyframe_tokens(scene)]
    if frames == "complete":
        tokens = [token for token in tokens if not log.keyframe(token, num_sweeps=1).missing]
    if not tokens:
        raise InputError(
            f"{log.root} has no {frames} keyframe in the split {split!r}: its scenes are "
            f"{', '.join(log.scenes)}; choose another split or 'all'."
        )
    return tuple(tokens)
