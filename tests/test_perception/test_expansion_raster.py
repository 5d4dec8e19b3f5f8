import numpy as np
import pytest
from nuscenes.map_expansion.map_api import NuScenesMap

from perception.data.expansion_raster import ExpansionMap
from perception.data.map_layers import EXPANSION_LAYERS
from perception.data.nuscenes_log import NuScenesLog
from perception.geometry import rigid
from perception.geometry.grid import BevGrid

LAYERS = [name for layers in EXPANSION_LAYERS.values() for name in layers]


@pytest.mark.parametrize(
    "grid",
    [
        BevGrid(x_min=-50.0, x_max=50.0, y_min=-50.0, y_max=50.0, cell=0.5),
        BevGrid(x_min=-20.0, x_max=60.0, y_min=-30.0, y_max=30.0, cell=0.4),
    ],
    ids=["round the car", "to the front"],
)
def test_the_rasters_are_the_devkits(synthetic_log_root, grid):
    log = NuScenesLog(synthetic_log_root)
    drawn = np.zeros(len(LAYERS))
    for scene in log.scenes:
        location = log.location(scene)
        ours = ExpansionMap(synthetic_log_root, location)
        devkit = NuScenesMap(dataroot=str(synthetic_log_root), map_name=location)
        for token in log.keyframe_tokens(scene):
            T_global_ego = log.keyframe(token, num_sweeps=1).T_global_ego
            middle = ((grid.x_min + grid.x_max) / 2, (grid.y_min + grid.y_max) / 2, 0.0)
            x, y, _ = rigid.apply(T_global_ego, np.array([middle]))[0]
            expected = devkit.get_map_mask(
                (x, y, grid.y_max - grid.y_min, grid.x_max - grid.x_min),
                float(np.rad2deg(rigid.yaw_of(T_global_ego))),
                LAYERS,
                (grid.ny, grid.nx),
            )
            rasters = ours.rasters(LAYERS, T_global_ego, grid)
            # corners within 1e-9 px of a rounding edge may fall to either side
            assert (rasters != expected).mean() < 1e-4
            drawn += rasters.sum(axis=(1, 2))
    assert (drawn > 100).all()  # every layer occurs


def test_an_edge_on_the_border_of_the_raster_is_no_error(synthetic_log_root):
    location = NuScenesLog(synthetic_log_root).location("scene-0103")
    devkit = NuScenesMap(dataroot=str(synthetic_log_root), map_name=location)
    walkway = devkit.extract_polygon(devkit.walkway[0]["polygon_token"])
    x_min, y_min, _, _ = walkway.bounds
    grid = BevGrid(x_min=-10.0, x_max=0.0, y_min=-10.0, y_max=0.0, cell=0.5)
    T_global_ego = rigid.transform_from_quaternion((1.0, 0.0, 0.0, 0.0), (x_min, y_min, 0.0))
    expansion = ExpansionMap(synthetic_log_root, location)
    assert expansion.rasters(["walkway"], T_global_ego, grid).shape == (1, 20, 20)
