"""Colours of boxes: light on their faces, patterns, grain; pixels grouped by box."""

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float32, Float64, Int64, UInt8

from perception.synthetic.casts import CameraCast
from perception.synthetic.conditions import Conditions
from perception.synthetic.face_patterns import (
    FacePixels,
    second_color_share,
    surface_grain,
    window_lottery,
)
from perception.synthetic.lamp_light import LampLight
from perception.synthetic.level_frame import LevelFrame
from perception.synthetic.primitives import SEMANTIC_CLASSES, Pattern, Primitives
from perception.synthetic.shadows import shaded_objects

SKY_SHARE_SIDE = 0.42
"""Light of the sky (skylight 1) on an upright face, in full daylight. Source: ours, by eye."""
SKY_SHARE_TOP = 0.15
"""... and what is added to it on a face that looks up, taken off on one that looks down."""
SUN_SHARE = 0.62
"""Light of the sun (sunlight 1) on a face that looks at it."""
_GLOSS = 0.10
"""Share of the sky's light that a face that looks up mirrors."""
_GRAIN_BY_CLASS = np.array(
    [
        {"building": 0.05, "vegetation": 0.16, "pole": 0.05}.get(name, 0.022)
        for name in SEMANTIC_CLASSES
    ],
    np.float32,
)
_LOW_SHADE = 0.34
"""Light that is missing at the ground's level, and ..."""
_LOW_SHADE_HEIGHT = 0.9
"""... the height at which none is [m]."""
_LIT_WINDOWS = 60
"""Of 256 windows by night."""
_LIT_WINDOW_RGB = np.array((255, 206, 128), np.float32)


_CHUNK = 1 << 15
"""Pixels that are worked on at once: few enough for the processor's cache."""


@dataclass(frozen=True, kw_only=True)
class Shaded:
    """Colours of pixels that see a box."""

    pixel: Int64[np.ndarray, " n"]
    """Index into the flattened image."""
    rgb: Float32[np.ndarray, "3 n"]
    """0..255 and beyond; a row per colour, which is much faster to work on."""
    glow: Float32[np.ndarray, " n"]
    """Light of its own, 0..1."""


@dataclass(frozen=True, kw_only=True)
class _Groups:
    """The boxes in view, one group of pixels each, sorted by pattern."""

    rows: Int64[np.ndarray, " k"]
    """Row of the table of primitives of each group."""
    pattern: UInt8[np.ndarray, " k"]
    A_unit_pixel: Float64[np.ndarray, "k 3 4"]
    """Takes (u, v, 1) * depth, 1 to the box's own axes with its faces at -1 and 1."""
    face_light: Float32[np.ndarray, "k 3"]
    """Light on the face of each axis that looks at the camera, 1 in full daylight."""
    half_along: Float32[np.ndarray, "k 3"]
    """Metres per unit along the face of each axis, and ..."""
    half_up: Float32[np.ndarray, "k 3"]
    """... up it."""
    salt: Int64[np.ndarray, " k"]
    """A number of each box."""
    grain: Float32[np.ndarray, " k"]
    """Standard deviation of the brightness."""


@dataclass(frozen=True, kw_only=True)
class _Chunk:
    """A run of the pixels that are sorted by group."""

    pixel: Int64[np.ndarray, " n"]
    depth: Float32[np.ndarray, " n"]
    group: slice
    """Groups that it belongs to."""
    counts: Int64[np.ndarray, " g"]
    """Its pixels in each of them."""

    def spread(self, of_groups: np.ndarray) -> np.ndarray:
        """Give each pixel the value of its group."""
        return np.repeat(of_groups[self.group], self.counts)


def shade_primitives(
    cast: CameraCast,
    primitives: Primitives,
    frame: LevelFrame,
    conditions: Conditions,
    lamps: LampLight | None,
) -> Iterator[Shaded]:
    """Colour every pixel that sees a box, as it is seen through haze; some pixels at a time."""
    # Sixteen bits sort in linear time; GROUND and NOTHING index the table from its end.
    row_of_rank = np.argsort(primitives.pattern, kind="stable")
    rank_of_row = np.full(len(primitives) + 2, len(primitives), np.uint16)
    rank_of_row[row_of_rank] = np.arange(len(primitives))
    rank = rank_of_row[cast.primitive.ravel()]
    counts = np.bincount(rank, minlength=len(primitives))[: len(primitives)]
    pixel = np.argsort(rank, kind="stable")[: counts.sum()]
    seen = np.flatnonzero(counts)
    groups = _groups(primitives, row_of_rank[seen], frame, conditions)
    ends = np.cumsum(counts[seen])
    for begin in range(0, len(pixel), _CHUNK):
        end = min(begin + _CHUNK, len(pixel))
        first, last = np.searchsorted(ends, [begin, end - 1], side="right").tolist()
        inside = np.clip(ends[first : last + 1], begin, end)
        chunk = _Chunk(
            pixel=pixel[begin:end],
            depth=cast.depth.ravel()[pixel[begin:end]],
            group=slice(first, last + 1),
            counts=np.diff(inside, prepend=begin),
        )
        yield _shade(chunk, groups, primitives, frame, conditions, lamps, cast.depth.shape[1])


def _shade(
    chunk: _Chunk,
    groups: _Groups,
    primitives: Primitives,
    frame: LevelFrame,
    conditions: Conditions,
    lamps: LampLight | None,
    width: int,
) -> Shaded:
    row = chunk.pixel.astype(np.int32) // np.int32(width)
    u_px = (chunk.pixel - row * np.int32(width)).astype(np.float32) + np.float32(0.5)
    v_px = row.astype(np.float32) + np.float32(0.5)
    # (u, v, 1) * depth; OpenCV is many times faster on one row than on one column.
    scaled = cv2.merge([u_px * chunk.depth, v_px * chunk.depth, chunk.depth]).reshape(1, -1, 3)
    code, face = _faces(chunk, groups, scaled, primitives, frame)
    light = groups.face_light.ravel()[code]
    points_level = cv2.transform(scaled, frame.A_level_pixel).reshape(-1, 3)
    low = points_level[:, 2] * np.float32(-1 / _LOW_SHADE_HEIGHT)
    low += np.float32(1 - frame.height / _LOW_SHADE_HEIGHT)
    np.maximum(low, 0, out=low)
    low *= low
    low *= np.float32(-_LOW_SHADE)
    low += 1
    light *= low
    if lamps is not None:
        light += lamps.at_points(points_level, -frame.height)
    light *= 1 + surface_grain(face) * chunk.spread(groups.grain)
    glow = chunk.spread(primitives.glow[groups.rows])
    np.maximum(light, glow, out=light)

    first_color = primitives.colors_rgb[groups.rows, 0].astype(np.float32)
    rgb = np.stack([chunk.spread(channel) for channel in first_color.T])
    _mix_patterns(rgb, light, chunk, groups, face, primitives, conditions)
    # What looks up mirrors some of the sky.
    mirror = ~face.is_side * np.float32(_GLOSS * min(conditions.skylight, 1.0))
    clear = np.exp(chunk.depth * np.float32(-1 / conditions.visibility))
    np.maximum(clear, glow * np.float32(0.9), out=clear)
    light *= clear
    mirror *= clear
    mirror += 1 - clear
    for channel, of_sky in zip(rgb, conditions.sky_horizon_rgb, strict=True):
        channel *= light
        channel += mirror * np.float32(of_sky)
    return Shaded(pixel=chunk.pixel, rgb=rgb, glow=glow)


def _groups(
    primitives: Primitives,
    rows: Int64[np.ndarray, " k"],
    frame: LevelFrame,
    conditions: Conditions,
) -> _Groups:
    half_size = primitives.half_size[rows]
    to_unit = primitives.R_global_box[rows].swapaxes(1, 2) / half_size[..., None]
    T = frame.T_global_level
    A_unit_pixel = np.empty((len(rows), 3, 4))
    A_unit_pixel[..., :3] = np.einsum(
        "kij,jl->kil", to_unit, np.einsum("ij,jl->il", T[:3, :3], frame.A_level_pixel)
    )
    center = primitives.center_global[rows]
    A_unit_pixel[..., 3] = np.einsum("kij,kj->ki", to_unit, T[:3, 3] - center)
    # An object moves and its grain with it, so only clutter may take a number from its place.
    place = np.where(primitives.object_index[rows] < 0, center[:, 0] * 7 + center[:, 1] * 13, 0)
    half = half_size.astype(np.float32)
    return _Groups(
        rows=rows,
        pattern=primitives.pattern[rows],
        A_unit_pixel=A_unit_pixel,
        face_light=_light_on_faces(primitives, rows, A_unit_pixel[..., 3], conditions, T[:2, 3]),
        half_along=half[:, [1, 0, 0]],
        half_up=half[:, [2, 2, 1]],
        salt=(place + half_size[:, 0] * 211 + half_size[:, 2] * 97).astype(np.int64),
        grain=_GRAIN_BY_CLASS[primitives.semantic[rows]],
    )


def _faces(
    chunk: _Chunk,
    groups: _Groups,
    scaled: Float32[np.ndarray, "1 n 3"],
    primitives: Primitives,
    frame: LevelFrame,
) -> tuple[Int64[np.ndarray, " n"], FacePixels]:
    """Which face each pixel sees (3 * group + axis), and where on the face it lies."""
    unit = np.empty_like(scaled)
    begin = 0
    for k, count in enumerate(chunk.counts.tolist(), chunk.group.start):
        part = slice(begin, begin + count)
        cv2.transform(scaled[:, part], groups.A_unit_pixel[k], unit[:, part])
        begin += count
    x, y, z = (plane[0] for plane in cv2.split(unit))
    far_x, far_y = np.abs(x), np.abs(y)
    on_y = far_y > far_x
    is_side = np.abs(z) <= np.maximum(far_x, far_y)
    code = np.repeat(np.arange(chunk.group.start, chunk.group.stop) * 3, chunk.counts)
    code += np.uint8(2) - is_side * (np.uint8(2) - on_y)
    # Sums with masks instead of `where`, which is slow.
    along = x + (y - x) * (is_side > on_y)
    up = y + (z - y) * is_side
    focal_px = 1 / float(np.linalg.norm(frame.A_level_pixel[:, 0]))
    return code, FacePixels(
        along=along * groups.half_along.ravel()[code],
        up=up * groups.half_up.ravel()[code],
        is_side=is_side,
        scale=chunk.spread(primitives.pattern_scale[groups.rows]),
        footprint=chunk.depth * np.float32(1 / focal_px),
        salt=chunk.spread(groups.salt),
    )


def _light_on_faces(
    primitives: Primitives,
    rows: Int64[np.ndarray, " k"],
    camera_box: Float64[np.ndarray, "k 3"],
    conditions: Conditions,
    around: Float64[np.ndarray, " 2"],
) -> Float32[np.ndarray, "k 3"]:
    """Light on the face of each axis that looks at the camera, which is at `camera_box`."""
    normals = primitives.R_global_box[rows].swapaxes(1, 2)
    normals = normals * np.where(camera_box < 0, -1.0, 1.0)[..., None]
    light = conditions.skylight * (SKY_SHARE_SIDE + SKY_SHARE_TOP * normals[..., 2])
    if conditions.sunlight > 0:
        sun = conditions.sun_direction
        facing = np.maximum(np.einsum("kaj,j->ka", normals, sun), 0)
        shaded = shaded_objects(primitives, rows, sun, around)
        is_lit = ~np.isin(primitives.object_index[rows], shaded)
        light += conditions.sunlight * SUN_SHARE * facing * is_lit[:, None]
    return light.astype(np.float32)


def _mix_patterns(
    rgb: Float32[np.ndarray, "3 n"],
    light: Float32[np.ndarray, " n"],
    chunk: _Chunk,
    groups: _Groups,
    face: FacePixels,
    primitives: Primitives,
    conditions: Conditions,
) -> None:
    """Blend the second colour into `rgb`, pattern by pattern; lit windows change `light`, too."""
    pattern_of_group = groups.pattern[chunk.group]
    colors = primitives.colors_rgb[groups.rows[chunk.group]].astype(np.float32)
    edges = np.concatenate([[0], np.cumsum(chunk.counts)])
    for pattern in Pattern:
        begin, end = np.searchsorted(pattern_of_group, [pattern, pattern + 1]).tolist()
        if pattern == Pattern.PLAIN or begin == end:
            continue
        here = slice(int(edges[begin]), int(edges[end]))
        part = face.part(here)
        share = second_color_share(pattern, part)
        step = colors[begin:end, 1] - colors[begin:end, 0]
        for channel, toward in zip(rgb, step.T, strict=True):
            channel[here] += share * np.repeat(toward, chunk.counts[begin:end])
        if pattern == Pattern.WINDOWS:
            _light_windows(rgb[:, here], light[here], part, share, conditions)


def _light_windows(
    rgb: Float32[np.ndarray, "3 n"],
    light: Float32[np.ndarray, " n"],
    face: FacePixels,
    share: Float32[np.ndarray, " n"],
    conditions: Conditions,
) -> None:
    """Let panes mirror more or less of the sky, and some shine by night, in place."""
    lottery = window_lottery(face)
    bright = share * (lottery - np.float32(80)) * np.float32(0.16 * conditions.skylight)
    rgb += bright
    if conditions.headlights > 0:
        lit = np.flatnonzero((lottery < _LIT_WINDOWS) & (share > 0))
        weight = share[lit]
        for channel, color in zip(rgb, _LIT_WINDOW_RGB, strict=True):
            channel[lit] += weight * (color - channel[lit])
        shine = np.float32(0.45) + lottery[lit] * np.float32(0.4 / _LIT_WINDOWS)
        light[lit] += weight * (shine - light[lit])
