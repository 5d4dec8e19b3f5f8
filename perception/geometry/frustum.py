"""The sampling of space in front of a camera."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Frustum:
    """Sampling of space in front of a camera."""

    stride: int
    """Pixels of the network's image per feature cell."""
    depth_min: float
    """Near edge of the first depth bin [m]."""
    depth_max: float
    """Far edge of the last depth bin [m]."""
    depth_step: float
    """Depth of a bin [m]; a bin's point lies in its middle."""
    z_min: float
    """Points below this height above ground [m] are dropped."""
    z_max: float
    """Points above this height above ground [m] are dropped."""

    def __post_init__(self) -> None:
        """Refuse bins behind the camera or a range that is not a whole number of bins."""
        num = (self.depth_max - self.depth_min) / self.depth_step
        if self.depth_min <= 0 or num < 0.5 or abs(num - round(num)) > 1e-6 * num:
            raise ValueError(
                f"depth {self.depth_min}..{self.depth_max} m in steps of {self.depth_step} m is "
                f"{num:.3f} bins, expected a whole number in front of the camera"
            )

    @property
    def num_depths(self) -> int:
        """Depth bins."""
        return round((self.depth_max - self.depth_min) / self.depth_step)
