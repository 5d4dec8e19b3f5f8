import json
from pathlib import Path

import numpy as np
import pytest
from nuscenes.map_expansion.map_api import NuScenesMap

from perception.synthetic.ground import MAP_LAYERS
from perception.synthetic.ground_painter import paint_ground
from perception.synthetic.map_expansion import expansion_tables
from perception.synthetic.street_builder import build_street_map
from perception.synthetic.street_map import StreetMap

LOCATION = "singapore-queenstown"
ALL_LAYERS = [*MAP_LAYERS, "road_segment", "road_block", "lane"]


@pytest.fixture(scope="module")
def street_map() -> StreetMap:
    return build_street_map(LOCATION, 11)


@pytest.fixture(scope="module")
def tables(street_map) -> dict:
    return expansion_tables(street_map)


@pytest.fixture(scope="module")
def devkit_map(tables, tmp_path_factory) -> NuScenesMap:
    root: Path = tmp_path_factory.mktemp("log")
    (root / "maps" / "expansion").mkdir(parents=True)
    (root / "maps" / "expansion" / f"{LOCATION}.json").write_text(json.dumps(tables))
    return NuScenesMap(str(root), LOCATION)


def middles(street_map: StreetMap, *, of_connectors: bool) -> list[tuple[int, float, float]]:
    return [
        (index, *lane.centerline[len(lane.centerline) // 2].tolist())
        for index, lane in enumerate(street_map.lanes)
        if lane.is_connector == of_connectors
    ]


def test_devkit_rasters_work_anywhere_at_any_angle(devkit_map, street_map):
    rng = np.random.default_rng(0)
    for _ in range(8):
        x, y = rng.uniform(0.0, street_map.size, 2)
        masks = devkit_map.get_map_mask(
            (x, y, 60.0, 60.0), rng.uniform(-180.0, 180.0), ALL_LAYERS, (60, 60)
        )
        assert masks.shape == (len(ALL_LAYERS), 60, 60)


def test_devkit_rasters_agree_with_our_own(devkit_map, street_map):
    ground = paint_ground(street_map, 11)
    rng = np.random.default_rng(1)
    common, either = np.zeros(len(MAP_LAYERS)), np.zeros(len(MAP_LAYERS))
    per_meter, edge = 4, 60
    center = (np.arange(edge * per_meter) + 0.5) / per_meter - edge / 2
    dx, dy = np.meshgrid(center, center)
    for _ in range(5):
        x, y = rng.uniform(100.0, street_map.size - 100.0, 2)
        yaw = rng.uniform(-np.pi, np.pi)
        theirs = devkit_map.get_map_mask(
            (x, y, edge, edge), np.rad2deg(yaw), list(MAP_LAYERS), dx.shape
        )
        column = (x + np.cos(yaw) * dx - np.sin(yaw) * dy) / ground.cell
        row = (y + np.sin(yaw) * dx + np.cos(yaw) * dy) / ground.cell
        bits = ground.layers[row.astype(int), column.astype(int)]
        for k, mask in enumerate(theirs):
            ours = (bits >> k) & 1
            common[k] += (ours & mask).sum()
            either[k] += (ours | mask).sum()
    iou = dict(zip(MAP_LAYERS, common / either, strict=True))
    # The devkit's areas are half a pixel fat on each side and lie half a pixel off: what is narrow
    # suffers. A stop area of 3 m by 3.4 m grows by 16 %.
    limits = {"drivable_area": 0.97, "walkway": 0.9, "ped_crossing": 0.88, "carpark_area": 0.93}
    limits |= {"stop_line": 0.82, "road_divider": 0.5, "lane_divider": 0.5}
    assert all(iou[layer] > limit for layer, limit in limits.items()), iou


def test_the_nearest_lane_is_the_one_that_a_point_lies_on(devkit_map, street_map, tables):
    tokens = list(tables["arcline_path_3"])
    for index, x, y in middles(street_map, of_connectors=False)[::8]:
        assert devkit_map.get_closest_lane(x, y, radius=2.0) == tokens[index]
        on_point = devkit_map.layers_on_point(x, y)
        assert on_point["lane"] == tokens[index]
        assert on_point["drivable_area"]
        assert on_point["road_block"]


def test_roads_lead_to_the_next_road_by_shared_nodes(devkit_map, street_map):
    intersections = {
        record["token"] for record in devkit_map.road_segment if record["is_intersection"]
    }
    for index, x, y in middles(street_map, of_connectors=False)[::12]:
        if street_map.lanes[index].successors:
            assert set(devkit_map.get_next_roads(x, y)["road_segment"]) & intersections


def test_lane_paths_follow_the_middle_lines(devkit_map, street_map, tables):
    tokens = list(tables["arcline_path_3"])
    for index, lane in list(enumerate(street_map.lanes))[::30]:
        poses = np.array(devkit_map.discretize_lanes([tokens[index]], 0.5)[tokens[index]])
        np.testing.assert_allclose(poses[0, :2], lane.centerline[0], atol=0.01)
        np.testing.assert_allclose(poses[-1, :2], lane.centerline[-1], atol=0.01)
        assert devkit_map.get_outgoing_lane_ids(tokens[index]) == [
            tokens[successor] for successor in lane.successors
        ]


def test_what_breaks_devkit_rasters_is_left_out(tables):
    lines = {line["token"]: line["node_tokens"] for line in tables["line"]}
    for layer in ("road_divider", "lane_divider"):
        assert tables[layer]
        assert all(len(lines[record["line_token"]]) == 2 for record in tables[layer])
    for polygon in tables["polygon"]:
        nodes = polygon["exterior_node_tokens"]
        assert polygon["holes"] == []
        assert len(nodes) >= 3
        assert nodes[0] != nodes[-1]


def test_tokens_are_unique_and_the_same_each_time(street_map, tables):
    for layer, records in tables.items():
        if isinstance(records, list) and records and isinstance(records[0], dict):
            assert len({record["token"] for record in records}) == len(records), layer
    again = expansion_tables(street_map)
    assert again["node"] == tables["node"]
    assert again["lane"] == tables["lane"]
