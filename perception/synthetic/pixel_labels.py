"""Labels per pixel, from the same cast as the picture; and how they are stored."""

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float32, Float64, Int32, UInt8, UInt16

from perception.errors import InputError
from perception.geometry import rigid
from perception.synthetic.casts import GROUND, CameraCast, CameraView
from perception.synthetic.ground import MAP_LAYERS, Ground, Surface
from perception.synthetic.primitives import SEMANTIC_CLASSES, Primitives

DEPTH_STEPS_PER_METER = 100
_MAX_STORED = 2**16 - 1
_DRIVABLE_BITS = sum(1 << MAP_LAYERS.index(layer) for layer in ("drivable_area", "carpark_area"))
_CLASS_OF_SURFACE = {
    Surface.GRASS: "terrain",
    Surface.ASPHALT: "road",
    Surface.PAVEMENT: "walkway",
    Surface.CONCRETE: "road",
    Surface.WHITE_PAINT: "road",
    Surface.YELLOW_PAINT: "road",
    Surface.KERB: "walkway",
    Surface.SOIL: "terrain",
}


@dataclass(frozen=True, kw_only=True)
class PixelLabels:
    """What each pixel's centre shows, and the objects as boxes in the image."""

    depth: Float32[np.ndarray, "h w"]
    """Along the optical axis [m]; infinite in the sky."""
    instance: UInt16[np.ndarray, "h w"]
    """1 + index of the annotated object; 0 where there is none."""
    semantic: UInt8[np.ndarray, "h w"]
    """Index into `SEMANTIC_CLASSES`."""
    drivable_mask: Bool[np.ndarray, "h w"]
    """Ground where cars may drive: drivable area or car park."""
    box_objects: Int32[np.ndarray, " k"]
    """Index of the object of each box, ascending."""
    boxes_px: Int32[np.ndarray, "k 4"]
    """x0, y0, x1, y1 around an object's visible pixels; x1 and y1 are the first beyond them."""
    occluded_share: Float32[np.ndarray, " k"]
    """Share of an object's pixels in the image that other things hide, 0..1."""


def label_pixels(
    cast: CameraCast, primitives: Primitives, ground: Ground, view: CameraView
) -> PixelLabels:
    """Label a cast.

    Args:
        cast: What each pixel sees; of `primitives`, through `view`.
        primitives: All boxes.
        ground: The map's ground.
        view: The camera.

    Raises:
        ValueError: There are more objects than fit 16 bits.
    """
    if len(cast.visible_px) > _MAX_STORED:
        raise ValueError(
            f"{len(cast.visible_px)} objects, at most {_MAX_STORED} fit the image of instances"
        )
    # The last two entries serve GROUND and NOTHING, which are the indices -1 and -2.
    sky = SEMANTIC_CLASSES.index("sky")
    semantic = np.append(primitives.semantic, np.array([sky, sky], np.uint8))[cast.primitive]
    owner = np.concatenate([np.maximum(primitives.object_index, -1) + 1, [0, 0]])
    instance = owner.astype(np.uint16)[cast.primitive]
    drivable_mask = np.zeros(cast.primitive.shape, bool)
    is_ground = cast.primitive == GROUND
    x_global, y_global = _ground_points(is_ground, view)
    class_of_surface = np.array(
        [SEMANTIC_CLASSES.index(_CLASS_OF_SURFACE[surface]) for surface in Surface], np.uint8
    )
    semantic[is_ground] = class_of_surface[ground.surface_at(x_global, y_global)]
    drivable_mask[is_ground] = _layers_at(ground, x_global, y_global) & _DRIVABLE_BITS != 0
    box_objects, boxes_px = _boxes(instance)
    visible = cast.visible_px[box_objects]
    unoccluded = np.maximum(cast.unoccluded_px[box_objects], np.maximum(visible, 1))
    return PixelLabels(
        depth=cast.depth,
        instance=instance,
        semantic=semantic,
        drivable_mask=drivable_mask,
        box_objects=box_objects,
        boxes_px=boxes_px,
        occluded_share=(1 - visible / unoccluded).astype(np.float32),
    )


def encode_labels(labels: PixelLabels) -> dict[str, bytes]:
    """Store the images as PNG, by the ending of the file's name.

    Depth is in steps of 1 cm, 16 bits, 0 where there is nothing or it is beyond 655.35 m; instance
    has 16 bits; semantic and drivable (0 or 255) have 8.
    """
    steps = np.round(np.where(np.isfinite(labels.depth), labels.depth, 0) * DEPTH_STEPS_PER_METER)
    images = {
        "depth.png": np.where(steps <= _MAX_STORED, steps, 0).astype(np.uint16),
        "instance.png": labels.instance,
        "semantic.png": labels.semantic,
        "drivable.png": labels.drivable_mask.astype(np.uint8) * np.uint8(255),
    }
    return {ending: _png(image) for ending, image in images.items()}


def decode_depth(png: bytes) -> Float32[np.ndarray, "h w"]:
    """Depth [m] of a stored image; infinite where there is none."""
    steps = decode_ids(png).astype(np.float32)
    return np.where(steps > 0, steps / np.float32(DEPTH_STEPS_PER_METER), np.float32(np.inf))


def decode_ids(png: bytes) -> UInt8[np.ndarray, "h w"] | UInt16[np.ndarray, "h w"]:
    """Pixels of a stored image as they are.

    Raises:
        InputError: It is no image of one channel with 8 or 16 bits.
    """
    data = np.frombuffer(png, np.uint8)
    image = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if len(data) else None
    if image is None or image.ndim != 2 or image.dtype not in (np.uint8, np.uint16):
        got = "no image" if image is None else f"shape {image.shape} of {image.dtype}"
        raise InputError(
            f"A stored label is {got}, expected a PNG of one channel with 8 or 16 bits: make the "
            "log again."
        )
    return image


def _ground_points(
    is_ground: Bool[np.ndarray, "h w"], view: CameraView
) -> tuple[Float64[np.ndarray, " n"], Float64[np.ndarray, " n"]]:
    """Global x and y [m] of the ground at some pixels' centres."""
    v, u = np.nonzero(is_ground)
    A_global_pixel = np.einsum(
        "ij,jk->ik", view.T_global_cam[:3, :3], rigid.inverse_3x3(view.K_cam)
    )
    x, y, z = (row[0] * (u + 0.5) + row[1] * (v + 0.5) + row[2] for row in A_global_pixel)
    depth = -view.T_global_cam[2, 3] / z
    return view.T_global_cam[0, 3] + depth * x, view.T_global_cam[1, 3] + depth * y


def _layers_at(
    ground: Ground, x_global: Float64[np.ndarray, " n"], y_global: Float64[np.ndarray, " n"]
) -> UInt8[np.ndarray, " n"]:
    """`Ground.layers` under points; none outside the map."""
    column = np.floor(x_global / ground.cell).astype(np.int64)
    row = np.floor(y_global / ground.cell).astype(np.int64)
    ny, nx = ground.layers.shape
    inside = (column >= 0) & (column < nx) & (row >= 0) & (row < ny)
    found = ground.layers[np.where(inside, row, 0), np.where(inside, column, 0)]
    return np.where(inside, found, np.uint8(0))


def _boxes(
    instance: UInt16[np.ndarray, "h w"],
) -> tuple[Int32[np.ndarray, " k"], Int32[np.ndarray, "k 4"]]:
    """Objects that are seen, and the boxes around their pixels."""
    v, u = np.nonzero(instance)
    ids, slot = np.unique(instance[v, u], return_inverse=True)
    low = np.full((len(ids), 2), np.iinfo(np.int32).max, np.int32)
    high = np.full((len(ids), 2), -1, np.int32)
    for column, place in enumerate((u, v)):
        np.minimum.at(low[:, column], slot, place)
        np.maximum.at(high[:, column], slot, place)
    return ids.astype(np.int32) - 1, np.concatenate([low, high + 1], axis=1)


def _png(image: np.ndarray) -> bytes:
    done, data = cv2.imencode(".png", image)
    if not done:
        raise ValueError(f"an image of shape {image.shape} and {image.dtype} is no PNG")
    return data.tobytes()
