"""Every malformed message costs exactly one counted refusal, and the next result says what is gone.

The rows are in `malformed_clouds.py`, `malformed_images.py` and `malformed_poses.py`.
"""

import gc
import os
import tracemalloc
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from malformed_clouds import CLOUDS
from malformed_images import BAYER, COMPRESSED, IMAGES, YUV
from malformed_kinds import Kind, decode
from malformed_poses import INFOS, ODOMETRIES, TRANSFORMS
from message_stand_ins import HEIGHT, WIDTH, Message, cloud, image, picture, points

from perception.taxonomy import CAMERAS, LIDAR
from runtime.api import (
    Calibration,
    CameraCalibration,
    CameraImage,
    LidarSweep,
    Pipeline,
    SensorFrame,
    Synchronizer,
    SynchronizerConfig,
    load_bundle,
)
from runtime.decoding.cloud_decoding import CloudRules, to_points_lidar
from runtime.decoding.image_decoding import compressed_to_rgb, to_rgb
from runtime.decoding.message_header import ConversionError

KINDS = (*CLOUDS, *IMAGES, *COMPRESSED, *INFOS, *ODOMETRIES, *TRANSFORMS)
NIGHT = "BEV_NIGHT" in os.environ
NUM_CASES = 1000 if NIGHT else 50
COMPUTED_EVERY = 1 if NIGHT else 25
"""Every frame is built; every so many are computed, too."""
PERIOD_NS = 100_000_000
OFFSET_NS = -40_000_000
RIG = CAMERAS[:2]
CAMERA = RIG[0]
"""Sends the images under test."""


class Car:
    """Synchroniser and pipeline, and the messages of two cameras and a LiDAR."""

    def __init__(self, bundle: Path) -> None:
        random = np.random.default_rng(1)
        self.rgb, self.points_lidar = picture(random), points(random, 50)
        camera = CameraCalibration(
            K_cam=np.array([[100.0, 0, WIDTH / 2], [0, 100.0, HEIGHT / 2], [0, 0, 1]]),
            T_ego_cam=np.array([[0.0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 1], [0, 0, 0, 1]]),
            width_px=WIDTH,
            height_px=HEIGHT,
        )
        self.calibration = Calibration(
            cameras=dict.fromkeys(CAMERAS, camera), T_ego_lidar=np.eye(4)
        )
        self.pipeline = Pipeline(load_bundle(bundle), num_threads=1)
        self.instant_ns = 10 * PERIOD_NS
        self.synchronizer = self.new_synchronizer()

    def new_synchronizer(self) -> Synchronizer:
        """One whose grid of frames a sweep has begun."""
        # The other sensors repeat themselves.
        config = SynchronizerConfig(cameras=RIG, jitter_ns=0, frozen_after=0)
        found = Synchronizer(config, self.calibration)
        sweep = LidarSweep(
            stamp_ns=self.instant_ns, points_lidar=self.points_lidar, T_global_ego=None
        )
        found.push(sweep, self.instant_ns)
        found.advance(self.instant_ns + PERIOD_NS // 2)
        return found

    def next_frame(self, sensor: str, data: np.ndarray | None) -> SensorFrame:
        """One period in which a sensor sends `data`, or nothing that could be read."""
        self.instant_ns += PERIOD_NS
        image_ns = self.instant_ns + OFFSET_NS
        frames = []
        for camera in RIG:
            rgb = data if camera == sensor else self.rgb
            if rgb is not None:
                image = CameraImage(camera=camera, stamp_ns=image_ns, rgb=rgb, T_global_ego=None)
                frames += self.synchronizer.push(image, image_ns)
        cloud = data if sensor == LIDAR else self.points_lidar
        if cloud is not None:
            sweep = LidarSweep(stamp_ns=self.instant_ns, points_lidar=cloud, T_global_ego=None)
            frames += self.synchronizer.push(sweep, self.instant_ns)
        frames += self.synchronizer.advance(self.instant_ns + PERIOD_NS // 2)
        (frame,) = frames
        return frame


@pytest.fixture(scope="module")
def car(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Car]:
    pytest.importorskip("onnx", reason="onnx is not installed: the toy bundle needs it")
    from toy_bundle import write_toy_bundle

    car = Car(write_toy_bundle(tmp_path_factory.mktemp("toy") / "bundle"))
    yield car
    car.pipeline.close()


def size_of(message: Message) -> int:
    """Bytes of a message, about."""
    return sum(len(value) for value in vars(message).values() if isinstance(value, bytes | str)) + (
        100 * len(getattr(message, "fields", getattr(message, "transforms", ())))
    )


def decoded(kind: Kind, message: Message, counters: Counter[str]) -> Any:
    """What comes out, or None; more memory than a fixed multiple of the message is a failure."""
    tracemalloc.start()
    try:
        return decode(kind, message, counters)
    except ConversionError as error:
        counters[error.reason] += 1
        counters["detail too long"] += len(str(error)) > 1000
        return None
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        # Pixels, a picture's size; 6 x for a cloud: one byte of intensity becomes four, twice.
        assert peak < 6 * size_of(message) + WIDTH * HEIGHT * 3 + 200_000


def check_numbers(data: Any, expected: Any) -> None:
    if isinstance(expected, dict):
        assert data.keys() == expected.keys()
        for child, T_parent_child in expected.items():
            np.testing.assert_allclose(data[child][1], T_parent_child, rtol=0, atol=1e-12)
    elif isinstance(expected, tuple):
        np.testing.assert_allclose(data[0], expected[0], rtol=0, atol=1e-12)
        assert data[1:] == expected[1:]
    elif expected.dtype == np.float64:
        np.testing.assert_allclose(data, expected, rtol=0, atol=1e-12)
    else:
        np.testing.assert_array_equal(data, expected)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind.topic}: {kind.name}")
def test_a_kind_of_message(kind: Kind, car: Car) -> None:
    random = np.random.default_rng(zlib.crc32(kind.name.encode()))
    sensor = {"cloud": LIDAR, "image": CAMERA, "compressed": CAMERA}.get(kind.topic, "")
    car.synchronizer = car.new_synchronizer()
    for case in range(NUM_CASES):
        message, expected = kind.make(random)
        counters: Counter[str] = Counter()
        data = decoded(kind, message, counters)
        if kind.reason:
            assert data is None
            assert +counters == {kind.reason: 1}
        else:
            assert set(counters) == set(kind.notices)
            check_numbers(data, expected)
        if not sensor:
            continue  # poses and intrinsics: nothing of a refused one goes further
        before = Counter(car.synchronizer.counters)
        if kind.reason:
            car.synchronizer.reject(sensor, kind.reason)
        frame = car.next_frame(sensor, data)
        counted = car.synchronizer.counters - before
        if kind.reason:
            assert counted == {f"{sensor}: malformed": 1}
            assert kind.reason in frame.missing[sensor]
        else:
            assert not counted
            assert not frame.missing
        if case % COMPUTED_EVERY == 0:
            result = car.pipeline.process(frame)
            assert len(result.sensors_used) == len(RIG) + (not kind.reason)
            assert np.isfinite(result.detections.boxes_ego).all()
            assert np.isfinite(result.map_mask.prob).all()


def test_there_are_enough_kinds_and_none_is_listed_twice() -> None:
    names = [(kind.topic, kind.name) for kind in KINDS]
    assert len(names) == len(set(names))
    assert sum(bool(kind.reason) for kind in KINDS) >= 60


def high_water_kb() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


@pytest.mark.parametrize(
    "name", ["PNG bomb", "JPEG that says 65000 x 65000", "PNG with a profile that is a bomb"]
)
def test_what_decoders_allocate_is_bounded_too(name: str) -> None:
    # They allocate out of sight of tracemalloc. 20 MB and more lie packed in each of these.
    (kind,) = (kind for kind in COMPRESSED if kind.name == name)
    messages = [kind.make(np.random.default_rng(i))[0] for i in range(3)]
    gc.collect()
    try:
        Path("/proc/self/clear_refs").write_text("5")  # forget the high-water mark
    except OSError:
        pytest.skip("the high-water mark of memory cannot be reset here")
    before = high_water_kb()
    for message in messages:
        decoded_or_refused(message)
    assert high_water_kb() - before < 4_000


def decoded_or_refused(message: Message) -> None:
    try:
        compressed_to_rgb(message, (WIDTH, HEIGHT))
    except ConversionError:
        pass


@pytest.mark.parametrize("encoding", [*BAYER, *YUV])
@pytest.mark.parametrize(("width", "height"), [(3, 4), (4, 3)])
def test_half_a_group_of_pixels_is_refused(encoding: str, width: int, height: int) -> None:
    odd = image(np.zeros((height, width, 3), np.uint8), "mono8").but(encoding=encoding)
    with pytest.raises(ConversionError) as caught:
        to_rgb(odd)
    assert caught.value.reason == "size_odd"


def test_intensity_is_scaled_before_it_is_cut() -> None:
    values = np.array([[1.0, 2.0], [0.0, 0.0], [0.0, 0.0], [0.5, 2.0]], np.float32)
    notices: Counter[str] = Counter()
    found = to_points_lidar(cloud(values), CloudRules(intensity_scale=255.0), notices)
    assert found[3].tolist() == [127.5, 255.0]
    assert notices == {"intensity_cut": 1}
