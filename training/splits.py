"""Which keyframes of a log belong to a split."""

import json

from nuscenes.utils.splits import create_splits_scenes

from perception.data.nuscenes_log import NuScenesLog
from perception.errors import InputError

ALL_SCENES = "all"
SPLITS_FILE = "splits.json"
"""Read by the nuScenes devkit, too: `nuscenes.utils.splits.get_scenes_of_custom_split`."""


def split_tokens(log: NuScenesLog, split: str, frames: str) -> tuple[str, ...]:
    """Keyframes of a split, in time order.

    Args:
        log: The log.
        split: An official nuScenes split, one of the log's own, or "all".
        frames: "all", or "complete" for those of which every sensor's file is whole.

    Raises:
        InputError: The split is not known, or the log holds no such keyframe.
    """
    if split == ALL_SCENES:
        scenes = log.scenes
    else:
        known = create_splits_scenes() | custom_splits(log)
        if split not in known:
            raise InputError(
                f"There is no split {split!r}: take 'all' or one of {', '.join(known)}."
            )
        scenes = tuple(scene for scene in log.scenes if scene in known[split])
    tokens = [token for scene in scenes for token in log.keyframe_tokens(scene)]
    if frames == "complete":
        tokens = [token for token in tokens if not log.keyframe(token, num_sweeps=1).missing]
    if not tokens:
        raise InputError(
            f"{log.root} has no {frames} keyframe in the split {split!r}: its scenes are "
            f"{', '.join(log.scenes)}; choose another split or 'all'."
        )
    return tuple(tokens)


def custom_splits(log: NuScenesLog) -> dict[str, list[str]]:
    """Scenes by split as the log itself says; empty where it says nothing.

    Raises:
        InputError: `splits.json` is no table of scene names.
    """
    path = log.root / log.version / SPLITS_FILE
    if not path.is_file():
        return {}
    try:
        splits = json.loads(path.read_text())
        return {str(name): [str(scene) for scene in scenes] for name, scenes in splits.items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise InputError(
            f"{path} is no table of splits ({error}), expected names with lists of scenes: "
            "write it again or remove it."
        ) from error
