"""What a synthetic log holds: its size, its scenes and their splits."""

from dataclasses import dataclass

from perception.errors import InputError
from perception.synthetic.rig import FULL_HEIGHT_PX, FULL_WIDTH_PX

KEYFRAME_PERIOD_US = 500_000
CAMERA_PERIOD_US = 83_333
"""12 Hz."""
FIRST_START_US = 1_700_000_000_000_000
SCENE_SPACING_US = 120_000_000
"""Time between the starts of two scenes: longer than any of them."""
MAX_KEYFRAMES = 200

MINI_SCENES = (
    # name and place as in the real mini set; the two of mini_val are VALIDATION_SCENES
    ("scene-0061", "singapore-onenorth"),
    ("scene-0103", "boston-seaport"),
    ("scene-0553", "boston-seaport"),
    ("scene-0655", "boston-seaport"),
    ("scene-0757", "boston-seaport"),
    ("scene-0796", "singapore-queenstown"),
    ("scene-0916", "singapore-queenstown"),
    ("scene-1077", "singapore-hollandvillage"),
    ("scene-1094", "singapore-hollandvillage"),
    ("scene-1100", "singapore-hollandvillage"),
)
VALIDATION_SCENES = ("scene-0103", "scene-0916")
FURTHER_LOCATIONS = (
    "boston-seaport",
    "singapore-onenorth",
    "singapore-hollandvillage",
    "singapore-queenstown",
)
FIRST_FURTHER_SCENE = 2001
"""Real scenes have smaller numbers."""
MAX_SCENES = 1000


def _check(what: str, got: int, least: int, most: int) -> None:
    if not least <= got <= most:
        raise InputError(f"{what} is {got}, expected {least} to {most}: choose another number.")


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """Everything that fixes the bytes of a log."""

    num_scenes: int = 10
    num_keyframes: int
    """Keyframes per scene, at 2 Hz."""
    sweeps_per_keyframe: int
    """LiDAR revolutions per keyframe, evenly spaced: 10 is the real sensor's 20 Hz."""
    image_width_px: int
    image_height_px: int
    camera_sweeps: bool = False
    """Images between keyframes as well: 12 Hz."""
    pixel_labels: bool = False
    """Depth, instance, class and drivable area per pixel of each keyframe's images."""
    seed: int = 0
    """Another seed is another world: maps, traffic, weather."""
    backend: str = "numpy"
    """Ray caster: "numpy", or "numba" where it is installed."""

    def __post_init__(self) -> None:
        """Refuse sizes that cannot be made."""
        _check("scenes", self.num_scenes, 1, MAX_SCENES)
        # one keyframe alone gives no velocity
        _check("keyframes per scene", self.num_keyframes, 2, MAX_KEYFRAMES)
        _check("LiDAR sweeps per keyframe", self.sweeps_per_keyframe, 1, 10)
        _check("image width", self.image_width_px, 64, FULL_WIDTH_PX)
        _check("image height", self.image_height_px, 36, FULL_HEIGHT_PX)
        if self.backend not in ("numpy", "numba"):
            raise InputError(f"There is no ray caster {self.backend!r}: take 'numpy' or 'numba'.")

    @property
    def duration(self) -> float:
        """First to last keyframe of a scene [s]."""
        return (self.num_keyframes - 1) * KEYFRAME_PERIOD_US * 1e-6


@dataclass(frozen=True, kw_only=True)
class ScenePlan:
    """Name, place and time of a scene."""

    name: str
    location: str
    start_us: int
    """Stamp of its first keyframe."""
    is_validation: bool


PRESETS = {
    "tiny": LogConfig(
        num_keyframes=4, sweeps_per_keyframe=2, image_width_px=352, image_height_px=198
    ),
    "small": LogConfig(
        num_keyframes=20, sweeps_per_keyframe=5, image_width_px=352, image_height_px=198
    ),
    "mini-like": LogConfig(
        num_keyframes=40, sweeps_per_keyframe=10, image_width_px=704, image_height_px=396
    ),
}


def plan_scenes(num_scenes: int) -> tuple[ScenePlan, ...]:
    """The scenes of a log: the official ten of the mini set first, then further ones.

    One scene in five is for validation.
    """
    further = (
        (f"scene-{FIRST_FURTHER_SCENE + k}", FURTHER_LOCATIONS[k % len(FURTHER_LOCATIONS)])
        for k in range(num_scenes - len(MINI_SCENES))
    )
    return tuple(
        ScenePlan(
            name=name,
            location=location,
            start_us=FIRST_START_US + index * SCENE_SPACING_US,
            is_validation=(
                name in VALIDATION_SCENES if index < len(MINI_SCENES) else index % 5 == 4
            ),
        )
        for index, (name, location) in enumerate((*MINI_SCENES, *further)[:num_scenes])
    )


def plan_splits(scenes: tuple[ScenePlan, ...]) -> dict[str, list[str]]:
    """`splits.json`: custom splits that the devkit reads beside its official ones."""
    return {
        "synthetic_train": [scene.name for scene in scenes if not scene.is_validation],
        "synthetic_val": [scene.name for scene in scenes if scene.is_validation],
    }
