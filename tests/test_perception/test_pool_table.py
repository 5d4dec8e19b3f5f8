import dataclasses

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pool_tables import points_of

from perception import native
from perception.geometry import rigid
from perception.geometry.frustum import Frustum
from perception.geometry.grid import BevGrid
from perception.geometry.pool_table import (
    PoolTable,
    PoolTableCache,
    pool_table,
    table_fault,
    table_key,
)

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
    lists: dict[int, list[tuple[int, int]]] = {}
    for depth, pixel, cell in np.transpose(points_of(table.runs, table.cell_start, WIDTH)).tolist():
        lists.setdefault(cell, []).append((depth, pixel))
    return lists


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
    found = {cell: sorted(points) for cell, points in lists_of(table).items()}
    assert found == cells_by_brute_force(T_ego_cam)
    assert table.cell_start[0] == 0
    assert table.cell_start[-1] == len(table.runs)
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
    assert len(table_of(camera_at(0.0, 0, 0, 10)).runs) == 0


def test_cameras_without_data_leave_their_indices_free() -> None:
    T = camera_at(0.0, 0, 0, 1)
    both, second = table_of(T, T), table_of(None, T)
    num_points, num_pixels = 4 * HEIGHT * WIDTH, HEIGHT * WIDTH
    assert second.runs[:, 0].min() >= num_points
    assert second.runs[:, 1].min() >= num_pixels
    of_second = both.runs[:, 0] >= num_points
    np.testing.assert_array_equal(both.runs[of_second], second.runs)
    nothing = table_of(None, None)
    assert nothing.runs.shape == (0, 3)
    assert not nothing.cell_start.any()


def test_inputs_are_not_modified() -> None:
    T, intrinsics = camera_at(0.3, 1, 0, 1), K.copy()
    before = T.copy()
    pool_table(FRUSTUM, GRID, HEIGHT, WIDTH, [intrinsics], [T])
    np.testing.assert_array_equal(T, before)
    np.testing.assert_array_equal(intrinsics, K)


def test_runs_are_as_long_as_can_be_and_in_order() -> None:
    """Level camera 1 m high, rows at v = 4, 12, 20 px: the rays of rows 0 and 1 rise or are level.

    Depth bin 0 (2.5 m): z = 1 - (v - 12) / 20 * 2.5 = 2, 1, 0: all count, x = 2.5 for all: one run
    of 3 rows per column. Depth bin 3 (11.5 m): z = 5.6, 1, -3.6: only row 1 counts.
    """
    table = table_of(camera_at(0.0, 0, 0, 1))
    runs = table.runs.tolist()
    assert [0 * 12 + 2, 2, 3] in runs  # bin 0, column 2, from row 0
    assert [3 * 12 + 4 + 2, 4 + 2, 1] in runs  # bin 3, column 2, row 1
    cell = np.repeat(np.arange(GRID.num_cells), np.diff(table.cell_start))
    bin_, h, w = np.unravel_index(table.runs[:, 0], (4, HEIGHT, WIDTH))
    order = np.lexsort((h, w, bin_, cell))
    np.testing.assert_array_equal(order, np.arange(len(runs)))


def test_a_table_s_name_follows_all_that_it_is_made_from() -> None:
    T = camera_at(0.0, 0, 0, 1)
    arguments = {
        "frustum": FRUSTUM, "grid": GRID, "feature_height": HEIGHT, "feature_width": WIDTH,
        "K_img_aug": [K, K], "T_ego_cam": [T, None],
    }  # fmt: skip
    changes = [
        {"frustum": dataclasses.replace(FRUSTUM, z_max=3.5)},
        {"grid": dataclasses.replace(GRID, cell=1.0)},
        {"feature_height": 4},
        {"feature_width": 5},
        {"K_img_aug": [K, K + 1e-9]},
        {"T_ego_cam": [T, T]},
        {"T_ego_cam": [None, T]},
    ]
    names = [table_key(**arguments | change) for change in [{}, *changes]]
    assert len(set(names)) == len(names)
    assert table_key(**arguments | {"K_img_aug": [K.copy(), K.copy()]}) == names[0]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({(0, 0): -1}, "run 0 is"),
        ({(0, 0): 2 * 4 * 12}, "run 0 is"),
        ({(1, 1): 24}, "run 1 is"),  # another pixel than the depth's
        ({(0, 2): 0}, "run 0 is"),
        ({(0, 2): 4}, "run 0 is"),  # HEIGHT is 3
        ({(1, 2): 2**31 - 1}, "run 1 is"),
        ({(2, 0): -5}, None),  # padding
    ],
)
def test_a_run_outside_the_feature_map_is_a_fault(change: dict, fault: str | None) -> None:
    # camera 1, bin 0, rows 0-2 of column 2; camera 0, bin 3, row 1 of column 3; a row of padding
    runs = np.array([[48 + 2, 12 + 2, 3], [36 + 7, 7, 1], [0, 0, 1]], np.int32)
    for place, value in change.items():
        runs[place] = value
    cell_start = np.array([0, 1, 1, 2], np.int32)
    found = table_fault(runs, cell_start, 2, 4, HEIGHT, WIDTH)
    assert found is None if fault is None else found.startswith(fault)


HOSTILE_STARTS = (
    [0, 2**31 - 1, -(2**31), -1, 2],  # differences that wrap around to positive ones
    [0, 2**31 - 1, -2, 0],
    [0, -(2**31), 2**31 - 1, 3],
    [-(2**31), 2**31 - 1],
    [0, 2**31 - 1],
    [0, 0, 4],
    [0, 1, 0, 3],
)
EDGES = [-(2**31), -1, 0, 1, 2, 3, 12, 47, 95, 46341, 2**31 - 1]


def faults(monkeypatch, runs: list, cell_start: list, *sizes: int) -> list[str | None]:
    """Of a table: with the library, where there is one, and without it."""
    table = np.array(runs, np.int32).reshape(-1, 3), np.array(cell_start, np.int32)
    found = [table_fault(*table, *sizes)]
    with monkeypatch.context() as context:
        context.setattr("perception.native.library", lambda: None)
        found.append(table_fault(*table, *sizes))
    if native.library() is not None:
        checked = native.library().pool_table_fault(*table, sizes)
        assert (checked is None) == (found[1] is None), (checked, found[1])
    return found


@pytest.mark.parametrize("cell_start", HOSTILE_STARTS)
def test_starts_that_wrap_around_are_a_fault(monkeypatch, cell_start: list[int]) -> None:
    for fault in faults(monkeypatch, [[0, 0, 1]] * 3, cell_start, 2, 4, HEIGHT, WIDTH):
        assert fault == "cell_start does not rise from 0 to at most 3 runs"


@settings(
    deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    runs=st.lists(st.tuples(*[st.sampled_from(EDGES)] * 3), min_size=1, max_size=3),
    cell_start=st.one_of(
        st.just([0, 1]), st.lists(st.sampled_from(EDGES), min_size=2, max_size=4),
    ),
    sizes=st.one_of(
        st.just((2, 4, HEIGHT, WIDTH)), st.tuples(*[st.sampled_from([1, 2, 46341, 2**31])] * 4)
    ),
)  # fmt: skip
def test_every_checker_refuses_the_same_tables(monkeypatch, runs, cell_start, sizes) -> None:
    if cell_start[0] == 0 and cell_start[-1] == 0 and max(sizes) > 2:
        return  # no run is read: only the library looks at the sizes
    with_library, without = faults(monkeypatch, runs, cell_start, *sizes)
    assert with_library == without


@pytest.mark.parametrize("cell_start", [[1, 2], [0, 2, 1, 2], [0, 4], [0, -1], []])
def test_starts_that_do_not_rise_are_a_fault(cell_start: list[int]) -> None:
    runs = np.array([[0, 0, 1]] * 3, np.int32)
    assert table_fault(runs, np.array(cell_start, np.int32), 1, 4, HEIGHT, WIDTH) is not None


def test_a_built_table_has_no_fault() -> None:
    table = table_of(camera_at(0.3, 1, 0, 1), None, camera_at(2.0, 0, 0, 2))
    assert table_fault(table.runs, table.cell_start, 3, 4, HEIGHT, WIDTH) is None
    assert table_fault(table.runs, table.cell_start, 2, 4, HEIGHT, WIDTH) is not None


def test_a_rig_that_stands_still_gets_its_table_once() -> None:
    cache = PoolTableCache(size=2)
    rigs = [camera_at(yaw, 0, 0, 1) for yaw in (0.0, 0.5, 1.0)]
    first, second = (cache.table(FRUSTUM, GRID, HEIGHT, WIDTH, [K], [T]) for T in rigs[:2])
    np.testing.assert_array_equal(first.runs, table_of(rigs[0]).runs)
    assert cache.table(FRUSTUM, GRID, HEIGHT, WIDTH, [K], [rigs[0].copy()]) is first
    cache.table(FRUSTUM, GRID, HEIGHT, WIDTH, [K], [rigs[2]])  # the second is the oldest now
    assert cache.table(FRUSTUM, GRID, HEIGHT, WIDTH, [K], [rigs[0]]) is first
    again = cache.table(FRUSTUM, GRID, HEIGHT, WIDTH, [K], [rigs[1]])
    assert again is not second
    np.testing.assert_array_equal(again.runs, second.runs)
