import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perception.geometry import rigid
from perception.geometry.frustum import Frustum, PoolTable, pool_table, stable_argsort
from perception.geometry.grid import BevGrid

FRUSTUM = Frustum(stride=8, depth_min=1.0, depth_max=13.0, depth_step=3.0, z_min=-1.0, z_max=3.0)
GRID = BevGrid(x_min=-8.0, x_max=12.0, y_min=-6.0, y_max=6.0, cell=2.0)
HEIGHT, WIDTH = 3, 4  # cells of the feature map: an image of 32 x 24 px
K = np.array([[20.0, 0, 16], [0, 20, 12], [0, 0, 1]])
T_MOUNT_CAM = rigid.transform_from_quaternion((0.5, -0.5, 0.5, -0.5), (0, 0, 0))


def camera_at(yaw: float, x: float, y: float, z: float) -> np.ndarray:
    """`T_ego_cam` of a level camera that looks along a heading."""
    return rigid.transform_from_quaternion(rigid.quaternion_from_yaw(yaw), (x, y, z)) @ T_MOUNT_CAM


def table_of(*T_ego_cam: np.ndarray | None) -> PoolTable:
    return pool_table(FRUSTUM, GRID, HEIGHT, WIDTH, [K] * len(T_ego_cam), T_ego_cam)


def cells_by_brute_force(T_ego_cam: list[np.ndarray | None]) -> dict[int, list[tuple[int, int]]]:
    """Cell -> (depth index, feature index) of its points, one point at a time."""
    cells: dict[int, list[tuple[int, int]]] = {}
    for cam, T in enumerate(T_ego_cam):
        for d in range(4):
            for h in range(HEIGHT):
                for w in range(WIDTH):
                    if T is None:
                        continue
                    depth = 1.0 + 3.0 * (d + 0.5)
                    u, v = 8 * (w + 0.5), 8 * (h + 0.5)
                    point_cam = [(u - 16) / 20 * depth, (v - 12) / 20 * depth, depth, 1]
                    x, y, z, _ = T @ point_cam
                    column, row = np.floor((x + 8) / 2), np.floor((y + 6) / 2)
                    if 0 <= column < 10 and 0 <= row < 6 and -1 <= z < 3:
                        index = ((cam * 4 + d) * HEIGHT + h) * WIDTH + w
                        feature = (cam * HEIGHT + h) * WIDTH + w
                        cells.setdefault(int(row * 10 + column), []).append((index, feature))
    return cells


def lists_of(table: PoolTable) -> dict[int, list[tuple[int, int]]]:
    pairs = list(zip(table.point_depth.tolist(), table.point_feat.tolist(), strict=True))
    bounds = zip(table.cell_start[:-1], table.cell_start[1:], strict=True)
    return {cell: pairs[a:b] for cell, (a, b) in enumerate(bounds) if b > a}


offsets = st.floats(-5, 5)
cameras = st.one_of(
    st.none(), st.builds(camera_at, st.floats(-3.2, 3.2), offsets, offsets, st.floats(0.3, 2.0))
)


@given(st.lists(cameras, min_size=1, max_size=3))
@settings(deadline=None)
def test_lists_equal_those_of_a_plain_loop(T_ego_cam: list) -> None:
    # move the rig by an odd amount, so that no point lies on an edge between cells
    T_ego_cam = [None if T is None else camera_at(0.123, 0.0137, 0.0071, 0.0029)
                 @ np.linalg.inv(T_MOUNT_CAM) @ T for T in T_ego_cam]  # fmt: skip
    table = table_of(*T_ego_cam)
    assert lists_of(table) == cells_by_brute_force(T_ego_cam)
    assert table.cell_start[0] == 0
    assert table.cell_start[-1] == len(table.point_depth)
    assert len(table.cell_start) == GRID.num_cells + 1
    assert {a.dtype for a in vars(table).values()} == {np.dtype(np.int32)}


def test_a_point_on_a_pixels_ray_by_hand() -> None:
    """Camera at (0, 0, 1) that looks along x; pixel column 0, row 1, depth bin 1.

    u = 4, v = 12, depth = 1 + 3 * 1.5 = 5.5: y = -(4 - 16) / 20 * 5.5 = 3.3, z = 1, x = 5.5.
    Column floor((5.5 + 8) / 2) = 6, row floor((3.3 + 6) / 2) = 4: cell 4 * 10 + 6 = 46.
    Depth index (1 * 3 + 1) * 4 + 0 = 16; feature index 1 * 4 + 0 = 4.
    """
    lists = lists_of(table_of(camera_at(0.0, 0, 0, 1)))
    assert (16, 4) in lists[46]


def test_heights_outside_the_range_are_dropped() -> None:
    # 10 m up every ray ends above 3 m: at most 12 * 8 / 20 = 4.6 m below the camera
    assert len(table_of(camera_at(0.0, 0, 0, 10)).point_depth) == 0


def test_cameras_without_data_leave_their_indices_free() -> None:
    T = camera_at(0.0, 0, 0, 1)
    both, second = table_of(T, T), table_of(None, T)
    num_points, num_pixels = 4 * HEIGHT * WIDTH, HEIGHT * WIDTH
    assert second.point_depth.min() >= num_points
    assert second.point_feat.min() >= num_pixels
    of_second = both.point_depth >= num_points
    np.testing.assert_array_equal(both.point_depth[of_second], second.point_depth)
    nothing = table_of(None, None)
    assert len(nothing.point_depth) == len(nothing.point_feat) == 0
    assert not nothing.cell_start.any()


def test_inputs_are_not_modified() -> None:
    T, intrinsics = camera_at(0.3, 1, 0, 1), K.copy()
    before = T.copy()
    pool_table(FRUSTUM, GRID, HEIGHT, WIDTH, [intrinsics], [T])
    np.testing.assert_array_equal(T, before)
    np.testing.assert_array_equal(intrinsics, K)


# few values, so that keys repeat, and that they differ in their low or in their high 16 bits
wide_keys = st.builds(lambda high, low: high * 65_536 + low, st.integers(0, 2), st.integers(0, 3))


@given(st.lists(wide_keys, max_size=50), st.sampled_from([200_000, 65_536]))
def test_the_order_is_stable_for_narrow_and_wide_keys(keys: list[int], num_keys: int) -> None:
    array = np.array(keys, np.int32) % num_keys
    np.testing.assert_array_equal(stable_argsort(array, num_keys), np.argsort(array, kind="stable"))


@pytest.mark.parametrize(
    "change", [{"depth_min": 0.0}, {"depth_max": 1.0}, {"depth_max": 12.0}, {"depth_step": -3.0}]
)
def test_impossible_depths_are_refused(change: dict) -> None:
    values = vars(FRUSTUM) | change
    with pytest.raises(ValueError, match="expected a whole number in front of the camera"):
        Frustum(**values)
