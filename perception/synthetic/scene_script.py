"""What happens in a scene: who is where at every moment."""

from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float64, Int64

from perception.synthetic.conditions import Conditions
from perception.synthetic.primitives import Primitives
from perception.synthetic.tracks import START_TIME
from perception.taxonomy import DETECTION_CLASS_OF_CATEGORY

MOVING_SPEED = 0.2
"""What is faster counts as moving [m/s]. Source: as `perception.taxonomy.attribute_name`."""
_TABLE_STEP = 0.02
"""Of the table of poses [s]; at 3 m/s^2 the way between two rows is straight within 0.2 mm."""


@runtime_checkable
class Track(Protocol):
    """Motion over the ground."""

    def poses(self, times: Float64[np.ndarray, " t"]) -> Float64[np.ndarray, "t 3"]:
        """x, y [m] and yaw [rad, continuous] in the global frame at times since the start [s]."""


@dataclass(frozen=True, kw_only=True)
class Actor:
    """An annotated object."""

    category: str
    """nuScenes' category, such as "vehicle.car"."""
    size: tuple[float, float, float]
    """Length, width, height [m]; the box stands on the ground."""
    model: Primitives
    """Its parts in its own frame (x forward, y left, origin on the ground below the middle of the
    box), all inside the box."""
    track: Track


@dataclass(frozen=True, kw_only=True)
class SceneScript:
    """A scene, ready for the sensors."""

    name: str
    location: str
    description: str
    conditions: Conditions
    duration: float
    """Tracks hold for -1 .. duration + 1 [s]."""
    ego: Track
    """Motion of the car's `ego` frame."""
    actors: tuple[Actor, ...]
    clutter: Primitives
    """Buildings, trees, posts."""

    def actor_poses(self, times: Float64[np.ndarray, " t"]) -> Float64[np.ndarray, "t actors 3"]:
        """x, y [m] and yaw [rad, continuous] of all actors, global, at times since the start [s].

        From a table every 20 ms: within 1 mm of the tracks, and fast for a single time.
        """
        table = self._pose_table
        place = np.clip((times - START_TIME) / _TABLE_STEP, 0.0, len(table) - 1.001)
        row = place.astype(np.int64)
        share = (place - row)[:, None, None]
        return table[row] * (1 - share) + table[row + 1] * share

    def attribute(self, actor: int, time: float) -> str:
        """NuScenes attribute of an actor at a time [s]; "" for classes that have none.

        A vehicle is parked when it never moves in the scene and stopped when it does at another
        time; a cycle has a rider when it moves at any time.
        """
        detection_class = DETECTION_CLASS_OF_CATEGORY[self.actors[actor].category]
        if detection_class in ("barrier", "traffic_cone"):
            return ""
        ever_moves = bool(self._top_speeds[actor] > MOVING_SPEED)
        if detection_class in ("motorcycle", "bicycle"):
            return "cycle.with_rider" if ever_moves else "cycle.without_rider"
        before, after = self.actor_poses(np.array([time - 0.05, time + 0.05]))[:, actor, :2]
        moves = bool(np.hypot(*(after - before)) / 0.1 > MOVING_SPEED)
        if detection_class == "pedestrian":
            return "pedestrian.moving" if moves else "pedestrian.standing"
        if moves:
            return "vehicle.moving"
        return "vehicle.stopped" if ever_moves else "vehicle.parked"

    def primitives_at(
        self, time: float, near_xy: Float64[np.ndarray, " 2"], radius: float
    ) -> Primitives:
        """All parts and clutter within `radius` of a point, in the global frame, at a time.

        Actors come first, in their order and whole: a part out of reach is there if its actor is
        within reach. `object_index` is the index of the actor.
        """
        clutter = _rows(self.clutter, self._clutter_near(near_xy, radius))
        if not self.actors:
            return clutter
        poses = self.actor_poses(np.array([time]))[0]
        distance = np.hypot(poses[:, 0] - near_xy[0], poses[:, 1] - near_xy[1])
        near = distance - self._actor_reach <= radius
        parts = _rows(self._parts, np.nonzero(near[self._parts.object_index])[0])
        pose = poses[parts.object_index]
        cos, sin = np.cos(pose[:, 2]), np.sin(pose[:, 2])
        R_global_actor = np.zeros((len(parts), 3, 3))
        R_global_actor[:, 0, 0], R_global_actor[:, 0, 1] = cos, -sin
        R_global_actor[:, 1, 0], R_global_actor[:, 1, 1] = sin, cos
        R_global_actor[:, 2, 2] = 1.0
        center = np.einsum("nij,nj->ni", R_global_actor, parts.center_global)
        center[:, :2] += pose[:, :2]
        R = np.einsum("nij,njk->nik", R_global_actor, parts.R_global_box)
        return Primitives.concatenate(
            [replace(parts, center_global=center, R_global_box=R), clutter]
        )

    @cached_property
    def _pose_table(self) -> Float64[np.ndarray, "rows actors 3"]:
        times = np.arange(START_TIME, self.duration - START_TIME + 2 * _TABLE_STEP, _TABLE_STEP)
        if not self.actors:
            return np.zeros((len(times), 0, 3))
        return np.stack([actor.track.poses(times) for actor in self.actors], axis=1)

    @cached_property
    def _top_speeds(self) -> Float64[np.ndarray, " actors"]:
        step = np.diff(self._pose_table[..., :2], axis=0)
        return np.hypot(step[..., 0], step[..., 1]).max(axis=0) / _TABLE_STEP

    @cached_property
    def _parts(self) -> Primitives:
        """Parts of all actors in their own frames, `object_index` set."""
        parts = Primitives.concatenate([actor.model for actor in self.actors])
        owner = np.repeat(
            np.arange(len(self.actors), dtype=np.int32), [len(a.model) for a in self.actors]
        )
        return replace(parts, object_index=owner)

    @cached_property
    def _actor_reach(self) -> Float64[np.ndarray, " actors"]:
        return np.array([np.hypot(actor.size[0], actor.size[1]) / 2 for actor in self.actors])

    @cached_property
    def _clutter_reach(self) -> Float64[np.ndarray, " n"]:
        """Radius of the upright cylinder around each box of the clutter [m]."""
        extent = np.einsum("nij,nj->ni", np.abs(self.clutter.R_global_box), self.clutter.half_size)
        return np.minimum(
            np.hypot(extent[:, 0], extent[:, 1]), np.linalg.norm(self.clutter.half_size, axis=1)
        )

    def _clutter_near(
        self, near_xy: Float64[np.ndarray, " 2"], radius: float
    ) -> Int64[np.ndarray, " k"]:
        offset = self.clutter.center_global[:, :2] - near_xy
        distance = np.hypot(offset[:, 0], offset[:, 1])
        return np.nonzero(distance - self._clutter_reach <= radius)[0]


def _rows(table: Primitives, rows: Int64[np.ndarray, " k"]) -> Primitives:
    return Primitives(**{f.name: getattr(table, f.name)[rows] for f in fields(Primitives)})
