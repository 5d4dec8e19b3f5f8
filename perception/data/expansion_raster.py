"""Layers of a map expansion as rasters: what the devkit's `get_map_mask` draws, only faster.

The devkit builds every polygon of the map anew for each raster, 0.1 s of work. Here they are built
once, a tree finds those near the car, and they are drawn as the devkit does: corners of areas
rounded, corners of lines cut off to whole pixels.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import shapely
from jaxtyping import Float64, Int32, UInt8
from nuscenes.map_expansion.map_api import NuScenesMap

from perception.geometry import rigid
from perception.geometry.grid import BevGrid

LINE_WIDTH_PX = 2
"""Source: nuscenes-devkit 1.2.0, `NuScenesMapExplorer.mask_for_lines`."""

ToPixels = Callable[[Float64[np.ndarray, "n 2"]], Float64[np.ndarray, "n 2"]]
"""Global coordinates [m] to pixels of the raster."""


class ExpansionMap:
    """Geometry of one location's layers, in map coordinates [m]."""

    def __init__(self, root: Path, location: str):
        self._map = NuScenesMap(dataroot=str(root), map_name=location)
        self._trees: dict[str, shapely.STRtree] = {}

    def rasters(
        self,
        layers: Sequence[str],
        T_global_ego: Float64[np.ndarray, "4 4"],
        grid: BevGrid,
        T_ego_aug_ego: Float64[np.ndarray, "4 4"] | None = None,
    ) -> UInt8[np.ndarray, "k y x"]:
        """One raster per layer, 1 where the layer is; rows and columns grow with ego y and x.

        Args:
            layers: Names of the expansion, such as "lane_divider".
            T_global_ego: Pose of the car; the raster turns with its yaw alone, as the devkit's.
            grid: The raster.
            T_ego_aug_ego: Affine map into the frame of the raster; None: it lies in the ego frame.
                The geometry goes through it, scale included, before anything is drawn.
        """
        T_aug_ego = np.eye(4) if T_ego_aug_ego is None else T_ego_aug_ego
        half = np.array([grid.x_max - grid.x_min, grid.y_max - grid.y_min]) / 2
        middle_aug = np.array([grid.x_min, grid.y_min]) + half
        A_ego_aug = np.linalg.inv(T_aug_ego[:2, :2])
        middle_ego = np.array([[*(A_ego_aug @ (middle_aug - T_aug_ego[:2, 3])), 0.0]])
        center = rigid.apply(T_global_ego, middle_ego)[0, :2]
        yaw = rigid.yaw_of(T_global_ego)
        R_ego_global = np.array([[np.cos(yaw), np.sin(yaw)], [-np.sin(yaw), np.cos(yaw)]])
        A_raster_global = T_aug_ego[:2, :2] @ R_ego_global
        corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * half
        patch = shapely.Polygon(corners @ (R_ego_global.T @ A_ego_aug).T + center)

        def to_pixels(xy_global: np.ndarray) -> np.ndarray:
            return ((xy_global - center) @ A_raster_global.T + half) / grid.cell

        masks = np.zeros((len(layers), grid.ny, grid.nx), np.uint8)
        for mask, layer in zip(masks, layers, strict=True):
            tree = self._tree(layer)
            near = np.sort(tree.query(patch, predicate="intersects"))  # holes are drawn in order
            inside = shapely.intersection(tree.geometries[near], patch)
            parts = shapely.get_parts(shapely.get_parts(inside))
            if layer in self._map.non_geometric_line_layers:
                _draw_lines(parts, to_pixels, mask)
            else:
                _draw_areas(parts, to_pixels, mask)
        return masks

    def _tree(self, layer: str) -> shapely.STRtree:
        if layer not in self._trees:
            self._trees[layer] = shapely.STRtree(self._geometry(layer))
        return self._trees[layer]

    def _geometry(self, layer: str) -> list[shapely.Geometry]:
        records = getattr(self._map, layer)
        if layer in self._map.non_geometric_line_layers:
            lines = [self._map.extract_line(record["line_token"]) for record in records]
            return [line for line in lines if not line.is_empty]
        if layer == "drivable_area":
            tokens = [token for record in records for token in record["polygon_tokens"]]
            return [self._map.extract_polygon(token) for token in tokens]
        polygons = [self._map.extract_polygon(record["polygon_token"]) for record in records]
        return [polygon for polygon in polygons if polygon.is_valid]  # as the devkit does


@lru_cache(maxsize=4)
def expansion_map(root: Path, location: str) -> ExpansionMap:
    """Map of a location; the four of nuScenes stay in memory."""
    return ExpansionMap(root, location)


def _draw_areas(parts: np.ndarray, to_pixels: ToPixels, mask: UInt8[np.ndarray, "y x"]) -> None:
    """Fill polygons and cut out their holes; parts that only touch the patch are no polygons."""
    areas = parts[shapely.get_type_id(parts) == shapely.GeometryType.POLYGON]
    rings, area_of_ring = shapely.get_rings(areas, return_index=True)
    pixels = _pixels_of(rings, to_pixels, np.round)
    for area in range(len(areas)):
        first, *holes = np.flatnonzero(area_of_ring == area)
        cv2.fillPoly(mask, [pixels[first]], (1,))
        cv2.fillPoly(mask, [pixels[hole] for hole in holes], (0,))


def _draw_lines(parts: np.ndarray, to_pixels: ToPixels, mask: UInt8[np.ndarray, "y x"]) -> None:
    lines = parts[shapely.get_type_id(parts) == shapely.GeometryType.LINESTRING]
    pixels = _pixels_of(lines, to_pixels, np.trunc)
    cv2.polylines(mask, pixels, isClosed=False, color=(1,), thickness=LINE_WIDTH_PX)


def _pixels_of(
    curves: np.ndarray, to_pixels: ToPixels, to_whole: Callable[[np.ndarray], np.ndarray]
) -> list[Int32[np.ndarray, "n 2"]]:
    """Corners of each curve as whole pixels."""
    xy_global, curve = shapely.get_coordinates(curves, return_index=True)
    pixels = to_whole(to_pixels(xy_global)).astype(np.int32)
    return np.split(pixels, np.flatnonzero(np.diff(curve)) + 1) if len(curves) else []
