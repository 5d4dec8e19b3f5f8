"""What the world is made of above the ground: oriented boxes, as one table of arrays."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from enum import IntEnum

import numpy as np
from jaxtyping import Float32, Float64, Int32, UInt8

from perception.taxonomy import DETECTION_CLASSES

SEMANTIC_CLASSES = (
    "sky",
    "road",
    "walkway",
    "terrain",
    "building",
    "vegetation",
    "pole",
    *DETECTION_CLASSES,
)
"""Class of a pixel; ids are the index. "road" is all drivable ground, paint included."""

NO_OBJECT = -1
"""`object_index` of clutter, which has no annotation."""


class Pattern(IntEnum):
    """How the two colours of a primitive share a face, in metres along the face."""

    PLAIN = 0
    """First colour only."""
    MOTTLED = 1
    """Random patches of `pattern_scale`: foliage."""
    WINDOWS = 2
    """Grid of windows in the second colour, one per `pattern_scale`: buildings. Side faces only."""
    DIAGONAL = 3
    """Diagonal stripes, each `pattern_scale` wide: barriers."""
    BANDS = 4
    """Horizontal bands, each `pattern_scale` high: cones."""
    RIBS = 5
    """Narrow vertical lines every `pattern_scale`: cargo boxes."""


@dataclass(frozen=True, kw_only=True)
class Primitives:
    """A table of n oriented boxes: what rays and colours need to know of them."""

    center_global: Float64[np.ndarray, "n 3"]
    R_global_box: Float64[np.ndarray, "n 3 3"]
    """Columns are the box's own axes."""
    half_size: Float64[np.ndarray, "n 3"]
    """Half the extent along each of the box's own axes [m], > 0."""
    object_index: Int32[np.ndarray, " n"]
    """Index of the annotated object, or `NO_OBJECT`."""
    semantic: UInt8[np.ndarray, " n"]
    """Index into `SEMANTIC_CLASSES`."""
    pattern: UInt8[np.ndarray, " n"]
    """A `Pattern`."""
    colors_rgb: UInt8[np.ndarray, "n 2 3"]
    """First and second colour."""
    pattern_scale: Float32[np.ndarray, " n"]
    """[m], > 0."""
    reflectivity: Float32[np.ndarray, " n"]
    """Share of the LiDAR's light that comes back, 0..1 (retro-reflectors near 1)."""
    glow: Float32[np.ndarray, " n"]
    """Light of its own, 0..1: lamps that stay bright at night."""

    def __len__(self) -> int:
        return len(self.center_global)

    @staticmethod
    def concatenate(tables: Sequence["Primitives"]) -> "Primitives":
        """Rows of several tables, one after the other.

        Raises:
            ValueError: There is no table.
        """
        if not tables:
            raise ValueError("no table of primitives given, expected one or more")
        return Primitives(
            **{
                field.name: np.concatenate([getattr(table, field.name) for table in tables])
                for field in fields(Primitives)
            }
        )
