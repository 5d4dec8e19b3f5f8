"""Which sensors an evaluation leaves to the network, and frames without the others."""

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from perception.input_spec import InputSpec
from perception.messages import SensorFrame
from perception.taxonomy import LIDAR

SubsetChoice = Literal["none", "kinds", "default", "all"]

LEFT_OUT = "left out of this evaluation"


@dataclass(frozen=True, kw_only=True)
class SensorSubset:
    """The sensors that work."""

    name: str
    sensors: tuple[str, ...]
    """Cameras in the network's order, then the LiDAR."""

    def of(self, frame: SensorFrame) -> SensorFrame:
        """The frame as the car has it when every other sensor is lost.

        Stamp and ego pose stay: the rest of the car works on.
        """
        lost = {name for name in (*frame.calibration.cameras, LIDAR) if name not in self.sensors}
        return dataclasses.replace(
            frame,
            images={name: image for name, image in frame.images.items() if name not in lost},
            sweeps=() if LIDAR in lost else frame.sweeps,
            missing={**dict.fromkeys(sorted(lost), LEFT_OUT), **frame.missing},
        )


def sensor_subsets(spec: InputSpec, choice: SubsetChoice) -> tuple[SensorSubset, ...]:
    """Subsets to evaluate, all sensors first; one without any sensor is none.

    Args:
        spec: What the network looks at.
        choice: "none": all sensors only; "kinds": without the LiDAR and without the cameras, too;
            "default": without each camera as well; "all": every subset.
    """
    sensors = spec.sensors
    lost: list[tuple[str, ...]] = [()]
    if choice == "all":
        lost = [
            gone for size in range(len(sensors)) for gone in itertools.combinations(sensors, size)
        ]
    elif choice == "default":
        lost += [(sensor,) for sensor in sensors]
        lost += [spec.cameras]
    elif choice == "kinds" and spec.use_lidar:
        lost += [(LIDAR,), spec.cameras]
    kept = [tuple(name for name in sensors if name not in gone) for gone in dict.fromkeys(lost)]
    return tuple(
        SensorSubset(name=_name(sensors, left, spec.cameras), sensors=left) for left in kept if left
    )


def _name(sensors: Sequence[str], left: Sequence[str], cameras: Sequence[str]) -> str:
    gone = tuple(name for name in sensors if name not in left)
    if not gone:
        return "full"
    if gone == tuple(cameras):
        return "without cameras"
    if len(left) < len(gone):
        return f"only {' '.join(left)}"
    return f"without {' '.join(gone)}"
