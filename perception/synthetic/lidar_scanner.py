"""The LiDAR: one revolution of points as nuScenes stores them, with what a real sensor loses."""

import functools
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int32, Int64

from perception.synthetic import rig
from perception.synthetic.casts import GROUND, NOTHING
from perception.synthetic.conditions import Conditions
from perception.synthetic.ground import Ground, Surface
from perception.synthetic.primitives import NO_OBJECT, Primitives
from perception.synthetic.ray_caster import cast_lidar

CLUTTER = NOTHING
"""`primitive` of a return from a rain drop."""

GROUND_REFLECTIVITY = {
    Surface.GRASS: 0.34,
    Surface.ASPHALT: 0.10,
    Surface.PAVEMENT: 0.24,
    Surface.CONCRETE: 0.17,
    Surface.WHITE_PAINT: 0.75,
    Surface.YELLOW_PAINT: 0.60,
    Surface.KERB: 0.30,
    Surface.SOIL: 0.13,
}
"""Share of the light that comes back, 0..1. Source: ours, in the order of real materials in near
infrared (plants are bright there); road paint holds glass beads."""

_INTENSITY_GAIN = 120.0
"""Stored intensity of a white surface, met squarely. Source: ours; asphalt then lies near 5."""
_GRAZING_SHARE = 0.4
"""Intensity at a grazing angle against a square one: rough surfaces are no perfect Lambertian.
Source: ours."""
_RETRO_REFLECTIVITY = 0.9
"""From here on the return fills the sensor's scale. Source: ours."""
_DETECTION_LIMIT = 6e-7
"""reflectivity x cos(incidence) / range^2 [1/m^2] at which every second return is lost. Source:
ours; keeps 83 % of asphalt at 40 m, 38 % at 80 m and 97 % of a wall at 90 m."""
_SPECKLE = 0.12
"""Standard deviation of the intensity, relative. Source: ours."""
_RAIN_REFLECTIVITY = 0.01
"""A drop's; its returns are as weak as the sensor can store. Source: ours."""
_RAIN_SCALE = 2.5
"""Rain drops return from the blind range on, on average this much further [m]. Source: ours."""

_CAR_LOW_EGO, _CAR_HIGH_EGO = (-0.75, -0.9, -0.1), (3.35, 0.9, 1.6)
"""Corners of the box in which returns are taken for the car's own and left out. Source: ours, a
small hatchback."""
_CAR_REACH = 3.0
"""No part of that box is further from the sensor along any of its axes [m]."""


@dataclass(frozen=True, kw_only=True)
class LidarScan:
    """The points of one revolution, ray by ray in the order of `rig.lidar_directions`."""

    points_lidar: Float32[np.ndarray, "n 5"]
    """x, y, z [m], intensity 0..255 (whole numbers), ring."""
    primitive: Int32[np.ndarray, " n"]
    """Row of the table of primitives, `GROUND` or `CLUTTER`."""


def scan_lidar(
    primitives: Primitives,
    ground: Ground,
    T_global_lidar: Float64[np.ndarray, "4 4"],
    conditions: Conditions,
    rng: np.random.Generator,
    backend: str = "numpy",
) -> LidarScan:
    """Cast one revolution, then lose, blur and shade its returns.

    Returns that lie on the car itself are left out.

    Args:
        primitives: Everything above the ground, without the car itself.
        ground: What lies on the plane z = 0.
        T_global_lidar: Pose of the sensor, mounted as `rig.T_ego_lidar`.
        conditions: Noise and losses.
        rng: The same numbers are drawn whatever the rays meet.
        backend: See `ray_caster.BACKENDS`.

    Raises:
        InputError: The backend is not known or not installed.
    """
    cast = cast_lidar(primitives, T_global_lidar, backend)
    luck, blur, speckle, drop_range = _draw(len(cast.range), conditions, rng)
    is_rain = drop_range < cast.range
    ray = np.flatnonzero((cast.primitive != NOTHING) | is_rain)
    directions_lidar = _unit_directions().take(ray, axis=1)
    true_range, primitive, is_rain = cast.range[ray], cast.primitive[ray], is_rain[ray]
    true_range[is_rain], primitive[is_rain] = drop_range[ray[is_rain]], CLUTTER

    reflectivity, cosine = _surfaces(
        primitives, ground, T_global_lidar, directions_lidar, true_range, primitive
    )
    signal = reflectivity * cosine / (true_range * true_range)
    lost = conditions.lidar_dropout + conditions.lidar_dropout_per_meter * true_range
    kept = (1.0 - lost) * signal / (signal + np.float32(_DETECTION_LIMIT))
    measured = true_range + conditions.lidar_range_noise * blur[ray]
    points = directions_lidar * measured
    is_kept = (luck[ray] < kept) & (measured >= rig.LIDAR_BLIND_RANGE) & ~_on_own_car(points)

    share = _GRAZING_SHARE + (1.0 - _GRAZING_SHARE) * cosine
    intensity = reflectivity * share * (1.0 + _SPECKLE * speckle[ray]) * _INTENSITY_GAIN
    intensity[reflectivity >= _RETRO_REFLECTIVITY] = 255.0
    table = np.concatenate(
        [points, np.clip(np.rint(intensity), 0, 255)[None], (ray % rig.LIDAR_RINGS)[None]],
        dtype=np.float32,
    )
    return LidarScan(
        points_lidar=np.ascontiguousarray(table.compress(is_kept, axis=1).T),
        primitive=primitive[is_kept],
    )


def points_per_object(
    scan: LidarScan, primitives: Primitives, num_objects: int
) -> Int64[np.ndarray, " objects"]:
    """Points on each annotated object, by the table of primitives that was scanned."""
    index = primitives.object_index[scan.primitive[scan.primitive >= 0]]
    return np.bincount(index[index != NO_OBJECT], minlength=num_objects)


def _draw(
    num_rays: int, conditions: Conditions, rng: np.random.Generator
) -> tuple[Float32[np.ndarray, " rays"], ...]:
    """Luck 0..1, two normal numbers and the range of the rain drop that each ray meets.

    Most rays meet no drop: infinite.
    """
    luck = rng.random(num_rays, dtype=np.float32)
    blur, speckle = rng.standard_normal((2, num_rays), dtype=np.float32)
    drop_range = np.full(num_rays, np.inf, dtype=np.float32)
    if conditions.lidar_clutter > 0:
        is_met = np.flatnonzero(rng.random(num_rays, dtype=np.float32) < conditions.lidar_clutter)
        behind = _RAIN_SCALE * rng.standard_exponential(len(is_met), dtype=np.float32)
        drop_range[is_met] = rig.LIDAR_BLIND_RANGE + behind
    return luck, blur, speckle, drop_range


def _surfaces(
    primitives: Primitives,
    ground: Ground,
    T_global_lidar: Float64[np.ndarray, "4 4"],
    directions_lidar: Float32[np.ndarray, "3 n"],
    true_range: Float32[np.ndarray, " n"],
    primitive: Int32[np.ndarray, " n"],
) -> tuple[Float32[np.ndarray, " n"], Float32[np.ndarray, " n"]]:
    """Reflectivity and cosine of incidence where rays end."""
    reflectivity = np.full(len(primitive), _RAIN_REFLECTIVITY, dtype=np.float32)
    cosine = np.ones(len(primitive), dtype=np.float32)
    R_global_lidar, origin_global = T_global_lidar[:3, :3], T_global_lidar[:3, 3]

    down = np.flatnonzero(primitive == GROUND)
    direction_global = np.einsum(
        "ij,jn->in", R_global_lidar.astype(np.float32), directions_lidar.take(down, axis=1)
    )
    x, y = origin_global[:2, None] + direction_global[:2] * true_range[down]
    by_surface = np.array([GROUND_REFLECTIVITY[surface] for surface in Surface], dtype=np.float32)
    reflectivity[down] = by_surface[ground.surface_at(x, y)]
    cosine[down] = -direction_global[2]

    hit = np.flatnonzero(primitive >= 0)
    row = primitive[hit]
    R_lidar_box = np.einsum("ji,njk->ikn", R_global_lidar, primitives.R_global_box)
    offset_lidar = np.einsum("ji,nj->in", R_global_lidar, primitives.center_global - origin_global)
    center_box = (R_lidar_box * offset_lidar[:, None]).sum(axis=0).astype(np.float32)
    half_size = primitives.half_size.T.astype(np.float32)
    direction_box = np.einsum(
        "ikn,in->kn",
        R_lidar_box.astype(np.float32).take(row, axis=2),
        directions_lidar.take(hit, axis=1),
    )
    # The face that is met is the one that the point lies closest to, in half sizes.
    point_box = direction_box * true_range[hit] - center_box.take(row, axis=1)
    face = np.argmax(np.abs(point_box) / half_size.take(row, axis=1), axis=0)
    cosine[hit] = np.abs(direction_box[face, np.arange(len(hit))])
    reflectivity[hit] = primitives.reflectivity[row]
    return reflectivity, cosine


def _on_own_car(points_lidar: Float32[np.ndarray, "3 n"]) -> Bool[np.ndarray, " n"]:
    near = np.flatnonzero(np.abs(points_lidar).max(axis=0) < _CAR_REACH)
    T_ego_lidar = rig.T_ego_lidar()
    points_ego = np.einsum("ij,jn->in", T_ego_lidar[:3, :3], points_lidar[:, near])
    points_ego += T_ego_lidar[:3, 3:]
    low, high = np.array([_CAR_LOW_EGO, _CAR_HIGH_EGO])[:, :, None]
    is_own = np.zeros(points_lidar.shape[1], dtype=bool)
    is_own[near] = ((points_ego > low) & (points_ego < high)).all(axis=0)
    return is_own


@functools.lru_cache(maxsize=1)
def _unit_directions() -> Float32[np.ndarray, "3 rays"]:
    directions_lidar = np.ascontiguousarray(rig.lidar_directions().T, dtype=np.float32)
    directions_lidar.flags.writeable = False
    return directions_lidar
