"""A scene while it is being built: who was let in so far, and what is near the car's path."""

import numpy as np
from jaxtyping import Float64

from perception.synthetic.object_models import object_model
from perception.synthetic.occupancy import Occupancy
from perception.synthetic.primitives import Primitives
from perception.synthetic.routes import line_length
from perception.synthetic.scene_script import Actor, Track
from perception.synthetic.street_map import StreetMap
from perception.synthetic.tracks import StaticTrack

EGO_SIZE = (4.1, 1.75)
"""Length and width of the car [m]. Source: a small hatchback, as nuScenes' car."""
EGO_MIDDLE = 1.3
"""How far the middle of the car lies ahead of its rear axle [m]. Source: as `EGO_SIZE`, ours."""
_CLUTTER_RADIUS = 110.0
"""Clutter that is further from the car's path hinders nobody [m]; no actor gets there."""
_LOW = 2.2
"""What hangs higher does not hinder [m]."""


class Stage:
    """Actors admitted so far, and the room they take."""

    def __init__(
        self,
        street_map: StreetMap,
        clutter: Primitives,
        duration: float,
        ego: Track,
        ego_lanes: frozenset[int],
    ) -> None:
        self.street_map = street_map
        self.duration = duration
        self.free_lanes: tuple[int, ...] = tuple(
            index
            for index, lane in enumerate(street_map.lanes)
            if not lane.is_connector and index not in ego_lanes
        )
        """Lanes outside junctions that the car does not use."""
        self.actors: list[Actor] = []
        self.occupancy = Occupancy(duration)
        self.ego_points: Float64[np.ndarray, "m 2"] = ego.poses(
            np.linspace(0.0, duration, max(2, int(duration * 2)))
        )[:, :2]
        """Where the car's rear axle is during the scene."""
        self.ego_distance = line_length(self.ego_points)
        """Length of its way [m]."""
        poses = ego.poses(self.occupancy.times)
        poses[:, 0] += EGO_MIDDLE * np.cos(poses[:, 2])
        poses[:, 1] += EGO_MIDDLE * np.sin(poses[:, 2])
        self.occupancy.add(poses, (EGO_SIZE[0] + 0.6, EGO_SIZE[1] + 0.2))
        self._add_clutter(clutter)

    def distance_to_ego(self, points: Float64[np.ndarray, "n 2"]) -> Float64[np.ndarray, " n"]:
        """Least distance of points from the car during the scene [m]."""
        offset = points[:, None] - self.ego_points[None]
        return np.hypot(offset[..., 0], offset[..., 1]).min(axis=1)

    def place(
        self,
        category: str,
        rng: np.random.Generator,
        pose: tuple[float, float, float],
        *,
        margin: float = 0.15,
    ) -> bool:
        """Add something that stands: x, y, yaw. False: there is no room."""
        size, model = object_model(category, rng)
        if not self.occupancy.admit(np.array([pose]), size[:2], margin):
            return False
        track = StaticTrack(x=pose[0], y=pose[1], yaw=pose[2])
        self.actors.append(Actor(category=category, size=size, model=model, track=track))
        return True

    def let_move(self, actor: Actor, *, margin: float) -> bool:
        """Add something that moves. False: it would come too near to others or leave the map."""
        poses = actor.track.poses(self.occupancy.times)
        edge = max(actor.size) / 2 + 1.0
        if poses[:, :2].min() < edge or poses[:, :2].max() > self.street_map.size - edge:
            return False
        if not self.occupancy.admit(poses, actor.size[:2], margin):
            return False
        self.actors.append(actor)
        return True

    def _add_clutter(self, clutter: Primitives) -> None:
        """Let nobody walk or park in a tree."""
        half = np.abs(clutter.half_size)
        low = clutter.center_global[:, 2] - half[:, 2] < _LOW
        near = self.distance_to_ego(clutter.center_global[:, :2]) - half.max(axis=1)
        for row in np.nonzero(low & (near < _CLUTTER_RADIUS))[0]:
            x, y, _ = clutter.center_global[row]
            yaw = np.arctan2(clutter.R_global_box[row, 1, 0], clutter.R_global_box[row, 0, 0])
            self.occupancy.add(
                np.array([[x, y, yaw]]), (float(2 * half[row, 0]), float(2 * half[row, 1]))
            )
