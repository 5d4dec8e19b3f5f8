import sys
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perception.errors import InputError
from perception.geometry import rigid
from perception.synthetic import rig
from perception.synthetic.casts import GROUND, NOTHING, CameraView
from perception.synthetic.primitives import Primitives
from perception.synthetic.ray_caster import cast_camera, cast_grid, cast_lidar, cast_rays
from perception.synthetic.ray_grid import RayGrid, camera_grid, lidar_grid
from perception.synthetic.ray_outlines import Outlines
from perception.synthetic.ray_windows import Boxes, Windows

few = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 2**32 - 1)


def boxes_of(center, half_size, object_index=None, R_global_box=None, grow=1.0) -> Primitives:
    center = np.array(center, dtype=np.float64).reshape(-1, 3)
    n = len(center)
    rotation = np.broadcast_to(np.eye(3), (n, 3, 3)) if R_global_box is None else R_global_box
    return Primitives(
        center_global=center,
        R_global_box=np.array(rotation, dtype=np.float64),
        half_size=np.broadcast_to(np.array(half_size, dtype=np.float64), (n, 3)) * grow,
        object_index=np.array([-1] * n if object_index is None else object_index, dtype=np.int32),
        semantic=np.zeros(n, np.uint8),
        pattern=np.zeros(n, np.uint8),
        colors_rgb=np.zeros((n, 2, 3), np.uint8),
        pattern_scale=np.ones(n, np.float32),
        reflectivity=np.full(n, 0.3, np.float32),
        glow=np.zeros(n, np.float32),
    )


def random_rotation(rng: np.random.Generator, upright: bool) -> np.ndarray:
    quaternion = rng.normal(size=4) * ([1, 0, 0, 1] if upright else [1, 1, 1, 1])
    return rigid.transform_from_quaternion(quaternion / np.linalg.norm(quaternion), np.zeros(3))[
        :3, :3
    ]


def crowd(seed: int, grow: float = 1.0) -> Primitives:
    """Boxes 1 cm to 40 m large, around, behind and about the origin; the half of them upright."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 9))
    return boxes_of(
        rng.normal(size=(n, 3)) * 10 ** rng.uniform(-1, 1.5, size=(n, 1)),
        10 ** rng.uniform(-2, 1.3, size=(n, 3)),
        object_index=rng.integers(-1, 3, size=n),
        R_global_box=[random_rotation(rng, upright=bool(rng.random() < 0.5)) for _ in range(n)],
        grow=grow,
    )


def view_of(seed: int) -> CameraView:
    """A small camera at the origin plus 1.5 m, upright or not, whose axis is somewhere."""
    rng = np.random.default_rng(seed + 1)
    T = rigid.transform_from_quaternion([1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.5])
    T[:3, :3] = (
        random_rotation(rng, upright=bool(rng.random() < 0.5)) @ rig.T_ego_cam("CAM_FRONT")[:3, :3]
    )
    K = np.array([[40.0, 0, 33.3], [0, 44.0, 17.1], [0, 0, 1]])
    return CameraView(K_cam=K, T_global_cam=T, width_px=64, height_px=36)


def lidar_pose(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed + 2)
    T = rigid.transform_from_quaternion([1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.84])
    T[:3, :3] = random_rotation(rng, upright=bool(rng.random() < 0.7))
    return T


def looking_ahead() -> CameraView:
    """10 x 8 pixels, focal length 4 px, 2 m above the origin, looking along +x."""
    T = rig.T_ego_cam("CAM_FRONT")
    T[:3, 3] = (0, 0, 2)
    K = np.array([[4.0, 0, 5], [0, 4, 4], [0, 0, 1]])
    return CameraView(K_cam=K, T_global_cam=T, width_px=10, height_px=8)


def all_pairs(primitives: Primitives, grid: RayGrid, T_global_sensor: np.ndarray, objects: int):
    """The caster without windows: every box is tried for the whole grid."""
    T_sensor_global = rigid.inverse(T_global_sensor)
    n = len(primitives)
    boxes = Boxes(
        row=np.arange(n),
        center=np.einsum(
            "ni,ij->nj", primitives.center_global - T_global_sensor[:3, 3], T_global_sensor[:3, :3]
        ),
        R_sensor_box=np.einsum("ij,njk->nik", T_sensor_global[:3, :3], primitives.R_global_box),
        half_size=primitives.half_size,
    )
    zero = np.zeros(n, dtype=np.int64)
    windows = Windows(
        box=np.arange(n),
        column=zero,
        end_column=zero + grid.shape[1],
        line=zero,
        end_line=zero + grid.shape[0],
        reaches_near_plane=np.ones(n, dtype=bool),
    )
    outlines = Outlines.of(windows, primitives.object_index.astype(np.int64), objects)
    t, primitive = cast_grid(grid, T_global_sensor, boxes, windows, outlines, "numpy")
    return t, primitive, outlines.areas()


def test_a_box_ahead_by_hand() -> None:
    # Front face at x = 8, y and z - 2 within +-2: u, v of its edges = 5 +- 4 * 2 / 8 = 4, 6 and
    # 3, 5. Pixel centres 4.5, 5.5 and 3.5, 4.5 lie in it: 2 x 2 pixels at depth 8.
    cast = cast_camera(boxes_of([10, 0, 2], [2, 2, 2], [0]), looking_ahead(), 1)
    expected = np.full((8, 10), NOTHING)
    expected[4:] = GROUND
    expected[3:5, 4:6] = 0
    np.testing.assert_array_equal(cast.primitive, expected)
    np.testing.assert_allclose(cast.depth[3:5, 4:6], 8, rtol=1e-6)
    # Line 6, centre 6.5, looks down by (6.5 - 4) / 4: the ground 2 m below is 2 * 4 / 2.5 away.
    np.testing.assert_allclose(cast.depth[6], 3.2, rtol=1e-6)
    assert np.isinf(cast.depth[0]).all()
    assert cast.visible_px.tolist() == cast.unoccluded_px.tolist() == [4]


def test_hidden_and_overlapping_parts_by_hand() -> None:
    # Object 1 has two parts, the second inside the first's outline: 2 x 2 pixels, counted once.
    # The clutter at x = 4 covers y > 0, which is the left half of the picture (u < 5), down to
    # line 5: from line 6 on the ground is nearer.
    primitives = boxes_of(
        [[10, 0, 2], [8.5, 0, 2], [4.1, 10, 2]],
        [[2, 2, 2], [0.6, 1.9, 1.9], [0.1, 10, 10]],
        [1, 1, -1],
    )
    cast = cast_camera(primitives, looking_ahead(), 3)
    assert cast.unoccluded_px.tolist() == [0, 4, 0]
    assert cast.visible_px.tolist() == [0, 2, 0]
    assert (cast.primitive[:6, :5] == 2).all()


@pytest.mark.parametrize("half_size", [2.0, 30.0])
def test_the_lower_row_wins_a_tie(half_size: float) -> None:
    # The small box's window is worked on with others, the large one's alone.
    view = looking_ahead()
    large = CameraView(
        K_cam=view.K_cam * [[10.0], [10.0], [1.0]],
        T_global_cam=view.T_global_cam,
        width_px=100,
        height_px=80,
    )
    front = 10.0
    sizes = np.array([[half_size] * 3, [2.0] * 3, [half_size] * 3])
    primitives = boxes_of([[front + h, 0, 2] for h, _, _ in sizes], sizes)
    for backend in ("numpy", "numba"):
        if backend == "numba":
            pytest.importorskip("numba")
        primitive = cast_camera(primitives, large, 0, backend).primitive
        assert set(np.unique(primitive)) <= {0, GROUND, NOTHING}
    reverse = boxes_of([[front + h, 0, 2] for h, _, _ in sizes[1:]], sizes[1:])
    assert cast_camera(reverse, large, 0).primitive[40, 50] == 0


def test_a_box_about_the_sensor_is_not_seen() -> None:
    inside = boxes_of([0, 0, 2], [3, 3, 3])
    assert (cast_camera(inside, looking_ahead(), 0).primitive < 0).all()
    T_global_lidar = rig.T_ego_lidar()
    assert (cast_lidar(inside, T_global_lidar).primitive < 0).all()


def test_lidar_ranges_by_hand() -> None:
    # A wall behind the car at x = -20, where the revolution begins and ends (the seam); the sensor
    # is at x = 0.94. Ring 23 lies at -30.67 + 23 * 41.34 / 31 = 0.0013 degrees.
    cast = cast_lidar(boxes_of([-21, 0, 5], [1, 5, 5]), rig.T_ego_lidar())
    grid = cast.range.reshape(rig.LIDAR_AZIMUTHS, rig.LIDAR_RINGS)
    met = cast.primitive.reshape(grid.shape)[:, 23] == 0
    assert grid[0, 23] == pytest.approx(20.94, abs=1e-4)
    # It spans +-atan(5 / 20.94) = 13.43 degrees: 40 rays of 0.3321 degrees on either side.
    assert np.flatnonzero(met).tolist() == [*range(41), *range(1084 - 40, 1084)]
    # Ring 0 meets the ground at 1.84 / sin(30.67 deg) = 3.607 m.
    np.testing.assert_allclose(grid[:, 0], 3.607, atol=1e-3)
    assert np.isinf(grid[542, 31])


def test_nothing_beyond_the_lidars_range() -> None:
    pose = rig.T_ego_lidar()
    near = cast_lidar(boxes_of([0.94, 100.5, 0], [50, 1, 30]), pose)  # face at 99.5 m
    far = cast_lidar(boxes_of([0.94, 101.5, 0], [50, 1, 30]), pose)  # face at 100.5 m
    assert (near.primitive == 0).any()
    assert (far.primitive < 0).all()
    assert near.range[near.primitive == 0].max() <= rig.LIDAR_RANGE


def test_accuracy_at_a_hundred_metres() -> None:
    # Face at 100 m, seen from coordinates as large as a city's.
    view = looking_ahead()
    T = view.T_global_cam.copy()
    T[:3, 3] += (1800.0, 900.0, 0.0)
    view = CameraView(K_cam=view.K_cam, T_global_cam=T, width_px=10, height_px=8)
    cast = cast_camera(boxes_of([1900.02, 900, 2], [0.02, 60, 60]), view, 0)
    met = cast.primitive == 0
    assert met.any()
    np.testing.assert_allclose(cast.depth[met], 100, atol=1e-3)


@few
@given(seeds)
def test_camera_windows_miss_nothing(seed: int) -> None:
    primitives, view = crowd(seed), view_of(seed)
    cast = cast_camera(primitives, view, 3)
    t, primitive, areas = all_pairs(primitives, camera_grid(view), view.T_global_cam, 3)
    np.testing.assert_array_equal(cast.primitive, primitive)
    np.testing.assert_array_equal(cast.depth, t)
    np.testing.assert_array_equal(cast.unoccluded_px, areas)
    owner = np.append(primitives.object_index, [-1, -1])[primitive]
    assert cast.visible_px.tolist() == [np.count_nonzero(owner == k) for k in range(3)]


@few
@given(seeds)
def test_lidar_windows_miss_nothing(seed: int) -> None:
    primitives, pose = crowd(seed), lidar_pose(seed)
    cast = cast_lidar(primitives, pose)
    t, primitive, _ = all_pairs(primitives, lidar_grid(), pose, 3)
    stretch = np.hypot(1, lidar_grid().lines[2])[:, None]
    expected_range = (t * stretch).T.ravel()
    inside = expected_range < rig.LIDAR_RANGE * (1 - 1e-6)
    np.testing.assert_array_equal(cast.primitive[inside], primitive.T.ravel()[inside])
    np.testing.assert_allclose(cast.range[inside], expected_range[inside], rtol=1e-6)
    assert (cast.primitive[expected_range > rig.LIDAR_RANGE * (1 + 1e-6)] == NOTHING).all()


@few
@given(seeds)
def test_agrees_with_the_reference_wherever_that_is_sure(seed: int) -> None:
    # Rays along an outline may fall on either side of it. Sure is what boxes a little larger and
    # a little smaller agree about.
    view = view_of(seed)
    rays_cam = camera_grid(view).directions().reshape(-1, 3).astype(np.float64)
    rays_global = np.einsum("ij,nj->ni", view.T_global_cam[:3, :3], rays_cam)
    origin = view.T_global_cam[:3, 3]
    t, primitive = cast_rays(crowd(seed), origin, rays_global)
    other = [cast_rays(crowd(seed, grow), origin, rays_global) for grow in (0.999, 1.001)]
    sure = (other[0][1] == primitive) & (other[1][1] == primitive)
    sure &= ~((t > 50) & (primitive == GROUND))  # along the horizon the depth is not defined
    cast = cast_camera(crowd(seed), view, 3)
    np.testing.assert_array_equal(cast.primitive.ravel()[sure], primitive[sure])
    np.testing.assert_allclose(cast.depth.ravel()[sure], t[sure], rtol=1e-4)


@few
@given(seeds)
def test_numba_gives_the_same_bits(seed: int) -> None:
    pytest.importorskip("numba")
    primitives, view, pose = crowd(seed), view_of(seed), lidar_pose(seed)
    for cast in (
        lambda backend: cast_camera(primitives, view, 3, backend),
        lambda backend: cast_lidar(primitives, pose, backend),
    ):
        for name, value in vars(cast("numpy")).items():
            np.testing.assert_array_equal(getattr(cast("numba"), name), value, err_msg=name)


def test_no_boxes_at_all() -> None:
    nothing = boxes_of(np.zeros((0, 3)), np.ones(3))
    assert set(np.unique(cast_camera(nothing, looking_ahead(), 2).primitive)) == {GROUND, NOTHING}
    assert set(np.unique(cast_lidar(nothing, rig.T_ego_lidar()).primitive)) == {GROUND, NOTHING}


def test_unknown_backend() -> None:
    with pytest.raises(InputError, match='"cuda", expected one of numpy, numba'):
        cast_lidar(boxes_of([5, 0, 0], [1, 1, 1]), rig.T_ego_lidar(), "cuda")


def test_numba_is_not_installed() -> None:
    module = "perception.synthetic.ray_caster_numba"
    with mock.patch.dict(sys.modules, {"numba": None}):
        sys.modules.pop(module, None)
        with pytest.raises(InputError, match=r"pip install bev-perception\[fast\]"):
            cast_lidar(boxes_of([5, 0, 0], [1, 1, 1]), rig.T_ego_lidar(), "numba")
