import dataclasses
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import nuscenes_writer
import pytest
from pool_tables import points_of
from toy_bundle import SPEC

from perception import model_inputs, usable_data
from perception.data.nuscenes_log import NuScenesLog
from perception.geometry import boxes, camera, rigid
from perception.geometry.frustum import Frustum
from perception.geometry.grid import BevGrid
from perception.geometry.image_crop import ImageCrop
from perception.input_spec import InputSpec
from perception.messages import LidarSweep, SensorFrame
from perception.model_inputs import prepare_frame
from perception.taxonomy import CAMERAS, LIDAR

SCENE = nuscenes_writer.SCENES[0]
# The small log's images are 160 x 90 px: halved 80 x 45, the upper 13 rows cut.
FINE = InputSpec(
    cameras=CAMERAS,
    image=ImageCrop(height_px=32, width_px=80),
    frustum=Frustum(stride=4, depth_min=1.0, depth_max=41.0, depth_step=0.5, z_min=-5.0, z_max=5.0),
    bev=BevGrid(x_min=-40.0, x_max=40.0, y_min=-40.0, y_max=40.0, cell=0.5),
    camera_grid=BevGrid(x_min=-40.0, x_max=40.0, y_min=-40.0, y_max=40.0, cell=0.5),
    pillars=SPEC.pillars,
)


@pytest.fixture(scope="module")
def frame(small_log_root: Path) -> SensorFrame:
    log = NuScenesLog(small_log_root)
    return log.keyframe(log.keyframe_tokens()[1])


def arrays_of(frame: SensorFrame) -> list[np.ndarray]:
    images, sweeps = frame.images.values(), frame.sweeps
    rig = [a for c in frame.calibration.cameras.values() for a in (c.K_cam, c.T_ego_cam)]
    return [
        *(array for image in images for array in (image.rgb, image.T_global_ego)),
        *(array for sweep in sweeps for array in (sweep.points_lidar, sweep.T_global_ego)),
        *rig,
        frame.calibration.T_ego_lidar,
        frame.T_global_ego,
    ]


def test_a_complete_frame_is_used_completely_and_not_modified(frame: SensorFrame) -> None:
    before = [array.copy() for array in arrays_of(frame)]
    prepared = prepare_frame(frame, SPEC)
    for array, copy in zip(arrays_of(frame), before, strict=True):
        np.testing.assert_array_equal(array, copy)
    assert prepared.sensors_used == (*CAMERAS, LIDAR)
    assert prepared.sensors_missing == {}
    inputs = prepared.inputs
    assert inputs.images.shape == (6, 32, 88, 3)
    assert inputs.camera_mask.tolist() == [1] * 6
    assert inputs.lidar_mask.tolist() == [1]
    assert inputs.cell_start[-1] == len(inputs.pool_runs) > 0
    assert len(inputs.pillar_cell) > 0
    assert model_inputs.TENSOR_NAMES == tuple(inputs.tensors)
    for index, name in enumerate(CAMERAS):
        cut = SPEC.image.apply(frame.images[name].rgb)
        np.testing.assert_array_equal(inputs.images[index], cut)


def test_a_thread_pool_gives_the_same_bytes(frame: SensorFrame) -> None:
    alone = prepare_frame(frame, SPEC).inputs.tensors
    with ThreadPoolExecutor(1) as pool:
        together = prepare_frame(frame, SPEC, pool).inputs.tensors
    for name, array in alone.items():
        assert array.tobytes() == together[name].tobytes()


def test_the_order_of_arrival_does_not_matter(frame: SensorFrame) -> None:
    turned = dataclasses.replace(frame, images=dict(reversed(frame.images.items())))
    alone, other = (vars(prepare_frame(f, SPEC).inputs) for f in (frame, turned))
    for name, array in alone.items():
        np.testing.assert_array_equal(array, other[name])


def test_absent_sensors_are_masked_and_named(frame: SensorFrame) -> None:
    images = {name: image for name, image in frame.images.items() if name != "CAM_BACK"}
    missing = {"CAM_BACK": "x.jpg is listed but missing"}
    dark = dataclasses.replace(frame, images=images, sweeps=(), missing=missing)
    prepared = prepare_frame(dark, SPEC)
    assert prepared.sensors_missing == {**missing, LIDAR: "no data"}
    assert prepared.sensors_used == tuple(name for name in CAMERAS if name != "CAM_BACK")
    index = CAMERAS.index("CAM_BACK")
    assert prepared.inputs.camera_mask[index] == 0
    assert not prepared.inputs.images[index].any()
    assert prepared.inputs.lidar_mask.tolist() == [0]
    assert len(prepared.inputs.pillar_cell) == 0
    num_points = SPEC.frustum.num_depths * SPEC.feature_height * SPEC.feature_width
    assert index not in prepared.inputs.pool_runs[:, 0] // num_points


def test_nothing_at_all_is_no_exception(frame: SensorFrame) -> None:
    blind = dataclasses.replace(frame, images={}, sweeps=(), T_global_ego=None)
    prepared = prepare_frame(blind, SPEC)
    assert prepared.sensors_used == ()
    assert set(prepared.sensors_missing) == {*CAMERAS, LIDAR}


@pytest.mark.parametrize(("age_ms", "kind"), [(101, "old"), (-101, "ahead")])
def test_data_of_another_time_is_masked(frame: SensorFrame, age_ms: int, kind: str) -> None:
    late = frame.images["CAM_FRONT"]
    late = dataclasses.replace(late, stamp_ns=frame.stamp_ns - age_ms * 1_000_000)
    sweep = dataclasses.replace(frame.sweeps[0], stamp_ns=late.stamp_ns)
    mixed = dataclasses.replace(frame, images={"CAM_FRONT": late}, sweeps=(sweep,))
    missing = prepare_frame(mixed, SPEC).sensors_missing
    reason = f"newest data is 0.101 s {kind}, the limit is 0.100 s"
    assert missing["CAM_FRONT"] == missing[LIDAR] == reason
    just = dataclasses.replace(late, stamp_ns=frame.stamp_ns - age_ms // 101 * 100_000_000)
    kept = dataclasses.replace(frame, images={"CAM_FRONT": just}, sweeps=())
    assert prepare_frame(kept, SPEC).sensors_used == ("CAM_FRONT",)


NOT_A_NUMBER = [np.nan, 0.0, 0.0]
ON_THE_CAR = [0.5, -0.5, 0.0]
TOO_HIGH = [8.0, 0.0, 30.0]
TOO_FAR = [800.0, 0.0, 0.0]
USABLE = [8.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("xyz", "is_used"),
    [
        ([], False),
        ([NOT_A_NUMBER] * 40, False),
        ([ON_THE_CAR, TOO_HIGH, TOO_FAR] * 1000, False),
        ([ON_THE_CAR] * 3000 + [USABLE], True),  # not among the points that are looked at first
        ([USABLE], True),
    ],
)
def test_a_lidar_without_a_usable_point_is_not_used(
    frame: SensorFrame, xyz: list[list[float]], is_used: bool
) -> None:
    points_lidar = np.ones((4, len(xyz)), np.float32)
    points_lidar[:3] = np.array(xyz, np.float32).reshape(-1, 3).T
    newest = dataclasses.replace(frame.sweeps[0], points_lidar=points_lidar)
    prepared = prepare_frame(dataclasses.replace(frame, sweeps=(newest, *frame.sweeps[1:])), SPEC)
    assert (LIDAR in prepared.sensors_used) == is_used
    assert prepared.inputs.lidar_mask.tolist() == [is_used]
    # older sweeps behind an empty one are not shown as now
    assert (len(prepared.inputs.pillar_cell) > 0) == is_used
    if not is_used:
        assert prepared.sensors_missing == {LIDAR: "no usable point"}


def test_images_of_the_wrong_size_are_masked(frame: SensorFrame) -> None:
    image = frame.images["CAM_FRONT"]
    small = dataclasses.replace(image, rgb=image.rgb[:80])
    changed = dataclasses.replace(frame, images={**frame.images, "CAM_FRONT": small})
    reason = prepare_frame(changed, SPEC).sensors_missing["CAM_FRONT"]
    assert reason == "image is 160 x 80 px, the calibration says 160 x 90"
    tall = dataclasses.replace(SPEC, image=ImageCrop(height_px=64, width_px=88))
    # 160 x 90 resized to 88 columns has 50 rows
    reasons = prepare_frame(frame, tall).sensors_missing
    assert "has 50 rows, expected 64 or more" in reasons["CAM_FRONT"]


@pytest.mark.parametrize("pixels", [np.zeros((90, 160)), np.zeros((90, 160, 4), np.uint8)])
def test_what_is_no_rgb_image_is_masked_and_named(frame: SensorFrame, pixels: np.ndarray) -> None:
    image = dataclasses.replace(frame.images["CAM_FRONT"])
    object.__setattr__(image, "rgb", pixels)  # past the checks of shapes that tests run with
    prepared = prepare_frame(
        dataclasses.replace(frame, images={**frame.images, "CAM_FRONT": image}), SPEC
    )
    assert "expected uint8 RGB" in prepared.sensors_missing["CAM_FRONT"]
    assert prepared.inputs.camera_mask[0] == 0


def test_motion_by_hand() -> None:
    # the car stood at x = 10 and now stands at x = 12, both times heading along global x
    then, now = np.eye(4), np.eye(4)
    then[0, 3], now[0, 3] = 10, 12
    T_ego_now_ego_then = usable_data.motion(now, then)
    # what was 5 m ahead then is 3 m ahead now
    moved = rigid.apply(T_ego_now_ego_then, np.array([[5.0, 0, 0]]))
    np.testing.assert_allclose(moved, [[3, 0, 0]])
    np.testing.assert_array_equal(usable_data.motion(None, then), np.eye(4))
    np.testing.assert_array_equal(usable_data.motion(now, None), np.eye(4))
    now[0, 3] = 61  # 51 m: no car has driven that way
    np.testing.assert_array_equal(usable_data.motion(now, then), np.eye(4))


def test_accumulated_sweeps_see_each_object_where_it_was(frame: SensorFrame) -> None:
    """Each sweep has 50 points on each of the two boxes, at the place of the sweep's own time."""
    config = dataclasses.replace(SPEC.pillars, num_sweeps=10)
    points_ego = usable_data.accumulate(frame, frame.sweeps, config)
    for index, sweep in enumerate(frame.sweeps):
        mine = points_ego[:, np.abs(points_ego[4] - 0.05 * index) < 1e-4]
        assert mine.shape[1] > 300
        rows_global = nuscenes_writer.boxes_global(SCENE, sweep.stamp_ns // 1000)
        rows_ego = boxes.transform(rigid.inverse(frame.T_global_ego), rows_global)
        inside = boxes.points_inside(rows_ego, mine[:3].T.astype(np.float64))
        assert inside.sum(axis=1).tolist() == [50, 50]


def test_points_on_the_car_itself_are_left_out(frame: SensorFrame) -> None:
    xyz = [[0.99, 0.99, 0], [1.0, 0, 0], [0, -1.0, 0], [-0.5, 0.5, 3]]
    points = np.array([[*point, 9] for point in xyz], np.float32).T.copy()
    sweep = LidarSweep(stamp_ns=frame.stamp_ns, points_lidar=points, T_global_ego=None)
    found = usable_data.accumulate(frame, (sweep,), SPEC.pillars)
    # the LiDAR sits at ego (0.94, 0, 1.84); its x points to the car's right, its y ahead
    np.testing.assert_allclose(found[:3].T, [[0.94, -1, 1.84], [-0.06, 0, 1.84]], atol=1e-6)


def test_which_sweeps_are_usable(frame: SensorFrame) -> None:
    def ages_ms(frame: SensorFrame, **change: float) -> list[int]:
        spec = dataclasses.replace(SPEC, pillars=dataclasses.replace(SPEC.pillars, **change))
        sweeps = usable_data.usable_sweeps(frame, spec)
        return [(frame.stamp_ns - sweep.stamp_ns) // 1_000_000 for sweep in sweeps]

    assert ages_ms(frame) == [0, 50, 100]  # num_sweeps is 3
    assert ages_ms(frame, num_sweeps=99) == list(range(0, 500, 50))
    assert ages_ms(frame, num_sweeps=99, max_sweep_age=0.2) == [0, 50, 100, 150, 200]
    assert ages_ms(dataclasses.replace(frame, T_global_ego=None)) == [0]
    lost = dataclasses.replace(frame.sweeps[1], T_global_ego=None)
    gap = dataclasses.replace(frame, sweeps=(frame.sweeps[0], lost, *frame.sweeps[2:]))
    assert ages_ms(gap) == [0, 100, 150]
    assert ages_ms(dataclasses.replace(frame, sweeps=())) == []


def test_sweeps_from_before_a_jump_of_the_poses_are_left_out(frame: SensorFrame) -> None:
    away = np.eye(4)
    away[1, 3] = 60.0
    before = [
        dataclasses.replace(sweep, T_global_ego=away @ sweep.T_global_ego)
        for sweep in frame.sweeps[1:]
    ]
    jumped = dataclasses.replace(frame, sweeps=(frame.sweeps[0], *before))
    assert usable_data.usable_sweeps(jumped, SPEC) == (frame.sweeps[0],)


def test_a_pixel_of_the_car_ahead_reaches_the_cell_of_the_car(frame: SensorFrame) -> None:
    """The feature cell and depth bin that see the middle of the box lie in the BEV cell of it."""
    image, calibration = frame.images["CAM_FRONT"], frame.calibration.cameras["CAM_FRONT"]
    row_global = nuscenes_writer.boxes_global(SCENE, image.stamp_ns // 1000)[0]
    center_then = rigid.apply(rigid.inverse(image.T_global_ego), row_global[None, :3])
    pixels, depth, _ = camera.project(center_then, calibration.T_ego_cam, calibration.K_cam)
    A = FINE.image.A_img_aug_img(calibration.width_px, calibration.height_px)
    u, v, _ = A @ [*pixels[0], 1]
    # the image shows the red car at that pixel
    inputs = prepare_frame(frame, FINE).inputs
    red, green, _ = inputs.images[0, int(v), int(u)].astype(int)
    assert red > 150 > 100 > green

    d, h, w = int((depth[0] - 1) / 0.5), int(v / 4), int(u / 4)
    point = (d * FINE.feature_height + h) * FINE.feature_width + w  # of camera 0
    depths, pixels, cells = points_of(inputs.pool_runs, inputs.cell_start, FINE.feature_width)
    (position,) = np.flatnonzero(depths == point)
    assert pixels[position] == h * FINE.feature_width + w
    y, x = divmod(cells[position], FINE.bev.nx)
    found = FINE.bev.metric_coordinates(np.array([[x + 0.5, y + 0.5]]))[0]
    expected = rigid.apply(rigid.inverse(frame.T_global_ego), row_global[None, :3])[0, :2]
    # half a bin 0.25 m, half a feature cell 2 px at 63 px focal length and 13 m 0.4 m, half a
    # BEV cell 0.25 m
    assert np.abs(found - expected).max() < 0.7


def test_specs_that_do_not_fit_together_are_refused() -> None:
    with pytest.raises(ValueError, match="height is 36 px, expected a multiple of 8"):
        dataclasses.replace(SPEC, image=ImageCrop(height_px=36, width_px=88))
    with pytest.raises(ValueError, match="expected each name once"):
        dataclasses.replace(SPEC, cameras=("CAM_FRONT", "CAM_FRONT"))
