"""The map expansion of a location, version 1.3, as nuScenes' devkit reads it.

The devkit's rasters fail or lie on legal input that its authors did not have. So here a line is
cut into pieces of two points (one that leaves and enters a raster again fails), no polygon has a
hole (a hole erases what was drawn before), and neighbours share their nodes (the way from road to
road is found by them).
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import shapely
from jaxtyping import Float64
from shapely.geometry import Polygon

from perception.synthetic.street_map import Divider, Lane, StreetMap

VERSION = "1.3"
SIMPLIFY_TOLERANCE = 0.02
"""Lines may pass that far from their points [m]. Source: ours, a hundredth of a lane's width."""
STRAIGHT_RADIUS = 999.999
"""Of arcs that are not there. Source: nuScenes' own files."""

Record = dict[str, Any]


@dataclass(kw_only=True)
class _Writer:
    """Records by layer, with tokens made of the location, the layer and the number."""

    location: str
    layers: dict[str, list[Record]] = field(default_factory=dict)
    node_at: dict[tuple[float, float], str] = field(default_factory=dict)

    def token(self, layer: str, index: int) -> str:
        text = f"{self.location}/{layer}/{index}"
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def add(self, layer: str, **fields: Any) -> str:
        records = self.layers.setdefault(layer, [])
        token = self.token(layer, len(records))
        records.append({"token": token, **fields})
        return token

    def nodes(self, points: Any) -> list[str]:
        """Nodes of a line [m]; a point that rounds to the one before is left out."""
        tokens: list[str] = []
        for x, y in np.round(np.asarray(points), 3).tolist():
            if (x, y) not in self.node_at:
                self.node_at[x, y] = self.add("node", x=x, y=y)
            if not tokens or tokens[-1] != self.node_at[x, y]:
                tokens.append(self.node_at[x, y])
        return tokens

    def line(self, points: Any) -> str:
        return self.add("line", node_tokens=self.nodes(points))

    def polygon(self, polygon: Polygon) -> str:
        ring = self.nodes(polygon.exterior.coords)
        if ring[0] == ring[-1]:
            ring.pop()
        holes = [{"node_tokens": self.nodes(list(hole.coords)[:-1])} for hole in polygon.interiors]
        return self.add("polygon", exterior_node_tokens=ring, holes=holes)


def expansion_tables(street_map: StreetMap) -> dict[str, Any]:
    """Content of `maps/expansion/<location>.json`; numbers are rounded to millimetres."""
    writer = _Writer(location=street_map.location)
    tokens = [writer.token("road_segment", k) for k in range(len(street_map.road_segments))]
    _add_roads(writer, street_map)
    block_of_lane, block_of_segment = _add_road_blocks(writer, street_map, tokens)
    divider_types = _add_dividers(writer, street_map, tokens)
    lane_tokens = _add_lanes(writer, street_map.lanes, tokens, divider_types)
    _add_areas(writer, street_map, tokens, block_of_lane, block_of_segment)
    empty: dict[str, list[Record]] = {"traffic_light": [], "lane_connector": [], "lane_divider": []}
    return {
        "version": VERSION,
        "canvas_edge": [street_map.size, street_map.size],
        **empty,
        **writer.layers,
        "arcline_path_3": {
            token: _straight_pieces(lane.centerline)
            for token, lane in zip(lane_tokens, street_map.lanes, strict=True)
        },
        "connectivity": _connectivity(street_map.lanes, lane_tokens),
    }


def _add_roads(writer: _Writer, street_map: StreetMap) -> None:
    area = writer.token("drivable_area", 0)
    polygons = []
    for segment in street_map.road_segments:
        polygons.append(writer.polygon(segment.polygon))
        writer.add(
            "road_segment",
            polygon_token=polygons[-1],
            is_intersection=segment.is_intersection,
            drivable_area_token=area,
        )
    polygons += [writer.polygon(park.polygon) for park in street_map.car_parks]
    writer.add("drivable_area", polygon_tokens=polygons)


def _add_road_blocks(
    writer: _Writer, street_map: StreetMap, segments: Sequence[str]
) -> tuple[dict[int, str], dict[int, str]]:
    """All lanes of one direction are a block; returns blocks by lane and by segment (the last)."""
    groups: dict[tuple[int, bool], list[int]] = {}
    first_of: dict[int, Lane] = {}
    for index, lane in enumerate(street_map.lanes):
        if not lane.is_connector:
            first = first_of.setdefault(lane.road_segment, lane)
            is_forward = bool(_heading(lane) @ _heading(first) > 0)
            groups.setdefault((lane.road_segment, is_forward), []).append(index)
    by_lane: dict[int, str] = {}
    by_segment: dict[int, str] = {}
    for (segment, _), members in groups.items():
        lanes = [street_map.lanes[k] for k in members]
        x, y = _heading(lanes[0])
        across = [float(np.array([-y, x]) @ lane.centerline[0]) for lane in lanes]
        left = lanes[int(np.argmax(across))].left_edge
        right = lanes[int(np.argmin(across))].right_edge
        starts = sorted(zip(across, lanes, strict=True), key=lambda pair: -pair[0])
        token = writer.add(
            "road_block",
            polygon_token=writer.polygon(Polygon(np.concatenate([right, left[::-1]]))),
            from_edge_line_token=writer.line(_edge([lane for _, lane in starts], 0)),
            to_edge_line_token=writer.line(_edge([lane for _, lane in starts], -1)),
            road_segment_token=segments[segment],
        )
        by_lane.update(dict.fromkeys(members, token))
        by_segment[segment] = token
    return by_lane, by_segment


def _add_lanes(
    writer: _Writer, lanes: Sequence[Lane], segments: Sequence[str], types: dict[str, str]
) -> list[str]:
    """Lanes and connectors; returns their tokens in the map's order."""
    tokens = []
    for lane in lanes:
        polygon = writer.polygon(Polygon(np.concatenate([lane.right_edge, lane.left_edge[::-1]])))
        common = {
            "polygon_token": polygon,
            "lane_type": "CAR",
            "from_edge_line_token": writer.line(_edge([lane], 0)),
            "to_edge_line_token": writer.line(_edge([lane], -1)),
        }
        if lane.is_connector:
            tokens.append(writer.add("lane_connector", **common))
            continue
        edges = {
            f"{side}_lane_divider_segments": [
                {"node_token": node, "segment_type": types.get(node, "NIL")}
                for node in writer.nodes(edge)
            ]
            for side, edge in (("left", lane.left_edge), ("right", lane.right_edge))
        }
        tokens.append(
            writer.add("lane", **common, **edges, road_segment_token=segments[lane.road_segment])
        )
    return tokens


def _add_dividers(
    writer: _Writer, street_map: StreetMap, segments: Sequence[str]
) -> dict[str, str]:
    """Lines in pieces of two nodes; returns how each node of a line is painted."""
    types: dict[str, str] = {}
    for divider in street_map.road_dividers:
        types.update(dict.fromkeys(writer.nodes(divider.line), "SINGLE_SOLID_YELLOW"))
        for line in _two_point_pieces(divider):
            writer.add(
                "road_divider",
                line_token=writer.line(line),
                road_segment_token=segments[divider.road_segment],
            )
    for divider in street_map.lane_dividers:
        kind = "DOUBLE_DASHED_WHITE" if divider.is_dashed else "SINGLE_SOLID_WHITE"
        types.update(dict.fromkeys(writer.nodes(divider.line), kind))
        for line in _two_point_pieces(divider):
            writer.add(
                "lane_divider",
                line_token=writer.line(line),
                lane_divider_segments=[
                    {"node_token": node, "segment_type": kind} for node in writer.nodes(line)
                ],
            )
    return types


def _add_areas(
    writer: _Writer,
    street_map: StreetMap,
    segments: Sequence[str],
    block_of_lane: dict[int, str],
    block_of_segment: dict[int, str],
) -> None:
    crossings = [
        writer.add(
            "ped_crossing",
            polygon_token=writer.polygon(crossing.polygon),
            road_segment_token=segments[crossing.road_segment],
        )
        for crossing in street_map.crossings
    ]
    # The largest first: a devkit raster draws in this order.
    for walkway in sorted(street_map.walkways, key=lambda area: -area.area):
        writer.add("walkway", polygon_token=writer.polygon(walkway))
    for stop in street_map.stop_lines:
        writer.add(
            "stop_line",
            polygon_token=writer.polygon(stop.polygon),
            stop_line_type="STOP_SIGN" if stop.crossing is None else "PED_CROSSING",
            ped_crossing_tokens=[] if stop.crossing is None else [crossings[stop.crossing]],
            traffic_light_tokens=[],
            road_block_token=block_of_lane.get(stop.lanes[0], "") if stop.lanes else "",
        )
    for park in street_map.car_parks:
        writer.add(
            "carpark_area",
            polygon_token=writer.polygon(park.polygon),
            orientation=round(park.yaw, 6),
            road_block_token=block_of_segment.get(park.road_segment, ""),
        )
    for layer in ("ped_crossing", "walkway", "stop_line", "carpark_area"):
        writer.layers.setdefault(layer, [])


def _two_point_pieces(divider: Divider) -> Iterable[Float64[np.ndarray, "2 2"]]:
    line = _simplified(divider.line)
    return (line[k : k + 2] for k in range(len(line) - 1))


def _simplified(line: Float64[np.ndarray, "n 2"]) -> Float64[np.ndarray, "m 2"]:
    simple = shapely.simplify(shapely.linestrings(line), SIMPLIFY_TOLERANCE)
    return shapely.get_coordinates(simple)


def _straight_pieces(line: Float64[np.ndarray, "n 2"]) -> list[Record]:
    """A lane's middle as devkit paths, each all straight."""
    points = np.round(_simplified(line), 3)
    pieces = []
    for (x, y), (x_end, y_end) in zip(points[:-1].tolist(), points[1:].tolist(), strict=True):
        yaw = round(float(np.arctan2(y_end - y, x_end - x)), 9)
        length = round(float(np.hypot(x_end - x, y_end - y)), 6)
        pieces.append(
            {
                "start_pose": [x, y, yaw],
                "end_pose": [x_end, y_end, yaw],
                "shape": "LSR",
                "radius": STRAIGHT_RADIUS,
                "segment_length": [0.0, length, 0.0],
            }
        )
    return pieces


def _connectivity(lanes: Sequence[Lane], tokens: Sequence[str]) -> dict[str, Record]:
    connectivity: dict[str, Record] = {token: {"incoming": [], "outgoing": []} for token in tokens}
    for token, lane in zip(tokens, lanes, strict=True):
        for successor in lane.successors:
            connectivity[token]["outgoing"].append(tokens[successor])
            connectivity[tokens[successor]]["incoming"].append(token)
    return connectivity


def _heading(lane: Lane) -> Float64[np.ndarray, " 2"]:
    return lane.centerline[1] - lane.centerline[0]


def _edge(lanes: Sequence[Lane], end: int) -> list[Float64[np.ndarray, " 2"]]:
    """Across neighbouring lanes from the left, at their beginning (0) or end (-1)."""
    return [lanes[0].left_edge[end], *(lane.right_edge[end] for lane in lanes)]
