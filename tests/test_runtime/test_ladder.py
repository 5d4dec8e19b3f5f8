import dataclasses
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_bundle import SPEC, toy_card, write_toy_bundle
from toy_frames import FakeEngine, calibration, frame

from perception.bundle import Bundle, load_bundle
from perception.errors import InputError
from perception.messages import LidarSweep, PerceptionResult, SensorFrame
from perception.model_card import ModelCard
from perception.taxonomy import CAMERAS, LIDAR, MAP_CLASSES
from runtime.engines.base import EngineError
from runtime.ladder import Ladder
from runtime.pipeline import Pipeline


def card_of(kind: str) -> ModelCard:
    """The toy card for a network of one sensor; `recipe` keeps the digests apart."""
    change = {
        "fusion": {},
        "camera": {"use_lidar": False},
        "lidar": {"cameras": ()},
        "front": {"use_lidar": False, "cameras": CAMERAS[:1]},
    }[kind]
    return dataclasses.replace(toy_card(), recipe=kind, inputs=dataclasses.replace(SPEC, **change))


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    folder = tmp_path_factory.mktemp("ladder")
    kinds = ("fusion", "camera", "lidar", "front")
    return {
        kind: load_bundle(write_toy_bundle(folder / kind, card=card_of(kind))) for kind in kinds
    }


def rung(bundle: Bundle) -> Pipeline:
    return Pipeline(bundle, engine=FakeEngine())


def fail(pipeline: Pipeline, why: str = "out of memory") -> None:
    assert isinstance(pipeline.engine, FakeEngine)
    pipeline.engine.error = EngineError(why)


def subset_of(number: int) -> tuple[tuple[str, ...], bool]:
    """One of the 128 sets of sensors: a bit per camera, and the highest for the LiDAR."""
    return tuple(name for i, name in enumerate(CAMERAS) if number >> i & 1), bool(number >> 6 & 1)


def check_is_of_its_frame(result: PerceptionResult, number: int, digests: dict[str, str]) -> None:
    """Mode, sensors and bundle are those of this very frame."""
    cameras, lidar = subset_of(number)
    mode = "fusion" if cameras and lidar else "camera" if cameras else "lidar"
    if number == 0:
        mode = "invalid"
    assert result.mode == mode
    assert result.sensors_used == cameras + (LIDAR,) * lidar
    assert set(result.sensors_missing) == {*CAMERAS, LIDAR} - set(result.sensors_used)
    assert set(result.sensors_missing.values()) <= {"no data"}
    assert result.bundle_digest == ("" if mode == "invalid" else digests[mode])
    assert len(result.detections.scores) == (3 if number else 0)


@pytest.mark.parametrize(("has_camera", "has_lidar"), [(False, False), (True, True)])
def test_each_of_the_128_sensor_subsets_goes_to_the_bundle_for_it(
    bundles: dict[str, Bundle], has_camera: bool, has_lidar: bool
) -> None:
    fusion = bundles["fusion"]
    camera, lidar = bundles["camera"], bundles["lidar"]
    digests = {
        "fusion": fusion.digest,
        "camera": (camera if has_camera else fusion).digest,
        "lidar": (lidar if has_lidar else fusion).digest,
    }
    ladder = Ladder(
        rung(fusion), rung(camera) if has_camera else None, rung(lidar) if has_lidar else None
    )
    for number in range(128):
        check_is_of_its_frame(ladder.process(frame(*subset_of(number))), number, digests)
    assert ladder.counters["frames"] == 128
    assert ladder.counters["frames_without_sensor"] == 1
    assert ladder.counters["engine_failures"] == 0
    ladder.close()


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 127), min_size=1, max_size=12))
def test_the_mode_is_that_of_the_frame_whatever_came_before(
    bundles: dict[str, Bundle], numbers: list[int]
) -> None:
    ladder = Ladder(*(rung(bundles[kind]) for kind in ("fusion", "camera", "lidar")))
    digests = {kind: bundles[kind].digest for kind in ("fusion", "camera", "lidar")}
    for number in numbers:
        result = ladder.process(frame(*subset_of(number)))
        check_is_of_its_frame(result, number, digests)
    ladder.close()


def test_old_data_is_not_fused_but_takes_the_rung_below(bundles: dict[str, Bundle]) -> None:
    ladder = Ladder(*(rung(bundles[kind]) for kind in ("fusion", "camera", "lidar")))
    whole = frame()
    old = dataclasses.replace(whole.sweeps[0], stamp_ns=-101_000_000)
    result = ladder.process(dataclasses.replace(whole, sweeps=(old,)))
    assert result.mode == "camera"
    assert result.bundle_digest == bundles["camera"].digest
    assert result.sensors_missing == {LIDAR: "newest data is 0.101 s old, the limit is 0.100 s"}


def test_a_sweep_without_a_usable_point_is_no_lidar(bundles: dict[str, Bundle]) -> None:
    ladder = Ladder(*(rung(bundles[kind]) for kind in ("fusion", "camera", "lidar")))
    whole = frame()
    nothing = np.full((4, 3000), np.nan, np.float32)
    empty = LidarSweep(stamp_ns=0, points_lidar=nothing, T_global_ego=None)
    # an older sweep behind it has points: the past, not the present
    result = ladder.process(dataclasses.replace(whole, sweeps=(empty, *whole.sweeps)))
    assert result.mode == "camera"
    assert result.sensors_missing == {LIDAR: "no usable point"}


def test_an_engine_that_fails_is_replaced_within_the_frame(bundles: dict[str, Bundle]) -> None:
    fusion, camera, lidar = (rung(bundles[kind]) for kind in ("fusion", "camera", "lidar"))
    ladder = Ladder(fusion, camera, lidar)
    fail(fusion)
    result = ladder.process(frame())
    assert (result.mode, result.bundle_digest) == ("camera", camera.bundle.digest)
    assert result.sensors_missing == {LIDAR: "engine failed: out of memory"}
    fail(camera)
    result = ladder.process(frame())
    assert (result.mode, result.bundle_digest) == ("lidar", lidar.bundle.digest)
    assert set(result.sensors_missing.values()) == {"engine failed: out of memory"}
    fail(lidar)
    result = ladder.process(frame())
    assert result.mode == "invalid"
    assert set(result.sensors_missing) == {*CAMERAS, LIDAR}
    assert result.bundle_digest == lidar.bundle.digest  # it was asked
    assert ladder.counters["engine_failures"] == 1 + 2 + 3
    assert ladder.counters["frames"] == 3


def test_the_bundle_that_takes_most_of_the_usable_sensors_comes_first(
    bundles: dict[str, Bundle],
) -> None:
    fusion, front = rung(bundles["fusion"]), rung(bundles["front"])
    ladder = Ladder(fusion, front)
    # six cameras: fusion takes them all
    assert ladder.process(frame(lidar=False)).sensors_used == CAMERAS
    # one camera, which both take: the specialist's frame
    result = ladder.process(frame(CAMERAS[:1], lidar=False))
    assert result.bundle_digest == front.bundle.digest
    # others: it is not asked at all
    result = ladder.process(frame(CAMERAS[1:], lidar=False))
    assert result.sensors_used == CAMERAS[1:]
    assert result.sensors_missing == {CAMERAS[0]: "no data", LIDAR: "no data"}
    assert front.counters["frames"] == 1
    assert ladder.counters["engine_failures"] == 0


def test_a_camera_that_its_bundle_does_without_is_named(bundles: dict[str, Bundle]) -> None:
    fusion = rung(bundles["fusion"])
    ladder = Ladder(fusion, rung(bundles["front"]))
    fail(fusion)
    result = ladder.process(frame(CAMERAS[:3], lidar=False))
    assert result.sensors_used == CAMERAS[:1]
    assert result.sensors_missing == {
        **dict.fromkeys(CAMERAS[1:3], "engine failed: out of memory"),
        **dict.fromkeys((*CAMERAS[3:], LIDAR), "no data"),
    }


def test_times_add_up_over_the_bundles_that_were_asked(bundles: dict[str, Bundle]) -> None:
    fusion, camera = rung(bundles["fusion"]), rung(bundles["camera"])
    ladder = Ladder(fusion, camera)
    parts = []
    for pipeline in (fusion, camera):
        process = pipeline.process

        def keep(frame: SensorFrame, process: Callable = process) -> PerceptionResult:
            parts.append(process(frame))
            return parts[-1]

        pipeline.process = keep  # type: ignore[method-assign]
    fail(fusion)
    result = ladder.process(frame())
    assert len(parts) == 2
    assert result.stage_ms == {
        stage: parts[0].stage_ms[stage] + ms for stage, ms in parts[1].stage_ms.items()
    }


def test_closing_a_ladder_closes_every_engine(bundles: dict[str, Bundle]) -> None:
    before = set(threading.enumerate())
    ladder = Ladder(*(rung(bundles[kind]) for kind in ("fusion", "camera", "lidar")))
    ladder.process(frame())
    ladder.close()
    assert [pipeline.engine.num_closed for pipeline in ladder.pipelines] == [1, 1, 1]
    assert set(threading.enumerate()) <= before


def test_bundles_that_do_not_belong_together_are_refused(
    bundles: dict[str, Bundle], tmp_path: Path
) -> None:
    fusion, camera, lidar = (rung(bundles[kind]) for kind in ("fusion", "camera", "lidar"))
    with pytest.raises(InputError, match="uses the LiDAR, expected a bundle of the cameras"):
        Ladder(fusion, fusion)
    with pytest.raises(InputError, match="uses cameras, expected a bundle of the LiDAR alone"):
        Ladder(fusion, camera, camera)
    with pytest.raises(InputError, match=f"takes {LIDAR}, which the fusion bundle"):
        Ladder(camera, None, lidar)
    changes = {
        "map_grid": dataclasses.replace(toy_card().map_grid, cell=0.5),
        "map_classes": MAP_CLASSES[::-1],
        "detection_classes": toy_card().detection_classes[::-1],
    }
    for what, value in changes.items():
        card = dataclasses.replace(card_of("camera"), **{what: value})
        other = load_bundle(write_toy_bundle(tmp_path / what, card=card))
        with pytest.raises(InputError, match=f"has {what} .*the fusion bundle .* has"):
            Ladder(fusion, rung(other))


def test_every_rung_is_warmed_up_and_prepared_for_a_calibration(
    bundles: dict[str, Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    ladder = Ladder(*(rung(bundles[kind]) for kind in ("fusion", "camera", "lidar")))
    prepared = []
    monkeypatch.setattr(
        Pipeline, "prepare_calibration", lambda self, new: prepared.append((self, new))
    )
    assert ladder.warm_up() > 0
    assert [pipeline.engine.calls for pipeline in ladder.pipelines] == [1, 1, 1]
    new = calibration(focal_px=120.0)
    ladder.prepare_calibration(new)
    assert prepared == [(pipeline, new) for pipeline in ladder.pipelines]
    assert ladder.bundle is bundles["fusion"]
    assert ladder.counters["frames"] == 0
