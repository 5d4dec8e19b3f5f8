"""Map layers of a nuScenes log as rasters round the car.

With the map expansion all six layers; without it the drivable area from the log's map picture, and
the other layers are unlabelled. Uses the nuScenes devkit: training and evaluation only.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Float64
from nuscenes.utils.map_mask import MapMask

from perception.data.expansion_raster import expansion_map
from perception.data.nuscenes_log import NuScenesLog
from perception.geometry import rigid
from perception.geometry.grid import BevGrid
from perception.taxonomy import MAP_CLASSES

EXPANSION_LAYERS = {
    "drivable_area": ("drivable_area",),
    "ped_crossing": ("ped_crossing",),
    "walkway": ("walkway",),
    "stop_line": ("stop_line",),
    "carpark_area": ("carpark_area",),
    "divider": ("road_divider", "lane_divider"),
}
"""Our layers out of the expansion's. Source: specs, base network section 1."""

MAP_PICTURE_RESOLUTION = 0.1
"""Metres per pixel of the log's map picture. Source: nuScenes devkit, MapMask."""


@dataclass(frozen=True, kw_only=True)
class MapRaster:
    """Layers round one pose."""

    mask: Float32[np.ndarray, "k y x"]
    """1 where the layer is; rows and columns grow with ego y and x."""
    labelled: Float32[np.ndarray, " k"]
    """1 where the log knows the layer; the mask of another layer means nothing."""


class MapLayers:
    """Rasterises the map of a log."""

    def __init__(self, log: NuScenesLog, grid: BevGrid):
        self.log = log
        self.grid = grid
        x, y = np.meshgrid(grid.x_centers(), grid.y_centers())
        self._centers = np.stack([x.ravel(), y.ravel(), np.zeros(x.size)], axis=-1)

    def at(
        self,
        scene: str,
        T_global_ego: Float64[np.ndarray, "4 4"],
        T_ego_aug_ego: Float64[np.ndarray, "4 4"] | None = None,
    ) -> MapRaster:
        """Raster of the layers round a pose.

        Args:
            scene: Name of the scene.
            T_global_ego: Pose of the car.
            T_ego_aug_ego: Affine map into the frame that the raster lies in; None: the ego frame.
        """
        T_aug_ego = np.eye(4) if T_ego_aug_ego is None else T_ego_aug_ego
        location = self.log.location(scene)
        expansion = self.log.root / "maps" / "expansion" / f"{location}.json"
        if expansion.is_file():
            return self._from_expansion(location, T_global_ego, T_aug_ego)
        mask = np.zeros((len(MAP_CLASSES), self.grid.ny, self.grid.nx), np.float32)
        labelled = np.zeros(len(MAP_CLASSES), np.float32)
        picture = self.log.map_mask_path(scene)
        if picture is not None:
            index = MAP_CLASSES.index("drivable_area")
            mask[index] = self._drivable_area(picture, T_global_ego, T_aug_ego)
            labelled[index] = 1.0
        return MapRaster(mask=mask, labelled=labelled)

    def _drivable_area(
        self,
        picture: Path,
        T_global_ego: Float64[np.ndarray, "4 4"],
        T_aug_ego: Float64[np.ndarray, "4 4"],
    ) -> Float32[np.ndarray, "y x"]:
        flat_aug_ego = T_aug_ego.copy()
        flat_aug_ego[2] = (0.0, 0.0, 1.0, 0.0)  # the raster is the ground, whatever z does
        centers_ego = rigid.apply(np.linalg.inv(flat_aug_ego), self._centers)
        centers_global = rigid.apply(T_global_ego, centers_ego)
        on_mask = _map_picture(picture).is_on_mask(centers_global[:, 0], centers_global[:, 1])
        return on_mask.reshape(self.grid.ny, self.grid.nx).astype(np.float32)

    def _from_expansion(
        self,
        location: str,
        T_global_ego: Float64[np.ndarray, "4 4"],
        T_aug_ego: Float64[np.ndarray, "4 4"],
    ) -> MapRaster:
        names = [name for layers in EXPANSION_LAYERS.values() for name in layers]
        expansion = expansion_map(self.log.root, location)
        rasters = expansion.rasters(names, T_global_ego, self.grid, T_aug_ego)
        of = dict(zip(names, rasters, strict=True))
        mask = [np.any([of[n] for n in EXPANSION_LAYERS[layer]], axis=0) for layer in MAP_CLASSES]
        return MapRaster(
            mask=np.stack(mask).astype(np.float32), labelled=np.ones(len(MAP_CLASSES), np.float32)
        )


@lru_cache(maxsize=4)
def _map_picture(path: Path) -> MapMask:
    return MapMask(str(path), resolution=MAP_PICTURE_RESOLUTION)
