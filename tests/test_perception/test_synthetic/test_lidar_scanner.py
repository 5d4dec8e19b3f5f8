import dataclasses

import numpy as np
import pytest

from perception.synthetic import rig
from perception.synthetic.casts import GROUND
from perception.synthetic.conditions import draw_conditions
from perception.synthetic.ground import Ground, Surface
from perception.synthetic.lidar_scanner import (
    CLUTTER,
    GROUND_REFLECTIVITY,
    LidarScan,
    points_per_object,
    scan_lidar,
)
from perception.synthetic.primitives import Primitives
from perception.synthetic.random_streams import stream

X0 = 50.0
"""The car stands in the middle of a square map of 100 m and looks along +x."""


def boxes_of(center, half_size, reflectivity=0.3, object_index=None) -> Primitives:
    center = np.add(center, [X0, X0, 0.0]).reshape(-1, 3)
    n = len(center)
    return Primitives(
        center_global=center,
        R_global_box=np.broadcast_to(np.eye(3), (n, 3, 3)).copy(),
        half_size=np.broadcast_to(np.array(half_size, dtype=np.float64), (n, 3)).copy(),
        object_index=np.array([-1] * n if object_index is None else object_index, dtype=np.int32),
        semantic=np.zeros(n, np.uint8),
        pattern=np.zeros(n, np.uint8),
        colors_rgb=np.zeros((n, 2, 3), np.uint8),
        pattern_scale=np.ones(n, np.float32),
        reflectivity=np.full(n, reflectivity, np.float32),
        glow=np.zeros(n, np.float32),
    )


NO_BOXES = boxes_of(np.zeros((0, 3)), np.ones(3))
CLEAR = dataclasses.replace(
    draw_conditions(stream(0, "any")),
    lidar_dropout=0.0,
    lidar_dropout_per_meter=0.0,
    lidar_range_noise=0.0,
    lidar_clutter=0.0,
)


def ground_of(surface: Surface = Surface.ASPHALT) -> Ground:
    cells = np.full((200, 200), surface, dtype=np.uint8)
    return Ground(
        cell=0.5, surface=cells, texture_rgb=np.zeros((200, 200, 3), np.uint8), layers=cells * 0
    )


def scan(
    primitives: Primitives = NO_BOXES, ground: Ground | None = None, **conditions: float
) -> LidarScan:
    T_global_lidar = rig.T_ego_lidar()
    T_global_lidar[:2, 3] += X0
    return scan_lidar(
        primitives,
        ground or ground_of(),
        T_global_lidar,
        dataclasses.replace(CLEAR, **conditions),
        stream(7, "lidar"),
    )


def test_a_wall_by_hand() -> None:
    # Face 10 m ahead of the sensor (ego x = 10.94), 2 m wide, up to 6 m high; without noise all of
    # its points lie at y = 10 in the sensor's frame, |x| <= 1, z from -1.84 to 10 tan(10.67 deg).
    result = scan(boxes_of([11.94, 0, 3], [1, 1, 3], object_index=[0]))
    wall = result.points_lidar[result.primitive == 0]
    np.testing.assert_allclose(wall[:, 1], 10.0, atol=1e-3)
    assert np.abs(wall[:, 0]).max() <= 1.0
    # 2 atan(1 / 10) = 11.42 deg hold 34 or 35 azimuths of 0.332 deg; rings -9.33 .. 10.67 deg reach
    # the wall between atan(-1.84 / 10) = -10.4 deg and atan(4.16 / 10): rings 16 .. 31.
    assert set(np.unique(wall[:, 4])) == set(range(16, 32))
    assert len(wall) == pytest.approx(16 * 35, abs=32)
    assert points_per_object(
        result, boxes_of([0, 0, 0], [1, 1, 1], object_index=[0]), 2
    ).tolist() == [
        len(wall),
        0,
    ]
    # Intensity: 0.3 of 120, squarely met, give or take 12 % of speckle.
    assert wall[:, 3].mean() == pytest.approx(36, abs=1.5)


def test_points_as_nuscenes_stores_them() -> None:
    result = scan(boxes_of([11.94, 0, 3], [1, 1, 3]))
    points = result.points_lidar
    assert points.dtype == np.float32
    assert points.flags.c_contiguous
    assert len(points) == len(result.primitive)
    intensity, ring = points[:, 3], points[:, 4]
    assert (intensity == np.rint(intensity)).all()
    assert intensity.min() >= 0
    assert intensity.max() <= 255
    elevation = np.rad2deg(np.arctan2(points[:, 2], np.hypot(points[:, 0], points[:, 1])))
    nominal = np.linspace(rig.LIDAR_ELEVATION_MIN_DEG, rig.LIDAR_ELEVATION_MAX_DEG, 32)
    np.testing.assert_allclose(elevation, nominal[ring.astype(int)], atol=1e-3)


def test_the_ground_begins_three_metres_away() -> None:
    # 1.84 / tan(30.67 deg) = 3.10 m; beyond, only two rings lie within 30 .. 100 m.
    result = scan()
    assert (result.primitive == GROUND).all()
    points = result.points_lidar
    np.testing.assert_allclose(points[:, 2], -1.84, atol=1e-3)
    distance = np.hypot(points[:, 0], points[:, 1])
    assert distance.min() == pytest.approx(3.10, abs=0.01)


def test_grazing_returns_get_lost() -> None:
    # Ring 21 (-2.67 deg) meets the ground at 39.5 m, ring 22 (-1.33 deg) at 79 m. The share that is
    # kept is s / (s + 6e-7) with s = 0.1 sin(e) / r^2 = 3.0e-6 and 3.7e-7: 0.83 and 0.38.
    # Asphalt reaches no further than 50 m: 79 m is grass (0.34: s = 1.27e-6, 0.68).
    ring = scan().points_lidar[:, 4]
    kept = [np.count_nonzero(ring == number) / rig.LIDAR_AZIMUTHS for number in (0, 21, 22)]
    assert kept == pytest.approx([1.0, 0.83, 0.68], abs=0.05)


def test_losses_by_weather() -> None:
    dry, wet = scan(), scan(lidar_dropout=0.3, lidar_dropout_per_meter=0.01)
    near = [np.count_nonzero(s.points_lidar[:, 4] == 0) / rig.LIDAR_AZIMUTHS for s in (dry, wet)]
    # Ring 0 flies 3.6 m: 0.3 + 0.036 get lost.
    assert near == pytest.approx([1.0, 0.664], abs=0.05)


def test_noise_lies_along_the_ray() -> None:
    wall = boxes_of([11.94, 0, 3], [1, 8, 3])
    exact, noisy = scan(wall), scan(wall, lidar_range_noise=0.02)
    distance = [
        np.linalg.norm(s.points_lidar[:, :3], axis=1)[s.primitive == 0] for s in (exact, noisy)
    ]
    error = distance[1] - distance[0]
    assert error.std() == pytest.approx(0.02, rel=0.1)
    assert abs(error.mean()) < 0.002


def test_surfaces_differ_in_intensity() -> None:
    mean = {
        surface: float(scan(ground=ground_of(surface)).points_lidar[:, 3].mean())
        for surface in Surface
    }
    assert sorted(mean, key=mean.__getitem__) == sorted(
        GROUND_REFLECTIVITY, key=GROUND_REFLECTIVITY.__getitem__
    )
    for paint in (Surface.WHITE_PAINT, Surface.YELLOW_PAINT):
        assert mean[paint] > 4 * mean[Surface.ASPHALT]


def test_retro_reflectors_fill_the_scale() -> None:
    result = scan(boxes_of([11.94, 0, 3], [1, 1, 3], reflectivity=0.95))
    assert (result.points_lidar[result.primitive == 0, 3] == 255).all()


def test_a_face_that_is_grazed_is_darker() -> None:
    # A long wall along x beside the car: met squarely at x = 0, at 68 degrees 10 m further.
    result = scan(boxes_of([0.94, 5, 1], [20, 1, 3]))
    wall = result.points_lidar[result.primitive == 0]
    along = np.abs(wall[:, 1])
    assert wall[along > 10, 3].mean() < 0.7 * wall[along < 1, 3].mean()


def test_rain_drops_return_from_nearby() -> None:
    result = scan(lidar_clutter=0.05)
    drops = result.points_lidar[result.primitive == CLUTTER]
    distance = np.linalg.norm(drops[:, :3], axis=1)
    # 5 % of 34,688 rays, less those which meet the ground first or lie in the car's own box.
    assert 800 < len(drops) < 1800
    assert distance.min() >= rig.LIDAR_BLIND_RANGE
    assert np.median(distance) < 4
    assert drops[:, 3].max() <= 5
    assert (scan().primitive != CLUTTER).all()


def test_nothing_on_the_car_itself() -> None:
    # A box where the bonnet is (ego x 2.5 .. 3) and one just ahead of the car (x 3.5 .. 4).
    result = scan(boxes_of([[2.75, 0, 0.7], [3.75, 0, 0.7]], [0.25, 0.3, 0.3]))
    assert np.count_nonzero(result.primitive == 0) == 0
    assert np.count_nonzero(result.primitive == 1) > 0


def test_same_stream_same_bytes_whatever_the_backend() -> None:
    pytest.importorskip("numba")
    primitives = boxes_of([[8, 3, 1], [-9, 2, 1]], [1, 1, 1])
    T_global_lidar = rig.T_ego_lidar()
    scans = [
        scan_lidar(primitives, ground_of(), T_global_lidar, CLEAR, stream(1, "a"), backend)
        for backend in ("numpy", "numpy", "numba")
    ]
    assert len({s.points_lidar.tobytes() for s in scans}) == 1
