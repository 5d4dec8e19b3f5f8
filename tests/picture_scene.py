"""A flat place, a few boxes and a camera, all by hand, for tests of pictures."""

from dataclasses import replace

import numpy as np

from perception.synthetic.casts import CameraView
from perception.synthetic.conditions import Conditions, conditions_by_name
from perception.synthetic.ground import MAP_LAYERS, Ground, Surface
from perception.synthetic.part_list import Material, PartList
from perception.synthetic.primitives import SEMANTIC_CLASSES, Primitives

ASPHALT_RGB = (90, 90, 90)
WHITE_RGB = (230, 230, 230)


def flat_ground() -> Ground:
    """100 m of asphalt: a white bar at x = 60 .. 62 m, a line at y = 50.5 .. 50.7 m, grass from
    y = 60 m on."""
    surface = np.full((1000, 1000), Surface.ASPHALT, np.uint8)
    surface[:, 600:620] = Surface.WHITE_PAINT
    surface[505:507] = Surface.WHITE_PAINT
    surface[600:] = Surface.GRASS
    texture = np.empty((1000, 1000, 3), np.uint8)
    texture[:] = ASPHALT_RGB
    texture[surface == Surface.WHITE_PAINT] = WHITE_RGB
    texture[surface == Surface.GRASS] = (80, 110, 50)
    drivable = np.uint8(1 << MAP_LAYERS.index("drivable_area"))
    layers = np.where(surface == Surface.GRASS, np.uint8(0), drivable)
    return Ground(cell=0.1, surface=surface, texture_rgb=texture, layers=layers)


def looking_along_x(width_px: int = 400, height_px: int = 200) -> CameraView:
    """Camera at (50, 50), 1.5 m high, looks along +x; 400 px focal length at 400x200.

    A point d ahead, s to the right on the ground is at u = 200 + 400 s / d, v = 100 + 600 / d.
    """
    T_global_cam = np.eye(4)
    T_global_cam[:3, :3] = [[0, 0, 1], [-1, 0, 0], [0, -1, 0]]
    T_global_cam[:3, 3] = (50, 50, 1.5)
    K_cam = np.array([[width_px, 0, width_px / 2], [0, width_px, height_px / 2], [0, 0, 1.0]])
    return CameraView(
        K_cam=K_cam, T_global_cam=T_global_cam, width_px=width_px, height_px=height_px
    )


def plain_day(**changes) -> Conditions:
    """No sun, no haze, no noise to speak of, no tint."""
    calm = {
        "sunlight": 0.0,
        "skylight": 1.5,
        "tint_rgb": (1.0, 1.0, 1.0),
        "contrast": 1.0,
        "noise": 0.0,
        "visibility": 1e6,
    }
    return replace(conditions_by_name("day", np.random.default_rng(0)), **(calm | changes))


def boxes(*parts: tuple, glow: float = 0.0, rgb: tuple[int, int, int] = (150, 150, 150)):
    """Upright boxes of (center, size), each an object of its own, all cars."""
    table = PartList()
    for center, size in parts:
        material = Material(rgb=rgb, glow=glow)
        table.add(center, size, material, semantic=SEMANTIC_CLASSES.index("car"))
    return replace(table.table(), object_index=np.arange(len(parts), dtype=np.int32))


def nothing() -> Primitives:
    """A table without rows."""
    return PartList().table()
