import dataclasses
import threading
from pathlib import Path

import numpy as np
import pytest
from toy_bundle import NUM_BOXES
from toy_frames import FakeEngine, calibration, frame, moving

from perception import model_inputs
from perception.bundle import Bundle, load_bundle
from perception.errors import InputError
from perception.geometry import pool_table
from perception.messages import Calibration
from perception.model_inputs import ModelInputs, PreparedFrame, prepare_frame
from perception.taxonomy import CAMERAS, LIDAR
from runtime.engines.base import EngineError, ModelOutputs
from runtime.pipeline import Pipeline


@pytest.fixture(scope="module")
def bundle(toy_bundle: Path) -> Bundle:
    return load_bundle(toy_bundle)


def test_a_whole_frame_gives_boxes_best_first_and_a_map(bundle: Bundle) -> None:
    pipeline = Pipeline(bundle, num_threads=1)
    result = pipeline.process(dataclasses.replace(frame(), T_global_ego=2.0 * np.eye(4)))
    np.testing.assert_array_equal(result.T_global_ego, 2.0 * np.eye(4))
    # Scores are 0.5 + 0.05 i, so the LiDAR's box (i = 6) comes first.
    np.testing.assert_array_equal(result.detections.labels, [6, 5, 4, 3, 2, 1, 0])
    np.testing.assert_allclose(result.detections.scores[:2], [0.8, 0.75], rtol=1e-6)
    # Camera 5's pixels are 50 of 255.
    assert result.detections.boxes_ego[1, 1] == pytest.approx(50 / 255, abs=1e-6)
    np.testing.assert_allclose(result.map_mask.prob, 0.9, rtol=1e-6)  # 6 * 0.1 + 0.3
    assert result.sensors_used == (*CAMERAS, LIDAR)
    assert dict(result.sensors_missing) == {}
    stages = [name for name in result.stage_ms if "/" not in name]
    assert stages == ["preprocess", "engine", "postprocess"]
    assert all(time_ms > 0 for time_ms in result.stage_ms.values())
    assert pipeline.counters["frames"] == 1


def test_a_score_at_the_threshold_is_kept(bundle: Bundle) -> None:
    pipeline = Pipeline(bundle, engine=FakeEngine(), score_threshold=0.5)
    np.testing.assert_array_equal(pipeline.process(frame()).detections.labels, [1, 2])


def test_threshold_leaves_out_what_is_below(bundle: Bundle) -> None:
    pipeline = Pipeline(bundle, num_threads=1, score_threshold=0.6499)
    np.testing.assert_array_equal(pipeline.process(frame()).detections.labels, [6, 5, 4, 3])


def test_missing_sensors_are_masked_and_named(bundle: Bundle) -> None:
    result = Pipeline(bundle, num_threads=1, score_threshold=0.1).process(
        frame(("CAM_BACK",), lidar=False)
    )
    assert result.sensors_used == ("CAM_BACK",)
    assert set(result.sensors_missing) == {*CAMERAS, LIDAR} - {"CAM_BACK"}
    np.testing.assert_array_equal(result.detections.labels, [CAMERAS.index("CAM_BACK")])
    np.testing.assert_allclose(result.map_mask.prob, 0.1, rtol=1e-6)


def test_without_any_sensor_the_engine_is_not_asked(bundle: Bundle) -> None:
    engine = FakeEngine()
    pipeline = Pipeline(bundle, engine=engine)
    result = pipeline.process(frame((), lidar=False))
    assert engine.calls == 0
    assert len(result.detections.scores) == 0
    assert result.detections.boxes_ego.shape == (0, 9)
    assert not result.map_mask.prob.any()
    assert result.sensors_used == ()
    assert set(result.sensors_missing) == {*CAMERAS, LIDAR}
    assert pipeline.counters["frames_without_sensor"] == 1
    assert result.stage_ms["engine"] == result.stage_ms["postprocess"] == 0


def test_pillars_beyond_the_room_for_them_are_counted(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object, **options: object) -> PreparedFrame:
        return dataclasses.replace(prepare_frame(*arguments, **options), num_dropped_pillars=7)

    monkeypatch.setattr("runtime.pipeline.prepare_frame", full)
    pipeline = Pipeline(bundle, engine=FakeEngine())
    for _ in range(2):
        pipeline.process(frame())
    assert pipeline.counters["dropped_pillars"] == 14


def set_past_checks(message: object, **values: object) -> None:
    """What a car could hand in, where no test looks at shapes."""
    for name, value in values.items():
        object.__setattr__(message, name, value)


@pytest.mark.parametrize("number", [np.nan, np.inf, 1e300])
@pytest.mark.parametrize("sensor", [LIDAR, "CAM_BACK"])
def test_a_pose_that_cannot_be_is_a_fault_of_its_sensor(
    bundle: Bundle, sensor: str, number: float
) -> None:
    whole = moving(frame(), ahead=1.0)
    bad = np.eye(4)
    bad[0, 3] = number
    if sensor == LIDAR:  # whose pose is the frame's
        sweeps = (dataclasses.replace(whole.sweeps[0], T_global_ego=bad),)
        odd = dataclasses.replace(whole, sweeps=sweeps, T_global_ego=bad)
    else:
        image = dataclasses.replace(whole.images[sensor], T_global_ego=bad)
        odd = dataclasses.replace(whole, images={**whole.images, sensor: image})
    engine = BufferEngine()
    result = Pipeline(bundle, engine=engine).process(odd)
    assert result.sensors_missing == {sensor: "T_global_ego is no finite pose"}
    expected = None if sensor == LIDAR else whole.T_global_ego
    np.testing.assert_equal(result.T_global_ego, expected)
    if sensor == LIDAR:  # without a pose of the frame, cameras are as mounted
        Pipeline(bundle, engine=engine).process(frame(lidar=False))
        seen = [inputs.pool_runs for inputs in engine.seen]
        np.testing.assert_array_equal(seen[0], seen[1])


def test_an_older_sweep_that_cannot_be_is_left_out(bundle: Bundle) -> None:
    whole = moving(frame(), ahead=0.0)
    good = dataclasses.replace(whole.sweeps[0], T_global_ego=np.eye(4))
    lost, thin = (dataclasses.replace(good, stamp_ns=-50_000_000) for _ in range(2))
    set_past_checks(lost, T_global_ego=np.full((4, 4), np.nan))
    set_past_checks(thin, points_lidar=np.zeros((3, 9), np.float32))
    engine = BufferEngine()
    odd = dataclasses.replace(whole, sweeps=(good, lost, thin))
    result = Pipeline(bundle, engine=engine).process(odd)
    assert result.sensors_used == (*CAMERAS, LIDAR)
    assert engine.seen[0].pillar_num_points.tolist() == [1]  # the newest sweep's one point


@pytest.mark.parametrize(
    ("points", "said"),
    [
        (np.zeros((3, 5), np.float32), "points are float32 of shape (3, 5)"),
        (np.zeros((4, 5)), "points are float64 of shape (4, 5)"),
        (np.zeros(4, np.float32), "points are float32 of shape (4,)"),
    ],
)
def test_points_of_another_layout_are_a_fault_of_the_lidar(
    bundle: Bundle, points: np.ndarray, said: str
) -> None:
    odd = frame()
    set_past_checks(odd.sweeps[0], points_lidar=points)
    result = Pipeline(bundle, engine=FakeEngine()).process(odd)
    assert result.sensors_missing == {LIDAR: said}
    assert result.mode == "camera"


def test_a_calibration_that_cannot_be_is_a_fault_of_its_camera(bundle: Bundle) -> None:
    good = calibration()
    mounted = good.cameras["CAM_FRONT"]
    cameras = {
        **good.cameras,
        "CAM_FRONT": dataclasses.replace(mounted, K_cam=np.zeros((3, 3))),
        "CAM_BACK": dataclasses.replace(mounted, T_ego_cam=np.full((4, 4), np.nan)),
    }
    odd = dataclasses.replace(frame(), calibration=dataclasses.replace(good, cameras=cameras))
    result = Pipeline(bundle, engine=FakeEngine()).process(odd)
    assert set(result.sensors_missing) == {"CAM_FRONT", "CAM_BACK"}
    assert result.sensors_missing["CAM_FRONT"].startswith("K_cam is [[0.0, 0.0, 0.0]")
    assert result.sensors_missing["CAM_BACK"] == "T_ego_cam is no finite pose"


def test_closing_gives_the_engine_and_the_thread_back(bundle: Bundle) -> None:
    engine, before = FakeEngine(), set(threading.enumerate())
    pipeline = Pipeline(bundle, engine=engine)
    assert pipeline.process(frame()).sensors_used
    pipeline.close()
    assert engine.num_closed == 1
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", ["boxes_ego", "scores"])
def test_what_is_not_finite_is_dropped_and_counted(bundle: Bundle, bad: float, place: str) -> None:
    engine = FakeEngine()
    values = getattr(engine.outputs, place).copy()
    values[1] = bad
    engine.outputs = dataclasses.replace(engine.outputs, **{place: values})
    pipeline = Pipeline(bundle, engine=engine)
    detections = pipeline.process(frame()).detections
    np.testing.assert_array_equal(detections.labels, [2, 0])
    assert pipeline.counters["dropped_boxes"] == 1


def test_a_label_that_is_no_class_is_dropped(bundle: Bundle) -> None:
    pipeline = Pipeline(bundle, engine=FakeEngine(labels=np.array([-1, 10, 9])))
    np.testing.assert_array_equal(pipeline.process(frame()).detections.labels, [9])
    assert pipeline.counters["dropped_boxes"] == 2


def test_map_cells_that_are_no_probability_become_zero(bundle: Bundle) -> None:
    prob = np.full((6, 40, 40), 0.25, np.float32)
    prob[0, 0, :3] = (np.nan, -0.1, 1.5)
    pipeline = Pipeline(bundle, engine=FakeEngine(map_prob=prob))
    found = pipeline.process(frame()).map_mask.prob
    np.testing.assert_array_equal(found[0, 0, :4], [0, 0, 0, 0.25])
    assert pipeline.counters["bad_map_cells"] == 3
    assert np.isnan(prob[0, 0, 0])  # the engine's own array is not touched


def test_a_failing_engine_is_a_named_state_and_the_next_frame_works(bundle: Bundle) -> None:
    engine = FakeEngine()
    pipeline = Pipeline(bundle, engine=engine)
    engine.error = EngineError("out of memory")
    result = pipeline.process(frame(lidar=False))
    assert result.sensors_used == ()
    assert result.sensors_missing["CAM_FRONT"] == "engine failed: out of memory"
    assert result.stage_ms["engine"] > 0
    assert result.sensors_missing[LIDAR] == "no data"
    assert len(result.detections.scores) == 0
    engine.error = None
    assert len(pipeline.process(frame()).detections.scores) == 3
    assert pipeline.counters["engine_failures"] == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"labels": np.zeros(2, np.int64)},
        {"boxes_ego": np.zeros((3, 7), np.float32)},
        {"map_prob": np.zeros((6, 40, 41), np.float32)},
    ],
)
def test_outputs_of_another_shape_are_found_by_the_warm_up(bundle: Bundle, changes: dict) -> None:
    pipeline = Pipeline(bundle, engine=FakeEngine(**changes))
    with pytest.raises(InputError, match="export the bundle again"):
        pipeline.warm_up()
    assert pipeline.process(frame()).sensors_used == ()
    assert pipeline.counters["engine_failures"] == 1


def test_warm_up_counts_no_frame(bundle: Bundle) -> None:
    engine = FakeEngine()
    pipeline = Pipeline(bundle, engine=engine)
    assert pipeline.warm_up() > 0
    assert engine.calls == 1
    assert not pipeline.counters


def test_each_of_the_128_sensor_subsets_gives_its_own_boxes(bundle: Bundle) -> None:
    pipeline = Pipeline(bundle, num_threads=2, score_threshold=0.1)
    for subset in range(1 << NUM_BOXES):
        cameras = tuple(name for i, name in enumerate(CAMERAS) if subset >> i & 1)
        lidar = bool(subset >> 6 & 1)
        result = pipeline.process(frame(cameras, lidar))
        expected = [i for i in range(NUM_BOXES) if subset >> i & 1]
        assert sorted(result.detections.labels.tolist()) == expected
        assert result.sensors_used == cameras + (LIDAR,) * lidar
        assert set(result.sensors_missing) == {*CAMERAS, LIDAR} - set(result.sensors_used)
    pipeline.close()


def test_each_result_names_its_bundle_and_its_calibration(bundle: Bundle) -> None:
    pipeline = Pipeline(bundle, engine=FakeEngine())
    for number, sensors in enumerate((frame(), frame((), lidar=False))):
        result = pipeline.process(dataclasses.replace(sensors, calibration_epoch=number))
        assert result.bundle_digest == (bundle.digest if number == 0 else "")  # nobody was asked
        assert result.calibration_epoch == number


def test_parts_of_the_preparation_are_timed_apart(bundle: Bundle) -> None:
    stage_ms = Pipeline(bundle, engine=FakeEngine()).process(frame()).stage_ms
    parts = {name for name in stage_ms if name.startswith("preprocess/")}
    names = ("images", "pool_table", "depth_image", "accumulate", "pillars")
    assert parts == {f"preprocess/{name}" for name in names}
    # what runs in the other thread may take longer than it is waited for, the rest may not
    here = sum(stage_ms[f"preprocess/{name}"] for name in ("images", "pool_table", "depth_image"))
    assert here <= stage_ms["preprocess"]


class BufferEngine(FakeEngine):
    """Has memory for the images, and shows what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = np.full((6, 32, 88, 3), 99, np.uint8)
        self.seen: list[ModelInputs] = []

    def input_buffer(self, name: str) -> np.ndarray | None:
        return self.memory if name == "images" else None

    def run(self, inputs: ModelInputs) -> ModelOutputs:
        self.seen.append(dataclasses.replace(inputs, images=inputs.images.copy()))
        assert inputs.images is self.memory
        return super().run(inputs)


def test_images_are_cut_into_the_engines_memory_and_no_old_one_stays(bundle: Bundle) -> None:
    engine = BufferEngine()
    pipeline = Pipeline(bundle, engine=engine)
    pipeline.process(frame())
    pipeline.process(frame(("CAM_BACK",)))
    index = CAMERAS.index("CAM_BACK")
    whole, lost = (inputs.images.reshape(6, -1) for inputs in engine.seen)
    assert (whole == 10 * np.arange(6)[:, None]).all()
    assert (lost[index] == 10 * index).all()
    assert not np.delete(lost, index, axis=0).any()  # another picture's pixels would be stale data


def test_the_way_of_the_car_moves_the_cameras_unless_that_is_switched_off(bundle: Bundle) -> None:
    still = BufferEngine()
    Pipeline(bundle, engine=still).process(frame())
    driven = {}
    for compensates in (True, False):
        engine = driven[compensates] = BufferEngine()
        pipeline = Pipeline(bundle, engine=engine, compensate_ego_motion=compensates)
        pipeline.process(moving(frame(), ahead=6.0))
    as_mounted = still.seen[0].pool_runs
    np.testing.assert_array_equal(driven[False].seen[0].pool_runs, as_mounted)
    assert not np.array_equal(driven[True].seen[0].pool_runs, as_mounted)


def test_a_prepared_calibration_costs_the_next_frame_no_table(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = Pipeline(bundle, engine=FakeEngine(), compensate_ego_motion=False)
    lost = frame(("CAM_BACK", "CAM_FRONT"))
    pipeline.process(lost)
    changed = calibration(focal_px=110.0)
    pipeline.prepare_calibration(changed)
    built = []
    for module in (pool_table, model_inputs):  # wherever it is called from
        monkeypatch.setattr(module, "pool_table", lambda *arguments: built.append(arguments))
    # those of all cameras and of the cameras that the newest frame had are there
    for sensors in (lost, frame()):
        result = pipeline.process(dataclasses.replace(sensors, calibration=changed))
        assert result.sensors_used
    assert built == []


def test_a_calibration_that_no_image_can_be_cut_by_is_refused(bundle: Bundle) -> None:
    wide = dataclasses.replace(calibration().cameras["CAM_FRONT"], height_px=20)
    with pytest.raises(ValueError, match="expected 32 or more"):
        Pipeline(bundle, engine=FakeEngine()).prepare_calibration(
            Calibration(cameras={"CAM_FRONT": wide}, T_ego_lidar=np.eye(4))
        )


@pytest.mark.parametrize("changes", [{"num_threads": -1}, {"score_threshold": 1.5}])
def test_numbers_out_of_range_are_refused(bundle: Bundle, changes: dict) -> None:
    with pytest.raises(InputError, match="expected"):
        Pipeline(bundle, **changes)
