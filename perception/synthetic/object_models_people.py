"""Models of pedestrians, and of bicycles and motorcycles with or without a rider.

Source of all sizes: rounded means of nuScenes' classes; shapes and spread are ours.
"""

from dataclasses import dataclass

import numpy as np

from perception.synthetic.object_models_vehicles import (
    DARK,
    HEADLAMP,
    PLATE,
    TAIL_LAMP,
    TYRE,
    paint,
    vary,
)
from perception.synthetic.part_list import Material, ObjectParts, Rgb

_SKIN: tuple[Rgb, ...] = ((232, 190, 160), (206, 154, 116), (150, 100, 70), (98, 64, 46))
_HAIR: tuple[Rgb, ...] = ((34, 26, 22), (70, 46, 28), (150, 116, 66), (150, 150, 150))
_SHIRTS: tuple[Rgb, ...] = (
    (190, 40, 44),
    (40, 84, 168),
    (44, 128, 84),
    (222, 222, 220),
    (120, 60, 140),
    (226, 158, 40),
    (70, 70, 76),
    (40, 160, 170),
    (214, 110, 140),
)
_TROUSERS: tuple[Rgb, ...] = (
    (36, 40, 62),
    (30, 30, 32),
    (96, 84, 66),
    (70, 78, 90),
    (140, 128, 104),
)
_HI_VIS = Material(rgb=(206, 240, 36), reflectivity=0.95)
_HI_VIS_ORANGE = Material(rgb=(250, 110, 20), reflectivity=0.95)
_POLICE = Material(rgb=(18, 26, 62), reflectivity=0.25)


@dataclass(frozen=True, kw_only=True)
class _Clothes:
    top: Material
    trousers: Material
    skin: Material
    head_cover: Material
    bag: Material | None


def _draw_clothes(rng: np.random.Generator) -> _Clothes:
    return _Clothes(
        top=paint(rng, _SHIRTS),
        trousers=paint(rng, _TROUSERS),
        skin=paint(rng, _SKIN),
        head_cover=paint(rng, _HAIR),
        bag=paint(rng, _SHIRTS) if rng.random() < 0.5 else None,
    )


def adult(rng: np.random.Generator, semantic: int, moving: bool) -> ObjectParts:
    """A grown-up in any clothes."""
    return _person(rng, semantic, moving, 1.75, _draw_clothes(rng))


def child(rng: np.random.Generator, semantic: int, moving: bool) -> ObjectParts:
    """A small person."""
    return _person(rng, semantic, moving, 1.25, _draw_clothes(rng))


def worker(rng: np.random.Generator, semantic: int, moving: bool) -> ObjectParts:
    """A person in a high-visibility vest with a helmet."""
    clothes = _draw_clothes(rng)
    return _person(
        rng,
        semantic,
        moving,
        1.80,
        _Clothes(
            top=_HI_VIS if rng.random() < 0.6 else _HI_VIS_ORANGE,
            trousers=clothes.trousers,
            skin=clothes.skin,
            head_cover=paint(rng, ((240, 200, 30), (240, 240, 240), (230, 100, 30))),
            bag=None,
        ),
    )


def police_officer(rng: np.random.Generator, semantic: int, moving: bool) -> ObjectParts:
    """A person in dark blue."""
    skin = paint(rng, _SKIN)
    return _person(
        rng,
        semantic,
        moving,
        1.80,
        _Clothes(top=_POLICE, trousers=_POLICE, skin=skin, head_cover=_POLICE, bag=None),
    )


def _person(
    rng: np.random.Generator, semantic: int, moving: bool, height: float, clothes: _Clothes
) -> ObjectParts:
    """Legs, torso, arms, head: strides when moving, holds something in front when standing."""
    scale = height / 1.75
    length = 0.85 if moving else 0.55
    parts = ObjectParts(vary(rng, (length * scale, 0.64 * scale, height), 0.05), semantic)
    low, high = (0.36, 0.64) if moving else (0.22, 0.72)
    middle = (low + high) / 2
    left_leg, right_leg = (0.54, 0.76), (0.24, 0.46)
    if moving:
        parts.beam((0.46, 0.92), left_leg, (0.0, 0.50), 0.15 * scale, clothes.trousers, rises=False)
        parts.beam((0.06, 0.54), right_leg, (0.0, 0.50), 0.15 * scale, clothes.trousers, rises=True)
        parts.box((0.76, 1.0), left_leg, (0.0, 0.06), DARK)
        parts.box((0.0, 0.22), right_leg, (0.0, 0.07), DARK)
        parts.beam((0.10, middle), (0.83, 1.0), (0.44, 0.82), 0.10, clothes.top, rises=True)
        parts.beam((middle, 0.90), (0.0, 0.17), (0.44, 0.82), 0.10, clothes.top, rises=False)
    else:
        for leg in (left_leg, right_leg):
            parts.box((low + 0.05, high - 0.10), leg, (0.04, 0.50), clothes.trousers)
            parts.box((low, high + 0.12), leg, (0.0, 0.05), DARK)
        parts.pair((low + 0.10, high - 0.10), (0.0, 0.17), (0.50, 0.82), clothes.top)
        parts.pair((middle, 0.96), (0.02, 0.16), (0.52, 0.59), clothes.skin)
        parts.box((0.92, 1.0), (0.10, 0.90), (0.50, 0.64), DARK)
    parts.box((low, high), (0.17, 0.83), (0.46, 0.85), clothes.top)
    parts.box((low + 0.04, high + 0.02), (0.34, 0.66), (0.85, 0.97), clothes.skin)
    parts.box((low - 0.02, high - 0.06), (0.32, 0.68), (0.92, 1.0), clothes.head_cover)
    back = 0.0 if not moving else 0.18
    parts.box((back, low), (0.24, 0.76), (0.56, 0.80), clothes.bag or clothes.top)
    return parts


def bicycle(rng: np.random.Generator, semantic: int, moving: bool) -> ObjectParts:
    """Two thin wheels, a frame, a saddle, a handlebar; a rider when moving."""
    parts = ObjectParts(vary(rng, (1.72, 0.60, 1.72 if moving else 1.08), 0.04), semantic)
    length, _, height = parts.size
    frame = paint(rng, _SHIRTS)
    scale = 1.08 / height if moving else 1.0
    radius = 0.34 * length / 1.72
    for x_center in (radius / length, 1.0 - radius / length):
        parts.wheel(x_center, (0.46, 0.54), radius, TYRE)
    parts.beam((0.22, 0.46), (0.44, 0.56), (0.30 * scale, 0.78 * scale), 0.06, frame, rises=False)
    parts.box((0.36, 0.74), (0.44, 0.56), (0.60 * scale, 0.67 * scale), frame)
    parts.beam((0.70, 0.84), (0.45, 0.55), (0.30 * scale, 0.92 * scale), 0.06, frame, rises=False)
    parts.box((0.24, 0.40), (0.36, 0.64), (0.82 * scale, 0.89 * scale), DARK)
    parts.box((0.70, 0.76), (0.0, 1.0), (0.92 * scale, 1.0 * scale), DARK)
    parts.box((0.74, 0.80), (0.42, 0.58), (0.80 * scale, 0.88 * scale), HEADLAMP)
    parts.box((0.10, 0.14), (0.42, 0.58), (0.66 * scale, 0.74 * scale), TAIL_LAMP)
    if moving:
        _rider(parts, rng, seat=0.89 * scale, hands=1.0 * scale)
    return parts


def motorcycle(rng: np.random.Generator, semantic: int, moving: bool) -> ObjectParts:
    """Wide wheels, engine, tank, saddle and a raised tail; a rider when moving."""
    parts = ObjectParts(vary(rng, (2.12, 0.80, 1.66 if moving else 1.18), 0.05), semantic)
    length, _, height = parts.size
    lacquer = paint(
        rng, ((190, 30, 30), (30, 60, 160), (40, 40, 44), (230, 140, 20), (220, 220, 224))
    )
    scale = 1.18 / height if moving else 1.0
    radius = 0.32 * length / 2.12
    for x_center in (radius / length, 1.0 - radius / length):
        parts.wheel(x_center, (0.39, 0.61), radius, TYRE)
    parts.box((0.30, 0.66), (0.28, 0.72), (0.18 * scale, 0.52 * scale), DARK)
    parts.box((0.46, 0.72), (0.30, 0.70), (0.52 * scale, 0.80 * scale), lacquer)
    parts.box((0.06, 0.48), (0.30, 0.70), (0.56 * scale, 0.68 * scale), DARK)
    parts.beam((0.70, 0.88), (0.36, 0.64), (0.26 * scale, 0.90 * scale), 0.10, lacquer, rises=False)
    parts.box((0.66, 0.71), (0.0, 1.0), (0.88 * scale, 1.0 * scale), DARK)
    parts.box((0.78, 0.84), (0.36, 0.64), (0.68 * scale, 0.84 * scale), HEADLAMP)
    parts.box((0.03, 0.06), (0.34, 0.66), (0.58 * scale, 0.68 * scale), TAIL_LAMP)
    if moving:
        _rider(parts, rng, seat=0.68 * scale, hands=0.92 * scale)
    else:
        parts.box((0.01, 0.03), (0.38, 0.62), (0.40, 0.52), PLATE)
    return parts


def _rider(parts: ObjectParts, rng: np.random.Generator, *, seat: float, hands: float) -> None:
    """A person in the saddle whose helmet touches the top of the box.

    Args:
        parts: The cycle.
        rng: Source of the clothes.
        seat: Top of the saddle, a fraction of the height.
        hands: Top of the handlebar, a fraction of the height.
    """
    clothes = _draw_clothes(rng)
    shoulder = 0.86
    parts.pair((0.34, 0.58), (0.24, 0.36), (0.14, seat + 0.02), clothes.trousers)
    parts.beam((0.26, 0.54), (0.20, 0.80), (seat, shoulder), 0.24, clothes.top, rises=True)
    arm_low = min(hands - 0.03, shoulder - 0.12)
    parts.beam((0.44, 0.72), (0.06, 0.94), (arm_low, shoulder), 0.10, clothes.top, rises=False)
    parts.box((0.44, 0.57), (0.34, 0.66), (shoulder - 0.02, 1.0), clothes.head_cover)
