"""Collects oriented boxes one by one and makes a table of them."""

from dataclasses import dataclass
from math import cos, pi, sin

import numpy as np

from perception.synthetic.primitives import NO_OBJECT, Pattern, Primitives

Rgb = tuple[int, int, int]
Range = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Material:
    """How a box looks to cameras and to the LiDAR; fields as in `Primitives`."""

    rgb: Rgb
    second_rgb: Rgb = (30, 30, 32)
    pattern: Pattern = Pattern.PLAIN
    scale: float = 1.0
    reflectivity: float = 0.3
    glow: float = 0.0


class PartList:
    """Boxes in one frame, in the order in which they were added."""

    def __init__(self) -> None:
        self._centers: list[tuple[float, float, float]] = []
        self._half_sizes: list[tuple[float, float, float]] = []
        self._yaw_pitch: list[tuple[float, float]] = []
        self._semantics: list[int] = []
        self._materials: list[Material] = []

    def __len__(self) -> int:
        return len(self._centers)

    def add(
        self,
        center: tuple[float, float, float],
        size: tuple[float, float, float],
        material: Material,
        *,
        semantic: int,
        yaw: float = 0.0,
        pitch: float = 0.0,
    ) -> None:
        """Add a box.

        Args:
            center: Middle of the box [m].
            size: Its full extents along its own axes [m].
            material: How it looks.
            semantic: Index into `SEMANTIC_CLASSES`.
            yaw: Turn about the z axis, counter-clockwise [rad].
            pitch: Before that, how far its x axis is raised [rad].
        """
        self._centers.append(center)
        self._half_sizes.append((size[0] / 2, size[1] / 2, size[2] / 2))
        self._yaw_pitch.append((yaw, pitch))
        self._semantics.append(semantic)
        self._materials.append(material)

    def table(self) -> Primitives:
        """All boxes, none of them an annotated object's yet."""
        n = len(self)
        yaw, pitch = np.array(self._yaw_pitch, dtype=np.float64).reshape(n, 2).T
        cos_yaw, sin_yaw = np.cos(yaw), np.sin(yaw)
        cos_pitch, sin_pitch = np.cos(pitch), np.sin(pitch)
        R = np.zeros((n, 3, 3))
        R[:, 0, 0], R[:, 1, 0], R[:, 2, 0] = cos_yaw * cos_pitch, sin_yaw * cos_pitch, sin_pitch
        R[:, 0, 1], R[:, 1, 1] = -sin_yaw, cos_yaw
        R[:, 0, 2], R[:, 1, 2], R[:, 2, 2] = -cos_yaw * sin_pitch, -sin_yaw * sin_pitch, cos_pitch
        looks = self._materials
        return Primitives(
            center_global=np.array(self._centers, dtype=np.float64).reshape(n, 3),
            R_global_box=R,
            half_size=np.array(self._half_sizes, dtype=np.float64).reshape(n, 3),
            object_index=np.full(n, NO_OBJECT, dtype=np.int32),
            semantic=np.array(self._semantics, dtype=np.uint8),
            pattern=np.array([look.pattern for look in looks], dtype=np.uint8),
            colors_rgb=np.array(
                [(look.rgb, look.second_rgb) for look in looks], dtype=np.uint8
            ).reshape(n, 2, 3),
            pattern_scale=np.array([look.scale for look in looks], dtype=np.float32),
            reflectivity=np.array([look.reflectivity for look in looks], dtype=np.float32),
            glow=np.array([look.glow for look in looks], dtype=np.float32),
        )


class ObjectParts:
    """Parts of one object, placed by fractions of its annotated box.

    A range along x goes from 0 (rear) to 1 (front), along y from 0 (right) to 1 (left), along z
    from 0 (ground) to 1 (top); so a part is inside the box by construction.
    """

    def __init__(self, size: tuple[float, float, float], semantic: int) -> None:
        self.size = size
        self._semantic = semantic
        self._parts = PartList()

    def box(self, x: Range, y: Range, z: Range, material: Material) -> None:
        """Add an upright box."""
        length, width, height = self.size
        self._parts.add(
            (
                ((x[0] + x[1]) / 2 - 0.5) * length,
                ((y[0] + y[1]) / 2 - 0.5) * width,
                (z[0] + z[1]) / 2 * height,
            ),
            ((x[1] - x[0]) * length, (y[1] - y[0]) * width, (z[1] - z[0]) * height),
            material,
            semantic=self._semantic,
        )

    def pair(self, x: Range, y: Range, z: Range, material: Material) -> None:
        """Add an upright box and its mirror image on the other side."""
        self.box(x, y, z, material)
        self.box(x, (1.0 - y[1], 1.0 - y[0]), z, material)

    def beam(
        self, x: Range, y: Range, z: Range, thickness: float, material: Material, *, rises: bool
    ) -> None:
        """Add a slanted box that fills the diagonal of the given ranges and stays inside them.

        Args:
            x: Along the object.
            y: Across it.
            z: Upwards.
            thickness: Across the slant [m], less than the extents along x and z.
            material: How it looks.
            rises: Whether it is high in front.
        """
        length, width, height = self.size
        extent_x, extent_z = (x[1] - x[0]) * length, (z[1] - z[0]) * height
        thickness = min(thickness, 0.9 * extent_x, 0.9 * extent_z)
        pitch = _beam_pitch(extent_x, extent_z, thickness)
        beam_length = (extent_x - thickness * sin(pitch)) / cos(pitch)
        self._parts.add(
            (
                ((x[0] + x[1]) / 2 - 0.5) * length,
                ((y[0] + y[1]) / 2 - 0.5) * width,
                (z[0] + z[1]) / 2 * height,
            ),
            (beam_length, (y[1] - y[0]) * width, thickness),
            material,
            semantic=self._semantic,
            pitch=pitch if rises else -pitch,
        )

    def wheel(self, x_center: float, y: Range, radius: float, material: Material) -> None:
        """Add a wheel of two crossed squares that stands on the ground.

        Args:
            x_center: Its axle, a fraction of the length.
            y: Its width.
            radius: Half the extent of the square on its tip [m].
            material: How it looks.
        """
        length, width, _ = self.size
        edge = radius * 2**0.5
        for pitch in (0.0, pi / 4):
            self._parts.add(
                ((x_center - 0.5) * length, ((y[0] + y[1]) / 2 - 0.5) * width, radius),
                (edge, (y[1] - y[0]) * width, edge),
                material,
                semantic=self._semantic,
                pitch=pitch,
            )

    def table(self) -> Primitives:
        """All parts in the object's own frame, origin on the ground below the box's middle."""
        return self._parts.table()


def _beam_pitch(extent_x: float, extent_z: float, thickness: float) -> float:
    """Slant [rad] at which a beam of a thickness just fills a rectangle.

    A beam of length b and thickness t is b cos + t sin wide and b sin + t cos high; without b that
    is `extent_x sin(p) - extent_z cos(p) + t cos(2p) = 0`, which grows from 0 to 90 degrees.
    """
    low, high = 0.0, pi / 2
    for _ in range(40):
        pitch = (low + high) / 2
        excess = extent_x * sin(pitch) - extent_z * cos(pitch) + thickness * cos(2 * pitch)
        low, high = (low, pitch) if excess > 0 else (pitch, high)
    return (low + high) / 2
