"""Light and weather of a scene, and what they do to the sensors."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from perception.errors import InputError

PRESETS = ("day", "dusk", "night", "rain")
PRESET_SHARES = (0.6, 0.12, 0.14, 0.14)
"""How often each preset is drawn. Source: ours, near the shares of nuScenes' night and rain."""
_OVERCAST_SHARE = 0.35
"""Of the days."""


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """Fixed for a scene."""

    name: str
    """One of `PRESETS`."""
    sun_azimuth: float
    """Direction towards the sun, counter-clockwise from global +x [rad]."""
    sun_elevation: float
    """Above the horizon [rad], > 0."""
    sunlight: float
    """Light from the sun, relative; 0 where it is overcast or night. Casts shadows."""
    skylight: float
    """Light from everywhere, relative; 1 by day."""
    tint_rgb: tuple[float, float, float]
    """Factor on each colour."""
    sky_top_rgb: tuple[int, int, int]
    sky_horizon_rgb: tuple[int, int, int]
    cloudiness: float = 0.0
    """0 is a clear sky, 1 a closed one."""
    contrast: float
    """1 leaves the picture as it is."""
    noise: float
    """Standard deviation of the sensor's noise in 8-bit steps."""
    visibility: float
    """Distance at which haze has taken 63 % of the contrast [m]."""
    wetness: float = 0.0
    """How much the ground mirrors: 0 dry, 1 flooded."""
    headlights: float
    """Light of the car's own lamps at 10 m, relative; where it is above 0 street lamps and some
    windows shine, too."""
    lidar_dropout: float
    """Probability that a return is lost at 0 m."""
    lidar_dropout_per_meter: float
    """... and what is added to it per metre."""
    lidar_range_noise: float
    """Standard deviation of the measured range [m]."""
    lidar_clutter: float
    """Probability that a ray returns from a rain drop within a few metres."""

    @property
    def sun_direction(self) -> Float64[np.ndarray, " 3"]:
        """Unit vector towards the sun in the global frame."""
        across = np.cos(self.sun_elevation)
        return np.array(
            [
                across * np.cos(self.sun_azimuth),
                across * np.sin(self.sun_azimuth),
                np.sin(self.sun_elevation),
            ]
        )


def draw_conditions(rng: np.random.Generator) -> Conditions:
    """A preset by its share of real drives, with some variety within."""
    return conditions_by_name(PRESETS[int(rng.choice(len(PRESETS), p=PRESET_SHARES))], rng)


def conditions_by_name(name: str, rng: np.random.Generator) -> Conditions:
    """One of `PRESETS`, with some variety within.

    Raises:
        InputError: There is no such preset.

    Source of all values: ours, by eye.
    """
    make: dict[str, Callable[[np.random.Generator], Conditions]] = {
        "day": _day,
        "dusk": _dusk,
        "night": _night,
        "rain": _rain,
    }
    if name not in make:
        raise InputError(
            f"Conditions are {name!r}, expected one of {', '.join(PRESETS)}: choose one of these."
        )
    return make[name](rng)


def _day(rng: np.random.Generator) -> Conditions:
    overcast = bool(rng.random() < _OVERCAST_SHARE)
    warmth = float(rng.uniform(-0.03, 0.03))
    return Conditions(
        name="day",
        sun_azimuth=_azimuth(rng),
        sun_elevation=_between(rng, 0.45, 1.15),
        sunlight=0.0 if overcast else _between(rng, 0.75, 1.0),
        skylight=_between(rng, 1.45, 1.65) if overcast else _between(rng, 0.95, 1.1),
        tint_rgb=(1.0 + warmth, 1.0, 1.0 - warmth),
        sky_top_rgb=_color(rng, (158, 168, 182) if overcast else (78, 126, 196), 14),
        sky_horizon_rgb=_color(rng, (206, 210, 214) if overcast else (198, 214, 230), 8),
        cloudiness=_between(rng, 0.7, 1.0) if overcast else _between(rng, 0.1, 0.6),
        contrast=_between(rng, 0.94, 1.12),
        noise=_between(rng, 1.5, 2.5),
        visibility=_between(rng, 450.0, 1200.0),
        wetness=0.0,
        headlights=0.0,
        lidar_dropout=0.03,
        lidar_dropout_per_meter=0.0015,
        lidar_range_noise=0.02,
        lidar_clutter=0.0,
    )


def _dusk(rng: np.random.Generator) -> Conditions:
    return Conditions(
        name="dusk",
        sun_azimuth=_azimuth(rng),
        sun_elevation=_between(rng, 0.16, 0.32),
        sunlight=_between(rng, 0.45, 0.7),
        skylight=_between(rng, 0.68, 0.85),
        tint_rgb=(_between(rng, 1.05, 1.14), 1.0, _between(rng, 0.82, 0.92)),
        sky_top_rgb=_color(rng, (84, 96, 150), 12),
        sky_horizon_rgb=_color(rng, (238, 190, 150), 14),
        cloudiness=_between(rng, 0.2, 0.8),
        contrast=_between(rng, 0.95, 1.1),
        noise=_between(rng, 2.0, 3.5),
        visibility=_between(rng, 300.0, 700.0),
        wetness=0.0,
        headlights=0.0,
        lidar_dropout=0.03,
        lidar_dropout_per_meter=0.0015,
        lidar_range_noise=0.02,
        lidar_clutter=0.0,
    )


def _night(rng: np.random.Generator) -> Conditions:
    return Conditions(
        name="night",
        sun_azimuth=_azimuth(rng),
        sun_elevation=_between(rng, 0.5, 1.0),
        sunlight=0.0,
        skylight=_between(rng, 0.34, 0.46),
        tint_rgb=(_between(rng, 1.0, 1.08), 0.98, _between(rng, 0.86, 0.98)),
        sky_top_rgb=_color(rng, (12, 15, 26), 4),
        sky_horizon_rgb=_color(rng, (44, 42, 50), 8),
        cloudiness=_between(rng, 0.2, 0.8),
        contrast=_between(rng, 1.0, 1.12),
        noise=_between(rng, 3.0, 5.0),
        visibility=_between(rng, 250.0, 600.0),
        wetness=0.0,
        headlights=_between(rng, 0.55, 0.8),
        lidar_dropout=0.03,
        lidar_dropout_per_meter=0.0015,
        lidar_range_noise=0.02,
        lidar_clutter=0.0,
    )


def _rain(rng: np.random.Generator) -> Conditions:
    return Conditions(
        name="rain",
        sun_azimuth=_azimuth(rng),
        sun_elevation=_between(rng, 0.4, 1.0),
        sunlight=0.0,
        skylight=_between(rng, 0.95, 1.2),
        tint_rgb=(_between(rng, 0.93, 0.97), 0.98, _between(rng, 1.0, 1.05)),
        sky_top_rgb=_color(rng, (128, 134, 144), 12),
        sky_horizon_rgb=_color(rng, (172, 177, 183), 10),
        cloudiness=1.0,
        contrast=_between(rng, 0.8, 0.92),
        noise=_between(rng, 2.0, 3.5),
        visibility=_between(rng, 110.0, 220.0),
        wetness=_between(rng, 0.5, 0.9),
        headlights=0.0,
        lidar_dropout=_between(rng, 0.06, 0.12),
        lidar_dropout_per_meter=_between(rng, 0.003, 0.006),
        lidar_range_noise=0.03,
        lidar_clutter=_between(rng, 0.002, 0.01),
    )


def _azimuth(rng: np.random.Generator) -> float:
    return _between(rng, -np.pi, np.pi)


def _between(rng: np.random.Generator, low: float, high: float) -> float:
    return float(rng.uniform(low, high))


def _color(
    rng: np.random.Generator, rgb: tuple[int, int, int], spread: int
) -> tuple[int, int, int]:
    """A colour, a little lighter or darker and a little off."""
    brighter = int(rng.integers(-spread, spread + 1))
    red, green, blue = (
        int(np.clip(value + brighter + rng.integers(-3, 4), 0, 255)) for value in rgb
    )
    return red, green, blue
