"""The plan of a location: which streets there are, and where they meet.

In the plan's frame streets run along the axes; `street_warp` bends it. A stretch is a street
between two junctions:

    station  0        start                       end
             |          |   lane, lane, ...        |
             o----------+--------------------------+----------o
          junction     stop line               stop line   junction
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float64

DIRECTIONS = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
"""Of a junction's arms, counter-clockwise."""
RING_HALF_SIZE = 135.0
"""The outermost streets lie about here [m]. Source: ours, leaves room for houses within the map."""
SPACING_JITTER = 0.09
"""Of the distance between streets. Source: ours."""
CROSSING_CLEARANCE = 0.5
"""From the end of the rounded corner to the crossing [m]. Source: ours."""
STOP_CLEARANCE = 1.0
"""From the crossing to the stop line [m]. Source: ours."""


@dataclass(frozen=True, kw_only=True)
class Street:
    """The cross section that a street keeps over its whole length."""

    position: float
    """Coordinate across the street, in the plan [m]."""
    num_lanes: int
    """In each direction."""
    lane_width: float
    """The same in all of a plan, so that lanes keep it round bends [m]."""

    @property
    def half_width(self) -> float:
        """From the middle to the kerb [m]."""
        return self.num_lanes * self.lane_width


@dataclass(frozen=True, kw_only=True)
class Arm:
    """Where a stretch meets a junction."""

    direction: int
    """Outwards, index into `DIRECTIONS`."""
    street: Street
    stretch: int
    """Index into `StreetPlan.stretches`."""
    reach: float
    """From the junction's middle to the stop line [m]."""
    crossing_depth: float
    """Along the road [m]; 0 where there is no crossing."""


@dataclass(frozen=True, kw_only=True)
class Junction:
    """A place where two to four stretches meet."""

    center_plan: Float64[np.ndarray, " 2"]
    corner_radius: float
    arms: tuple[Arm, ...]
    """Counter-clockwise."""


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """A street between two junctions, along +x or +y."""

    street: Street
    origin_plan: Float64[np.ndarray, " 2"]
    axis: int
    """0 along x, 1 along y."""
    start: float
    """Station of its beginning [m]."""
    end: float
    open_start: bool
    """Whether the map ends there."""
    open_end: bool
    walkway_width: float

    def plan(self, station: float, offset: float) -> Float64[np.ndarray, " 2"]:
        """Point at a station, `offset` to the left of the middle [m]."""
        return self.origin_plan + station * DIRECTIONS[self.axis] + offset * self.left

    @property
    def left(self) -> Float64[np.ndarray, " 2"]:
        """Unit vector to the left of the middle line."""
        return DIRECTIONS[self.axis + 1]

    def rectangle(
        self, stations: tuple[float, float], offsets: tuple[float, float]
    ) -> Float64[np.ndarray, "4 2"]:
        """Corners: first the smaller station from offset to offset, then back at the larger."""
        (s, t), (o, p) = stations, offsets
        along, across = DIRECTIONS[self.axis], DIRECTIONS[self.axis + 1]
        corners = np.outer([s, s, t, t], along) + np.outer([o, p, p, o], across)
        return self.origin_plan + corners


@dataclass(frozen=True, kw_only=True)
class StreetPlan:
    """All streets of a location."""

    junctions: tuple[Junction, ...]
    stretches: tuple[Stretch, ...]


@dataclass(kw_only=True)
class _Draft:
    """Stretches and arms while junctions are visited one by one."""

    rng: np.random.Generator
    rows: list[Street]
    columns: list[Street]
    arms: dict[tuple[int, int], list[Arm]] = field(default_factory=dict)
    radius: dict[tuple[int, int], float] = field(default_factory=dict)
    stretches: list[Stretch] = field(default_factory=list)

    def lay(self, axis: int, nodes: tuple[tuple[int, int] | None, ...], tail: float) -> None:
        """Lay a stretch between two nodes; a missing one means a tail that leaves the map."""
        known = next(node for node in nodes if node is not None)
        street = (self.rows, self.columns)[axis][known[1 - axis]]
        origin = np.array([self.columns[known[0]].position, self.rows[known[1]].position])
        ends = []
        for end, node in enumerate(nodes):
            sign = 1 - 2 * end
            if node is None:
                ends.append(-sign * tail)
                continue
            reach, depth = self._reach(node, axis)
            center = (self.columns, self.rows)[axis][node[axis]].position - origin[axis]
            ends.append(float(center + sign * reach))
            self.arms[node].append(
                Arm(
                    direction=axis + 2 * end,
                    street=street,
                    stretch=len(self.stretches),
                    reach=reach,
                    crossing_depth=depth,
                )
            )
        self.stretches.append(
            Stretch(
                street=street,
                origin_plan=origin,
                axis=axis,
                start=ends[0],
                end=ends[1],
                open_start=nodes[0] is None,
                open_end=nodes[1] is None,
                walkway_width=float(self.rng.uniform(2.4, 4.0)),
            )
        )

    def _reach(self, node: tuple[int, int], axis: int) -> tuple[float, float]:
        cross = (self.columns, self.rows)[axis][node[axis]]
        is_corner = node[0] in (0, len(self.columns) - 1) and node[1] in (0, len(self.rows) - 1)
        has_crossing = not is_corner and self.rng.random() < 0.88
        depth = float(self.rng.uniform(3.0, 4.2)) if has_crossing else 0.0
        reach = cross.half_width + self.radius[node] + CROSSING_CLEARANCE
        return reach + depth + (STOP_CLEARANCE if has_crossing else 0.0), depth


def draw_plan(rng: np.random.Generator) -> StreetPlan:
    """An irregular grid of three or four streets each way, closed by a ring.

    The streets inside end at the ring, or leave the map beyond it. Half of the streets or more
    have two lanes in each direction.
    """
    counts = ((4, 4), (4, 3), (3, 4))[rng.integers(3)]
    wide = rng.permutation(np.arange(sum(counts)) < np.ceil(0.55 * sum(counts)))
    lane_width = float(rng.uniform(3.2, 3.6))
    columns = _streets(rng, wide[: counts[0]].tolist(), lane_width)
    rows = _streets(rng, wide[counts[0] :].tolist(), lane_width)
    draft = _Draft(rng=rng, rows=rows, columns=columns)
    for node in np.ndindex(*counts):
        i, j = int(node[0]), int(node[1])
        draft.arms[i, j] = []
        draft.radius[i, j] = float(rng.uniform(5.0, 8.0))
    skipped = _one_without(rng, counts)
    for i, j in draft.arms:
        if i + 1 < counts[0]:
            draft.lay(0, ((i, j), (i + 1, j)), 0.0)
        if j + 1 < counts[1] and (i, j) != skipped:
            draft.lay(1, ((i, j), (i, j + 1)), 0.0)
    _leave_the_map(draft, counts)
    junctions = tuple(
        Junction(
            center_plan=np.array([columns[i].position, rows[j].position]),
            corner_radius=draft.radius[i, j],
            arms=tuple(sorted(arms, key=lambda arm: arm.direction)),
        )
        for (i, j), arms in draft.arms.items()
    )
    return StreetPlan(junctions=junctions, stretches=tuple(draft.stretches))


def _streets(rng: np.random.Generator, is_wide: Sequence[bool], lane_width: float) -> list[Street]:
    count = len(is_wide)
    even = np.linspace(-RING_HALF_SIZE, RING_HALF_SIZE, count)
    jitter = SPACING_JITTER * (even[1] - even[0])
    positions = even + rng.uniform(-jitter, jitter, count)
    return [
        Street(
            position=float(position),
            num_lanes=2 if wide else 1,
            lane_width=lane_width,
        )
        for position, wide in zip(positions, is_wide, strict=True)
    ]


def _one_without(rng: np.random.Generator, counts: tuple[int, int]) -> tuple[int, int] | None:
    """Foot of a stretch along y that is left out; both of its junctions keep three arms."""
    if counts != (4, 4) or rng.random() < 0.4:
        return None
    return (int(rng.integers(1, 3)), 1)


def _leave_the_map(draft: _Draft, counts: tuple[int, int]) -> None:
    """Lead about half of the inner streets' ends out of the map."""
    for axis, count in enumerate(counts):
        for inner in range(1, counts[1 - axis] - 1):
            for last in (False, True):
                if draft.rng.random() < 0.5:
                    continue
                along = count - 1 if last else 0
                node = (along, inner) if axis == 0 else (inner, along)
                tail = float(draft.rng.uniform(40.0, 48.0))
                draft.lay(axis, (node, None) if last else (None, node), tail)
