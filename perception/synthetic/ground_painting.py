"""The ground in a picture: texture, light, shadows, haze and wet mirrors together."""

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

from perception.synthetic.casts import GROUND, CameraCast
from perception.synthetic.conditions import Conditions
from perception.synthetic.ground_view import GroundView, add_detail, view_ground
from perception.synthetic.lamp_light import LampLight
from perception.synthetic.level_frame import LevelFrame
from perception.synthetic.primitives import Primitives
from perception.synthetic.shading import SKY_SHARE_SIDE, SKY_SHARE_TOP, SUN_SHARE
from perception.synthetic.shadows import contact_shadows, sun_shadows

_CONTACT_STRENGTH = 0.62
"""Light of the sky that is missing below objects. Source: ours, as the rest here."""
_WET_DARKENING = 0.28
_MIRROR_STRENGTH = 0.65
_BLOCK_ROWS = 32
"""Rows that are worked on at once: few enough for the processor's cache."""


def paint_ground(
    image: UInt8[np.ndarray, "h w 4"],
    cast: CameraCast,
    primitives: Primitives,
    ground_view: GroundView,
    frame: LevelFrame,
    conditions: Conditions,
    lamps: LampLight | None,
) -> None:
    """Colour every pixel that sees the ground.

    Args:
        image: The picture so far, which wet ground mirrors; changed in place.
        cast: What each pixel sees; of `primitives`.
        primitives: What may cast shadows.
        ground_view: The map's ground.
        frame: The camera's.
        conditions: Light and weather.
        lamps: Lamps by night.
    """
    is_ground = cast.primitive == GROUND
    _, top, _, height = cv2.boundingRect(is_ground.view(np.uint8))
    if not height:
        return
    rows = range(top, top + height)
    texture = view_ground(ground_view, frame, is_ground)
    light = np.zeros(is_ground.shape, np.float32)
    light[top : top + height] = _light(
        primitives, frame, conditions, lamps, rows, is_ground.shape[1]
    )
    add_detail(light, frame, is_ground)
    light *= np.float32(1 - _WET_DARKENING * conditions.wetness)
    mirrored = _mirrored(image, rows) if conditions.wetness > 0 else None
    for begin in range(top, top + height, _BLOCK_ROWS):
        part = slice(begin, min(begin + _BLOCK_ROWS, top + height))
        clear = cv2.exp(np.minimum(cast.depth[part], 1e4) * np.float32(-1 / conditions.visibility))
        gain = cv2.cvtColor(light[part] * clear, cv2.COLOR_GRAY2RGB)
        ground = cv2.multiply(texture[part], gain, dtype=cv2.CV_32F)
        np.subtract(1, clear, out=clear)
        haze = cv2.merge([clear * np.float32(value) for value in conditions.sky_horizon_rgb])
        painted = cv2.cvtColor(cv2.convertScaleAbs(cv2.add(ground, haze)), cv2.COLOR_RGB2RGBA)
        if mirrored is not None:
            weight = _mirror_share(frame, part, is_ground.shape[1], conditions.wetness)
            above = mirrored[part.start - top : part.stop - top]
            painted = cv2.blendLinear(painted, above, 1 - weight, weight)
        cv2.copyTo(painted, is_ground[part].view(np.uint8), image[part])


def _light(
    primitives: Primitives,
    frame: LevelFrame,
    conditions: Conditions,
    lamps: LampLight | None,
    rows: range,
    width: int,
) -> Float32[np.ndarray, "rows w"]:
    """Light on dry ground, 1 in full daylight."""
    sky = np.float32((SKY_SHARE_SIDE + SKY_SHARE_TOP) * conditions.skylight)
    contact = contact_shadows(primitives, frame, rows, width)
    light = sky - contact * (sky * np.float32(_CONTACT_STRENGTH / 255))
    if conditions.sunlight > 0:
        sun = conditions.sun_direction
        shadow = sun_shadows(primitives, frame, sun, rows, width)
        strength = np.float32(conditions.sunlight * SUN_SHARE * sun[2] / 255)
        light += (255 - np.maximum(shadow, contact)) * strength
    if lamps is not None:
        light += lamps.on_ground(frame, rows, width)
    return light


def _mirrored(image: UInt8[np.ndarray, "h w 4"], rows: range) -> UInt8[np.ndarray, "rows w 4"]:
    """What stands above the ground's rows, upside down and blurred.

    Far things are mirrored at the horizon; that near ones are displaced is hidden by the blur.
    """
    width = image.shape[1]
    above = image[: rows.start][::-1] if rows.start else image[:1]
    size = (width // 4 + 1, len(above) // 8 + 1)
    small = cv2.resize(above, size, interpolation=cv2.INTER_AREA)
    mirrored = cv2.resize(small, (width, len(above)), interpolation=cv2.INTER_LINEAR)
    missing = max(len(rows) - len(mirrored), 0)
    return cv2.copyMakeBorder(mirrored, 0, missing, 0, 0, cv2.BORDER_REPLICATE)[: len(rows)]


def _mirror_share(
    frame: LevelFrame, rows: slice, width: int, wetness: float
) -> Float32[np.ndarray, "rows w"]:
    """How much wet ground mirrors.

    Source: Schlick's approximation of Fresnel's law, 1994, for water: 2 % straight down.
    """
    rays = frame.rays(np.arange(rows.start, rows.stop) + 0.5, width / 2)
    below = np.maximum(-rays[:, 2] / np.linalg.norm(rays, axis=1), 0)
    share = wetness * _MIRROR_STRENGTH * (0.02 + 0.98 * (1 - below) ** 5)
    return np.repeat(share.astype(np.float32)[:, None], width, axis=1)
