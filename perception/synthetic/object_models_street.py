"""Models of what stands in work zones: barriers, cones, construction vehicles.

Source of all sizes: rounded means of nuScenes' classes; shapes and spread are ours.
"""

import numpy as np

from perception.synthetic.object_models_vehicles import (
    DARK,
    GLASS,
    HEADLAMP,
    TAIL_LAMP,
    TYRE,
    paint,
    vary,
)
from perception.synthetic.part_list import Material, ObjectParts
from perception.synthetic.primitives import Pattern

_RED, _ORANGE, _WHITE = (204, 34, 30), (240, 96, 24), (242, 242, 238)


def barrier(rng: np.random.Generator, semantic: int, _moving: bool) -> ObjectParts:
    """A plastic wall on a wide foot, or two striped planks on posts; short along x, wide across."""
    parts = ObjectParts(vary(rng, (0.50, 2.45, 1.0), 0.05), semantic)
    rgb = _RED if rng.random() < 0.6 else _ORANGE
    stripes = Material(
        rgb=rgb, second_rgb=_WHITE, pattern=Pattern.DIAGONAL, scale=0.28, reflectivity=0.85
    )
    if rng.random() < 0.6:
        plain = Material(rgb=rgb, reflectivity=0.6)
        parts.box((0.0, 1.0), (0.0, 1.0), (0.0, 0.22), plain)
        parts.box((0.25, 0.75), (0.0, 1.0), (0.22, 0.50), plain)
        parts.box((0.34, 0.66), (0.01, 0.99), (0.50, 1.0), stripes)
        return parts
    foot = Material(rgb=(60, 60, 64), reflectivity=0.2)
    parts.pair((0.0, 1.0), (0.04, 0.12), (0.0, 0.10), foot)
    parts.pair((0.42, 0.58), (0.06, 0.10), (0.10, 0.98), foot)
    parts.box((0.36, 0.64), (0.0, 1.0), (0.66, 1.0), stripes)
    parts.box((0.38, 0.62), (0.0, 1.0), (0.22, 0.48), stripes)
    return parts


def traffic_cone(rng: np.random.Generator, semantic: int, _moving: bool) -> ObjectParts:
    """A tapering tower of boxes in orange and white on a dark plate."""
    height = float(rng.uniform(0.72, 1.15))
    width = height * float(rng.uniform(0.36, 0.42))
    parts = ObjectParts((width, width, height), semantic)
    bands = Material(
        rgb=_ORANGE, second_rgb=_WHITE, pattern=Pattern.BANDS, scale=height / 4.5, reflectivity=0.92
    )
    parts.box((0.0, 1.0), (0.0, 1.0), (0.0, 0.05), DARK)
    levels = np.linspace(0.05, 1.0, 6).tolist()
    for low, high, half in zip(
        levels[:-1], levels[1:], (0.36, 0.29, 0.22, 0.15, 0.09), strict=True
    ):
        parts.box((0.5 - half, 0.5 + half), (0.5 - half, 0.5 + half), (low, high), bands)
    return parts


def construction_vehicle(rng: np.random.Generator, semantic: int, _moving: bool) -> ObjectParts:
    """An excavator on tracks or a wheel loader, its tool stretched out in front."""
    parts = ObjectParts(vary(rng, (6.6, 2.8, 3.2), 0.07), semantic)
    body = paint(rng, ((236, 178, 26), (240, 190, 40), (238, 122, 30)))
    lamp = Material(rgb=(255, 150, 20), reflectivity=0.6, glow=0.7)
    if rng.random() < 0.65:
        parts.pair((0.04, 0.58), (0.0, 0.22), (0.0, 0.28), TYRE)
        parts.box((0.10, 0.50), (0.22, 0.78), (0.14, 0.32), DARK)
        parts.box((0.0, 0.36), (0.04, 0.96), (0.32, 0.64), body)
        parts.box((0.34, 0.58), (0.52, 0.94), (0.32, 0.96), GLASS)
        parts.box((0.33, 0.59), (0.51, 0.95), (0.93, 0.97), body)
        parts.beam((0.40, 0.76), (0.30, 0.46), (0.42, 1.0), 0.40, body, rises=True)
        parts.beam((0.72, 0.97), (0.32, 0.44), (0.14, 1.0), 0.32, body, rises=False)
        parts.box((0.84, 1.0), (0.22, 0.54), (0.0, 0.22), DARK)
        parts.pair((0.0, 0.01), (0.06, 0.16), (0.40, 0.48), TAIL_LAMP)
        return parts
    for axle in (0.20, 0.60):
        parts.box((axle - 0.12, axle + 0.12), (0.02, 0.98), (0.0, 0.42), TYRE)
    parts.box((0.006, 0.40), (0.14, 0.86), (0.24, 0.62), body)
    parts.box((0.38, 0.56), (0.18, 0.82), (0.32, 0.94), GLASS)
    parts.box((0.36, 0.58), (0.16, 0.84), (0.92, 0.96), body)
    parts.box((0.44, 0.48), (0.46, 0.54), (0.96, 1.0), lamp)
    parts.pair((0.52, 0.88), (0.24, 0.32), (0.22, 0.36), body)
    parts.box((0.84, 1.0), (0.0, 1.0), (0.03, 0.34), DARK)
    parts.pair((0.60, 0.612), (0.20, 0.28), (0.56, 0.62), HEADLAMP)
    parts.pair((0.0, 0.01), (0.16, 0.26), (0.44, 0.52), TAIL_LAMP)
    return parts
