"""Models of cars, trucks, buses and trailers.

Source of all sizes: rounded means of nuScenes' classes; shapes and spread are ours.
"""

import numpy as np

from perception.synthetic.part_list import Material, ObjectParts, Rgb
from perception.synthetic.primitives import Pattern

GLASS = Material(rgb=(38, 46, 54), reflectivity=0.06)
TYRE = Material(rgb=(24, 24, 26), reflectivity=0.08)
DARK = Material(rgb=(42, 42, 46), reflectivity=0.12)
HEADLAMP = Material(rgb=(255, 246, 214), reflectivity=0.7, glow=0.95)
TAIL_LAMP = Material(rgb=(200, 18, 18), reflectivity=0.85, glow=0.6)
PLATE = Material(rgb=(236, 236, 224), reflectivity=0.97)

_CAR_COLORS: tuple[Rgb, ...] = (
    (226, 228, 230),
    (214, 216, 218),
    (150, 154, 160),
    (92, 96, 102),
    (34, 36, 40),
    (28, 30, 34),
    (150, 24, 28),
    (34, 66, 138),
    (22, 88, 84),
    (176, 146, 92),
    (214, 176, 40),
    (60, 98, 62),
)
_TRUCK_COLORS: tuple[Rgb, ...] = (
    (232, 232, 230),
    (36, 84, 160),
    (184, 34, 32),
    (222, 150, 34),
    (46, 110, 70),
    (70, 74, 80),
)
_BUS_COLORS: tuple[Rgb, ...] = (
    (206, 34, 44),
    (40, 140, 84),
    (228, 176, 36),
    (232, 232, 236),
    (52, 96, 176),
)


def vary(
    rng: np.random.Generator, mean: tuple[float, float, float], spread: float = 0.06
) -> tuple[float, float, float]:
    """Draw a size around a mean: a common factor and a smaller one for each edge."""
    common = 1.0 + spread * float(np.clip(rng.standard_normal(), -2.0, 2.0))
    own = 1.0 + spread / 2 * np.clip(rng.standard_normal(3), -2.0, 2.0)
    return (
        float(mean[0] * common * own[0]),
        float(mean[1] * (1.0 + (common - 1.0) / 2) * own[1]),
        float(mean[2] * common * own[2]),
    )


def paint(rng: np.random.Generator, colors: tuple[Rgb, ...]) -> Material:
    """Draw a lacquer: one of the colours, slightly off."""
    rgb = np.array(colors[int(rng.integers(len(colors)))]) + rng.integers(-14, 15, 3)
    red, green, blue = (int(value) for value in np.clip(rgb, 0, 255))
    return Material(
        rgb=(red, green, blue), reflectivity=float(0.12 + 0.4 * (red + green + blue) / 765)
    )


def car(rng: np.random.Generator, semantic: int, _moving: bool) -> ObjectParts:
    """Saloon, hatchback, off-roader or van: bonnet and slanted windscreen in front."""
    mean, belt, rear, front, slope = (
        ((4.75, 1.90, 1.50), 0.58, 0.17, 0.70, 0.13),
        ((4.25, 1.86, 1.55), 0.56, 0.02, 0.72, 0.14),
        ((4.75, 2.02, 1.80), 0.56, 0.02, 0.70, 0.10),
        ((5.00, 2.04, 2.05), 0.50, 0.01, 0.86, 0.12),
    )[int(rng.choice(4, p=(0.36, 0.24, 0.26, 0.14)))]
    parts = ObjectParts(vary(rng, mean, 0.04), semantic)
    body = paint(rng, _CAR_COLORS)
    roof_front = front - slope
    parts.box((0.01, 0.985), (0.012, 0.988), (0.14, belt), body)
    parts.box((rear + 0.03, roof_front), (0.07, 0.93), (belt, 0.965), GLASS)
    parts.beam((roof_front - 0.02, front), (0.075, 0.925), (belt, 0.97), 0.06, GLASS, rises=False)
    parts.box((rear, roof_front + 0.01), (0.085, 0.915), (0.955, 1.0), body)
    parts.beam((rear, rear + 0.06), (0.08, 0.92), (belt, 0.96), 0.07, body, rises=True)
    for axle in (0.19, 0.80):
        parts.box((axle - 0.07, axle + 0.07), (0.0, 1.0), (0.0, 0.38), TYRE)
    parts.pair((0.975, 1.0), (0.05, 0.24), (0.34, 0.46), HEADLAMP)
    parts.pair((0.0, 0.02), (0.04, 0.18), (0.38, 0.52), TAIL_LAMP)
    parts.box((0.98, 0.995), (0.27, 0.73), (0.20, 0.42), DARK)
    parts.box((0.002, 0.012), (0.37, 0.63), (0.28, 0.36), PLATE)
    return parts


def truck(rng: np.random.Generator, semantic: int, _moving: bool) -> ObjectParts:
    """A cab in front, and a box, an open bed, or a low bed with a load behind."""
    kind = int(rng.choice(3, p=(0.6, 0.2, 0.2)))
    mean = ((7.2, 2.5, 3.0), (6.0, 2.4, 2.4), (7.4, 2.5, 2.6))[kind]
    parts = ObjectParts(vary(rng, mean, 0.09), semantic)
    cab_color, load_color = paint(rng, _TRUCK_COLORS), paint(rng, _TRUCK_COLORS)
    cab_top = 0.84 if kind == 0 else 1.0
    parts.box((0.02, 0.97), (0.12, 0.88), (0.16, 0.30), DARK)
    parts.box((0.75, 0.985), (0.03, 0.97), (0.17, cab_top), cab_color)
    parts.box((0.84, 0.992), (0.02, 0.98), (0.50 * cab_top, 0.86 * cab_top), GLASS)
    if kind == 0:
        ribs = _ribbed(load_color)
        parts.box((0.006, 0.72), (0.0, 1.0), (0.30, 1.0), ribs)
        parts.box((0.001, 0.008), (0.05, 0.95), (0.33, 0.96), _ribbed(load_color, 1.2))
    elif kind == 1:
        parts.box((0.006, 0.73), (0.0, 1.0), (0.30, 0.40), load_color)
        parts.pair((0.006, 0.73), (0.0, 0.04), (0.40, 0.62), load_color)
        parts.box((0.006, 0.03), (0.04, 0.96), (0.40, 0.62), load_color)
    else:
        parts.box((0.006, 0.73), (0.0, 1.0), (0.28, 0.36), DARK)
        load = Material(rgb=(150, 116, 74), second_rgb=(110, 84, 52), pattern=Pattern.RIBS)
        parts.box((0.05, 0.60), (0.10, 0.90), (0.36, float(rng.uniform(0.6, 0.9))), load)
        parts.box((0.70, 0.73), (0.04, 0.96), (0.36, 0.92), load_color)
    for axle in (0.20, 0.86):
        parts.box((axle - 0.07, axle + 0.07), (0.015, 0.985), (0.0, 0.32), TYRE)
    parts.pair((0.98, 1.0), (0.06, 0.20), (0.20, 0.28), HEADLAMP)
    parts.pair((0.0, 0.012), (0.04, 0.16), (0.18, 0.27), TAIL_LAMP)
    return parts


def rigid_bus(rng: np.random.Generator, semantic: int, _moving: bool) -> ObjectParts:
    """One long body with a band of windows, a high windscreen and a lit destination sign."""
    parts = ObjectParts(vary(rng, (11.3, 2.9, 3.4), 0.05), semantic)
    body = paint(rng, _BUS_COLORS)
    parts.box((0.004, 0.99), (0.008, 0.992), (0.10, 1.0), body)
    parts.box((0.02, 0.90), (0.0, 1.0), (0.48, 0.80), GLASS)
    _bus_ends(parts, rng)
    for axle in (0.24, 0.78):
        parts.box((axle - 0.05, axle + 0.05), (0.002, 0.998), (0.0, 0.28), TYRE)
    return parts


def bendy_bus(rng: np.random.Generator, semantic: int, _moving: bool) -> ObjectParts:
    """Two bodies joined by dark bellows."""
    parts = ObjectParts(vary(rng, (16.5, 2.9, 3.4), 0.04), semantic)
    body = paint(rng, _BUS_COLORS)
    bellows = Material(rgb=(36, 36, 38), second_rgb=(70, 70, 72), pattern=Pattern.RIBS, scale=0.3)
    for x in ((0.004, 0.40), (0.48, 0.99)):
        parts.box(x, (0.008, 0.992), (0.10, 1.0), body)
        parts.box((x[0] + 0.02, x[1] - 0.05), (0.0, 1.0), (0.48, 0.80), GLASS)
    parts.box((0.40, 0.48), (0.06, 0.94), (0.14, 0.96), bellows)
    _bus_ends(parts, rng)
    for axle in (0.16, 0.62, 0.86):
        parts.box((axle - 0.035, axle + 0.035), (0.002, 0.998), (0.0, 0.28), TYRE)
    return parts


def trailer(rng: np.random.Generator, semantic: int, _moving: bool) -> ObjectParts:
    """A long box on rear axles with a thin drawbar in front: no cab."""
    parts = ObjectParts(vary(rng, (12.0, 2.8, 3.8), 0.07), semantic)
    color = paint(rng, ((230, 230, 228), (206, 208, 212), (190, 60, 40), (60, 90, 150)))
    stripe = paint(rng, ((30, 70, 170), (24, 120, 70), (190, 30, 30)))
    parts.box((0.004, 0.88), (0.006, 0.994), (0.30, 1.0), _ribbed(color, 0.8))
    parts.box((0.03, 0.84), (0.0, 1.0), (0.56, 0.66), stripe)
    parts.box((0.80, 1.0), (0.42, 0.58), (0.24, 0.31), DARK)
    parts.box((0.97, 0.985), (0.46, 0.54), (0.0, 0.25), DARK)
    parts.pair((0.76, 0.78), (0.16, 0.22), (0.0, 0.30), DARK)
    parts.box((0.02, 0.80), (0.30, 0.70), (0.22, 0.30), DARK)
    for axle in (0.09, 0.19, 0.29):
        parts.box((axle - 0.04, axle + 0.04), (0.03, 0.97), (0.0, 0.24), TYRE)
    parts.box((0.0, 0.006), (0.06, 0.94), (0.14, 0.20), _warning(0.4))
    parts.pair((0.0, 0.006), (0.03, 0.14), (0.31, 0.37), TAIL_LAMP)
    return parts


def _bus_ends(parts: ObjectParts, rng: np.random.Generator) -> None:
    """Windscreen, sign and lamps in front; small window, lamps and engine cover at the rear."""
    sign_rgb = ((255, 176, 40), (255, 240, 190), (120, 255, 120))[int(rng.integers(3))]
    parts.box((0.985, 0.997), (0.04, 0.96), (0.36, 0.84), GLASS)
    parts.box((0.985, 0.998), (0.18, 0.82), (0.87, 0.96), Material(rgb=sign_rgb, glow=0.8))
    parts.pair((0.985, 1.0), (0.05, 0.18), (0.15, 0.22), HEADLAMP)
    parts.pair((0.0, 0.008), (0.03, 0.12), (0.20, 0.36), TAIL_LAMP)
    parts.box((0.001, 0.006), (0.20, 0.80), (0.16, 0.42), DARK)


def _ribbed(color: Material, scale: float = 0.6) -> Material:
    red, green, blue = color.rgb
    return Material(
        rgb=color.rgb,
        second_rgb=(red * 3 // 4, green * 3 // 4, blue * 3 // 4),
        pattern=Pattern.RIBS,
        scale=scale,
        reflectivity=color.reflectivity,
    )


def _warning(scale: float) -> Material:
    return Material(
        rgb=(206, 30, 30),
        second_rgb=(240, 240, 236),
        pattern=Pattern.DIAGONAL,
        scale=scale,
        reflectivity=0.9,
    )
