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


# the augmented frame (trap 4: scale included)


def affine(angle=0.0, scale=1.0, mirror_y=False, shift=(0.0, 0.0, 0.0)):
    T = np.eye(4)
    cos, sin = np.cos(angle), np.sin(angle)
    T[:3, :3] = np.diag([1.0, -1.0 if mirror_y else 1.0, 1.0]) @ (
        scale * np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])
    )
    T[:3, 3] = shift
    return T


def test_scale_moves_the_far_edge_of_the_road(expansion):
    # looking along global -x from (150, 250): the walkway 108..111 is ego x 39..42,
    # the road 42..50. Scaled by 1.1: walkway 42.9..46.2, road 46.2..55.
    grid = BevGrid(x_min=-50.0, x_max=50.0, y_min=-50.0, y_max=50.0, cell=0.5)
    layers = MapLayers(expansion.log, grid)
    T_global_ego = pose(150.0, 250.0, np.pi)
    row = 100  # ego y 0..0.5

    def edge(raster, layer):
        return grid.x_centers()[np.flatnonzero(raster.mask[MAP_CLASSES.index(layer), row])]

    plain = layers.at("scene-0103", T_global_ego)
    walkway, road = edge(plain, "walkway"), edge(plain, "drivable_area")
    assert walkway.min() == pytest.approx(39.0, abs=0.51)
    assert road.min() == pytest.approx(42.0, abs=0.51)
    larger = layers.at("scene-0103", T_global_ego, affine(scale=1.1))
    walkway, road = edge(larger, "walkway"), edge(larger, "drivable_area")
    assert walkway.min() == pytest.approx(42.9, abs=0.51)
    assert walkway.max() == pytest.approx(46.2, abs=0.76)
    assert road.min() == pytest.approx(46.2, abs=0.51)
    assert road.max() == 49.75


@pytest.mark.parametrize(
    "T_ego_aug_ego",
    [
        affine(scale=1.1),
        affine(angle=0.6),
        affine(mirror_y=True),
        affine(shift=(3.0, -2.0, 0.7)),
        affine(angle=-0.7, scale=0.9, mirror_y=True, shift=(1.0, 0.5, -0.6)),
    ],
    ids=["scale", "rotation", "mirror", "shift", "all"],
)
@pytest.mark.parametrize("source", ["expansion", "picture"])
def test_places_stay_on_their_layer(source, T_ego_aug_ego, expansion, small_log_root):
    # every cell of the augmented raster says what the ground says under it, but for the edges:
    # looked up in a finer raster of the ego frame, where all cells within 0.6 m agree
    log = expansion.log if source == "expansion" else NuScenesLog(small_log_root)
    T_global_ego = pose(103.0, 241.0, 0.4)
    if source == "picture":
        T_global_ego = log.keyframe(log.keyframe_tokens("scene-0103")[0], 1).T_global_ego
    around = BevGrid(x_min=-40.0, x_max=40.0, y_min=-40.0, y_max=40.0, cell=0.2)
    truth = MapLayers(log, around).at("scene-0103", T_global_ego).mask
    grid = BevGrid(x_min=-24.0, x_max=24.0, y_min=-16.0, y_max=16.0, cell=0.5)
    raster = MapLayers(log, grid).at("scene-0103", T_global_ego, T_ego_aug_ego).mask
    x, y = np.meshgrid(grid.x_centers(), grid.y_centers())
    height = np.full(x.size, T_ego_aug_ego[2, 3])
    centers_aug = np.stack([x.ravel(), y.ravel(), height], axis=-1)
    centers_ego = rigid.apply(np.linalg.inv(T_ego_aug_ego), centers_aug)
    column, row = np.floor(around.cell_coordinates(centers_ego[:, :2])).astype(int).T
    compared = 0
    for layer in ("drivable_area", "ped_crossing", "walkway"):
        index = MAP_CLASSES.index(layer)
        near = [truth[index, row + dy, column + dx] for dy in range(-4, 5) for dx in range(-4, 5)]
        clear = np.min(near, axis=0) == np.max(near, axis=0)
        found = raster[index].ravel()[clear]
        assert (found == truth[index, row, column][clear]).all(), layer
        compared += 0 < found.mean() < 1
    assert compared >= (2 if source == "expansion" else 1)
