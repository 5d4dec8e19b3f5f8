"""A town of one round street, by hand: two lanes, walkways, places to park, houses."""

import numpy as np
from shapely.geometry import Polygon, box

from perception.synthetic.street_map import (
    Crossing,
    Lane,
    ParkingSpot,
    RoadSegment,
    StopLine,
    StreetMap,
)

SIZE = 300.0
_BLOCK = box(80.0, 90.0, 220.0, 210.0)
_RADIUS = 20.0


def _with_points(line: np.ndarray, number: int) -> np.ndarray:
    """The line in a given number of points."""
    at = np.linspace(0, len(line) - 1, number)
    return np.stack([np.interp(at, np.arange(len(line)), line[:, axis]) for axis in (0, 1)], -1)


def ring(outwards: float) -> np.ndarray:
    """Closed line around the block, counter-clockwise, 401 points; 0 is the middle of the road."""
    line = _BLOCK.buffer(_RADIUS + outwards, quad_segs=16).exterior.reverse().segmentize(2.0)
    return _with_points(np.array(line.coords)[:, :2], 401)


def ring_town() -> StreetMap:
    """Traffic on the right; the outer lane runs counter-clockwise, the inner one clockwise."""
    lanes = []
    for outwards, ccw in ((1.75, True), (-1.75, False)):
        center, outer, inner = ring(outwards), ring(outwards + 1.75), ring(outwards - 1.75)
        for quarter in range(4):
            parts = []
            for line in (center, outer, inner):
                line = line if ccw else line[::-1]
                cut = 100 * np.arange(5)
                parts.append(line[cut[quarter] : cut[quarter + 1] + 1])
            lanes.append(
                Lane(
                    centerline=parts[0],
                    left_edge=parts[2] if ccw else parts[1],
                    right_edge=parts[1] if ccw else parts[2],
                    successors=((quarter + 1) % 4 + (0 if ccw else 4),),
                    is_connector=False,
                    turn="straight",
                    road_segment=0,
                )
            )
    road = Polygon(ring(6.0), [ring(-6.0)])
    spots = [
        ParkingSpot(x=float(x), y=float(y), yaw=yaw, length=6.0, width=2.4, in_car_park=False)
        for side in (_RADIUS + 4.7, _RADIUS - 4.7)
        for along, places in ((0, np.arange(90.0, 210.0, 6.5)), (1, np.arange(97.0, 200.0, 6.5)))
        for low in (True, False)
        for at in places
        for x, y, yaw in [
            (at, 90.0 - side if low else 210.0 + side, 0.0 if low else np.pi)
            if along == 0
            else (80.0 - side if low else 220.0 + side, at, np.pi / 2)
        ]
    ]
    crossing = Crossing(
        polygon=box(148.0, 210.0 + _RADIUS - 6.0, 152.0, 210.0 + _RADIUS + 6.0),
        path=np.array([[150.0, 210.0 + _RADIUS - 7.5], [150.0, 210.0 + _RADIUS + 7.5]]),
        road_segment=0,
    )
    end = lanes[0].centerline[-1]
    return StreetMap(
        location="boston-seaport",
        size=SIZE,
        drives_on_left=False,
        road_segments=(RoadSegment(polygon=road, is_intersection=False),),
        lanes=tuple(lanes),
        crossings=(crossing,),
        stop_lines=(
            StopLine(
                polygon=box(end[0] - 2, end[1] - 2, end[0] + 2, end[1] + 2),
                lanes=(0,),
                crossing=None,
            ),
        ),
        walkways=(Polygon(ring(9.5), [ring(6.0)]), Polygon(ring(-6.0), [ring(-9.5)])),
        car_parks=(),
        road_dividers=(),
        lane_dividers=(),
        parking_spots=tuple(spots),
        walking_paths=(ring(7.7), ring(-7.7)),
        building_lots=tuple(box(x, 110.0, x + 22.0, 190.0) for x in (95.0, 125.0, 155.0, 185.0)),
        planting_lines=(ring(10.5), ring(-10.5)),
    )
