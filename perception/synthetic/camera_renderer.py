"""Pictures of the world: what the rays met, turned into the colours of a camera's image."""

import cv2
import numpy as np
from jaxtyping import Bool, Float32, Float64, UInt8

from perception.synthetic.camera_film import develop
from perception.synthetic.casts import NOTHING, CameraCast, CameraView
from perception.synthetic.conditions import Conditions
from perception.synthetic.ground_painting import paint_ground
from perception.synthetic.ground_view import GroundView
from perception.synthetic.lamp_light import lamp_light
from perception.synthetic.level_frame import level_frame
from perception.synthetic.primitives import Primitives
from perception.synthetic.shading import Shaded, shade_primitives
from perception.synthetic.sky import paint_sky

_HALO_LIGHT = (0.9, 1.0)
"""Light of the narrow and the wide halo around a lamp by night. Source: ours, by eye."""


def render_image(
    cast: CameraCast,
    primitives: Primitives,
    ground_view: GroundView,
    view: CameraView,
    conditions: Conditions,
    rng: np.random.Generator,
    T_global_ego: Float64[np.ndarray, "4 4"] | None = None,
) -> UInt8[np.ndarray, "h w 3"]:
    """Make the RGB picture of a cast.

    Args:
        cast: What each pixel sees; of `primitives`, through `view`.
        primitives: Boxes in view, and those around that cast shadows into it.
        ground_view: The map's ground.
        view: The camera, above the ground.
        conditions: Light and weather.
        rng: For the sensor's noise and exposure.
        T_global_ego: Pose of the car at that time, for its headlights by night; without it they
            are off.
    """
    frame = level_frame(view)
    lamps = None
    if conditions.headlights > 0:
        lamps = lamp_light(primitives, frame, conditions.headlights, T_global_ego)
    # Four channels, so that a pixel is one 32-bit word.
    image = np.zeros((view.height_px, view.width_px, 4), np.uint8)
    sky = _rectangle(cast.primitive == NOTHING)
    if sky is not None:
        image[sky] = paint_sky(frame, _as_range(sky[0]), _as_range(sky[1]), conditions)
    glowing = []
    for shaded in shade_primitives(cast, primitives, frame, conditions, lamps):
        _place(image, shaded)
        if lamps is not None:
            glowing.append(shaded.pixel[shaded.glow > 0])
    paint_ground(image, cast, primitives, ground_view, frame, conditions, lamps)
    _soften_edges(image, cast.primitive)
    if glowing:
        _add_halos(image, np.concatenate(glowing))
    return develop(image, conditions, rng)


def _rectangle(mask: Bool[np.ndarray, "h w"]) -> tuple[slice, slice] | None:
    """Rows and columns around the true pixels."""
    x, y, width, height = cv2.boundingRect(mask.view(np.uint8))
    return (slice(y, y + height), slice(x, x + width)) if width else None


def _as_range(part: slice) -> range:
    return range(part.start, part.stop)


def _place(image: UInt8[np.ndarray, "h w 4"], shaded: Shaded) -> None:
    """Put pixels into the image."""
    red, green, blue = np.maximum(shaded.rgb, 0, out=shaded.rgb)
    rgba = cv2.convertScaleAbs(cv2.merge([red, green, blue, blue]))
    image.view(np.uint32).ravel()[shaded.pixel] = rgba.view(np.uint32).ravel()


def _soften_edges(image: UInt8[np.ndarray, "h w 4"], primitive: np.ndarray) -> None:
    """Blend pixels at outlines with their neighbours, in place: cheap smoothing of steps."""
    height, width = primitive.shape
    if height < 3 or width < 3:
        return
    is_edge = np.zeros((height, width), bool)
    across = primitive[:, 1:] != primitive[:, :-1]
    is_edge[:, 1:] = across
    is_edge[:, :-1] |= across
    down = primitive[1:] != primitive[:-1]
    is_edge[1:] |= down
    is_edge[:-1] |= down
    is_edge[[0, -1]] = False
    is_edge[:, [0, -1]] = False
    edge = np.flatnonzero(is_edge)
    flat = image.view(np.uint32).ravel()
    blended = flat[edge].view(np.uint8).astype(np.uint16) * 2
    for step in (-1, 1, -width, width):
        blended += flat[edge + step].view(np.uint8)
    flat[edge] = (blended // np.uint16(6)).astype(np.uint8).view(np.uint32)


def _add_halos(image: UInt8[np.ndarray, "h w 4"], pixel: np.ndarray) -> None:
    """Let lamps shine over their outlines, in place."""
    if not len(pixel):
        return
    height, width = image.shape[:2]
    light = np.zeros_like(image)
    light.view(np.uint32).ravel()[pixel] = image.view(np.uint32).ravel()[pixel]
    size = (width // 4 + 1, height // 4 + 1)
    small: Float32[np.ndarray, "y x 4"] = cv2.resize(
        light, size, interpolation=cv2.INTER_AREA
    ).astype(np.float32)
    sigma = width / 4 / 90
    narrow, wide = (cv2.GaussianBlur(small, (0, 0), s) for s in (sigma, 3.5 * sigma))
    halo = cv2.convertScaleAbs(_HALO_LIGHT[0] * narrow + _HALO_LIGHT[1] * wide)
    cv2.add(image, cv2.resize(halo, (width, height), interpolation=cv2.INTER_LINEAR), image)
