"""What the tests generate, and helpers to look at it."""

import dataclasses
import hashlib
from pathlib import Path

from perception.synthetic.log_plan import PRESETS

SMALLEST = dataclasses.replace(PRESETS["tiny"], num_scenes=2, num_keyframes=4, pixel_labels=True)
"""scene-0061 (mini_train) and scene-0103 (mini_val)."""


def digests(root: Path) -> dict[str, str]:
    """Digest of every file of a folder."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }
