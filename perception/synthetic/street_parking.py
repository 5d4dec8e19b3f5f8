"""Places to park beside a stretch: car parks, and strips along the kerb that belong to the road."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from perception.synthetic.street_map import ParkingSpot
from perception.synthetic.street_plan import DIRECTIONS, Stretch
from perception.synthetic.street_warp import Warp

TAPER = 2.5
"""Along the kerb, from the lane's edge to the full depth of a strip [m]. Source: ours."""
JUNCTION_CLEARANCE = 7.0
"""From the stop line to parked vehicles [m]; keeps car parks of a corner apart. Source: ours."""
SPOT_MARGIN = 0.15
"""Between neighbours, and to whatever lies beside a spot [m]. Source: ours."""
LONG_SPOT = 14.0
"""Along the road, for buses, trucks and trailers [m]. Source: ours."""

_SHARE_CAR_PARK, _SHARE_STRIP = 0.42, 0.36
_STRIPS = {"strip": (2.5, 6.0, 2.4), "long_strip": (3.6, LONG_SPOT, 3.15)}
"""Depth of a strip, length and width of its spots [m]: in a bend they must not reach the lane."""


@dataclass(frozen=True, kw_only=True)
class Roadside:
    """A part of a stretch's side where one can park."""

    stretch: int
    side: int
    """1 on the left of the stretch's middle line, -1 on the right."""
    kind: str
    """"strip", "long_strip", "row", "double" or "long"; the last three are car parks."""
    start: float
    """Station [m]."""
    end: float
    depth: float
    """From the kerb [m]."""

    @property
    def is_car_park(self) -> bool:
        """Whether it is an area of its own."""
        return self.kind not in _STRIPS

    def outline(self, stretch: Stretch) -> Float64[np.ndarray, "4 2"]:
        """Corners from the kerb at `start`, round the back, to the kerb at `end`."""
        taper = 0.0 if self.is_car_park else TAPER
        near = self.side * stretch.street.half_width
        far = near + self.side * self.depth
        return np.stack(
            [
                stretch.plan(self.start, near),
                stretch.plan(self.start + taper, far),
                stretch.plan(self.end - taper, far),
                stretch.plan(self.end, near),
            ]
        )


def draw_roadsides(rng: np.random.Generator, stretches: Sequence[Stretch]) -> list[Roadside]:
    """Give fixed shares of all sides of all stretches to car parks and strips."""
    slots = [
        (index, side, start, end)
        for index, stretch in enumerate(stretches)
        for side in (-1, 1)
        for start, end in _slots(stretch)
    ]
    roadsides = []
    for rank, slot in enumerate(rng.permutation(len(slots))):
        share = (rank + 0.5) / len(slots)
        index, side, start, end = slots[slot]
        if share < _SHARE_CAR_PARK:
            kind = ("row", "double", "row", "long")[rank % 4]
            depth = {"row": (6.2, 7.4), "double": (10.8, 12.0), "long": (7.0, 8.0)}[kind]
            length = min(float(rng.uniform(22.0, 40.0)), end - start)
            begin = start + float(rng.random()) * (end - start - length)
            drawn = (begin, begin + length, float(rng.uniform(*depth)))
        elif share < _SHARE_CAR_PARK + _SHARE_STRIP:
            kind = "long_strip" if rank % 3 == 0 else "strip"
            drawn = (start, end, _STRIPS[kind][0])
        else:
            continue
        roadsides.append(
            Roadside(
                stretch=index, side=side, kind=kind, start=drawn[0], end=drawn[1], depth=drawn[2]
            )
        )
    return sorted(roadsides, key=lambda roadside: (roadside.stretch, roadside.start))


def spots(roadside: Roadside, stretch: Stretch, side: int, warp: Warp) -> Iterator[ParkingSpot]:
    """Places in a roadside, in the global frame.

    Args:
        roadside: Where.
        stretch: The stretch that `roadside.stretch` names.
        side: 1 where one drives on the left, -1 on the right.
        warp: Takes the plan to the global frame.
    """
    along = DIRECTIONS[stretch.axis] * (1 if roadside.side == side else -1)
    across = roadside.side * stretch.left
    if roadside.kind in _STRIPS:
        _, length, width = _STRIPS[roadside.kind]
        heading = along
        start, end = roadside.start + TAPER, roadside.end - TAPER
    elif roadside.kind == "long":
        length, width, heading = LONG_SPOT, 3.8, along
        start, end = roadside.start + 0.4, roadside.end - 0.4
    else:
        length, width, heading = 5.4, 2.8, across
        start, end = roadside.start + 0.4, roadside.end - 0.4
    pitch, depth = (width, length) if heading is across else (length, width)
    middle = stretch.street.half_width + roadside.depth - depth / 2
    count = int((end - start) // pitch)
    first = (start + end - (count - 1) * pitch) / 2
    for k in range(count):
        center_plan = stretch.plan(first + k * pitch, roadside.side * middle)
        yield _spot(center_plan, heading * length, width, warp, in_car_park=roadside.is_car_park)


def _slots(stretch: Stretch) -> Iterator[tuple[float, float]]:
    start, end = stretch.start + JUNCTION_CLEARANCE, stretch.end - JUNCTION_CLEARANCE
    if stretch.open_start or stretch.open_end or end - start < 16.0:
        return
    count = 2 if end - start > 58.0 else 1
    edges = np.linspace(start, end, count + 1)
    for k in range(count):
        gap = 2.0 if count > 1 else 0.0
        yield float(edges[k]) + gap * (k > 0), float(edges[k + 1]) - gap * (k < count - 1)


def _spot(
    center_plan: Float64[np.ndarray, " 2"],
    length_plan: Float64[np.ndarray, " 2"],
    width: float,
    warp: Warp,
    *,
    in_car_park: bool,
) -> ParkingSpot:
    """The rectangle along the bay's own direction that fits into the bent bay."""
    width_plan = width * np.array([-length_plan[1], length_plan[0]]) / np.linalg.norm(length_plan)
    halves = [length_plan / 2, -length_plan / 2, width_plan / 2, -width_plan / 2]
    front, back, left, right = warp.points(center_plan + np.stack(halves))
    a, b = front - back, left - right
    length = float(np.linalg.norm(a))
    unit = a / length
    x, y = warp.points(center_plan[None])[0]
    return ParkingSpot(
        x=float(x),
        y=float(y),
        yaw=float(np.arctan2(unit[1], unit[0])),
        length=length - float(abs(unit @ b)) - SPOT_MARGIN,
        width=float(abs(unit[0] * b[1] - unit[1] * b[0])) - SPOT_MARGIN,
        in_car_park=in_car_park,
    )
