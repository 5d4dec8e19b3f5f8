import json
import shutil

import numpy as np
import pytest

from perception.data.map_layers import EXPANSION_LAYERS, MapLayers
from perception.data.nuscenes_log import NuScenesLog
from perception.geometry import rigid
from perception.geometry.grid import BevGrid
from perception.taxonomy import MAP_CLASSES

GRID = BevGrid(x_min=-10.0, x_max=10.0, y_min=-6.0, y_max=6.0, cell=0.5)
POLYGON_LAYERS = (
    "drivable_area", "road_segment", "road_block", "lane", "ped_crossing", "walkway", "stop_line",
    "carpark_area",
)  # fmt: skip
OTHER_LAYERS = ("road_divider", "lane_divider", "traffic_light", "arcline_path_3", "connectivity",
                "lane_connector")  # fmt: skip


def write_expansion(root, location, rectangles, dividers):
    """Smallest map expansion that the devkit loads: upright rectangles and straight lines."""
    tables = {name: [] for name in (*POLYGON_LAYERS, *OTHER_LAYERS)}
    tables |= {"version": "1.3", "node": [], "line": [], "polygon": [], "canvas_edge": [2000, 2000]}
    tables["arcline_path_3"] = tables["connectivity"] = {}

    def nodes(points):
        tokens = [f"node{len(tables['node']) + k}" for k in range(len(points))]
        tables["node"] += [
            {"token": t, "x": x, "y": y} for t, (x, y) in zip(tokens, points, strict=True)
        ]
        return tokens

    for layer, (x0, y0, x1, y1) in rectangles:
        token = f"polygon{len(tables['polygon'])}"
        corners = nodes([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])
        tables["polygon"].append({"token": token, "exterior_node_tokens": corners, "holes": []})
        key = "polygon_tokens" if layer == "drivable_area" else "polygon_token"
        value = [token] if layer == "drivable_area" else token
        tables[layer].append({"token": f"{layer}-{token}", key: value})
    for layer, points in dividers:
        token = f"line{len(tables['line'])}"
        tables["line"].append({"token": token, "node_tokens": nodes(points)})
        tables[layer].append({"token": f"{layer}-{token}", "line_token": token})
    folder = root / "maps" / "expansion"
    folder.mkdir(parents=True)
    (folder / f"{location}.json").write_text(json.dumps(tables))


@pytest.fixture
def expansion(small_log_root, tmp_path):
    root = tmp_path / "log"
    shutil.copytree(small_log_root, root)
    # a road 8 m wide along global y, x 100..108, y 200..300; a crossing over it; a divider in it
    rectangles = [("drivable_area", (100, 200, 108, 300)), ("ped_crossing", (100, 240, 108, 244))]
    rectangles += [("walkway", (108, 200, 111, 300))]
    dividers = [("lane_divider", [(104, 200), (104, 300)])]
    write_expansion(root, "boston-seaport", rectangles, dividers)
    return MapLayers(NuScenesLog(root), GRID)


def pose(x, y, yaw):
    return rigid.transform_from_quaternion(rigid.quaternion_from_yaw(yaw), (x, y, 0.0))


def test_layers_of_the_expansion_lie_where_the_car_sees_them(expansion):
    # the car stands at (102, 236) and looks along +y: ego x = y - 236, ego y = 102 - x (a little
    # off, so that no edge lies exactly between two cells).
    # Road: ego y -6..2 -> rows 0..15 of 24, all columns. Crossing: ego x 4..8 -> columns 28..35.
    raster = expansion.at("scene-0103", pose(102.01, 236.01, np.pi / 2))
    assert raster.labelled.tolist() == [1.0] * 6
    road = raster.mask[MAP_CLASSES.index("drivable_area")]
    assert road[1:15].all()
    assert not road[18:].any()
    crossing = raster.mask[MAP_CLASSES.index("ped_crossing")]
    assert crossing[1:15, 29:35].all()
    assert not crossing[:, :27].any()
    assert not crossing[:, 38:].any()
    # the divider at global x 104 is ego y -2: row 8
    divider = raster.mask[MAP_CLASSES.index("divider")]
    assert divider[7:10].any(axis=0).all()
    assert not divider[:5].any()
    assert not divider[12:].any()
    assert not raster.mask[MAP_CLASSES.index("stop_line")].any()


def test_the_raster_turns_with_the_car(expansion):
    # looking along global +x from (102, 236): ego x = x - 102, ego y = y - 236; the road ends at
    # ego x 6, column 32, and the walkway follows up to ego x 9, column 38
    raster = expansion.at("scene-0103", pose(102.01, 236.01, 0.0))
    road = raster.mask[MAP_CLASSES.index("drivable_area")]
    walkway = raster.mask[MAP_CLASSES.index("walkway")]
    assert road[:, 17:31].all()
    assert not road[:, 34:].any()
    assert walkway[:, 33:37].all()
    assert not walkway[:, :31].any()


def test_every_class_has_layers():
    assert tuple(EXPANSION_LAYERS) == MAP_CLASSES


def test_without_the_expansion_only_the_drivable_area_is_known(small_log_root):
    log = NuScenesLog(small_log_root)
    token = log.keyframe_tokens()[0]
    frame = log.keyframe(token)
    raster = MapLayers(log, GRID).at(log.scene_of(token), frame.T_global_ego)
    assert raster.labelled.tolist() == [1.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    assert 0.02 < raster.mask[0].mean() <= 1.0
