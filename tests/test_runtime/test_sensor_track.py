"""Sensors that repeat themselves under fresh stamps."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from sensor_schedule import MS, new

from perception.messages import CameraImage, LidarSweep, SensorMessage
from perception.taxonomy import LIDAR
from runtime.sensor_track import ALIKE_STEP, SensorTrack
from runtime.synchronizer import Synchronizer

CAMERA = "CAM_FRONT"


def image(stamp_ms: int, content: int) -> CameraImage:
    rgb = np.full((2, 2, 3), content, np.uint8)
    return CameraImage(camera=CAMERA, stamp_ns=stamp_ms * MS, rgb=rgb, T_global_ego=None)


def sweep(stamp_ms: int, content: float) -> LidarSweep:
    points = np.full((4, 3), content, np.float32)
    return LidarSweep(stamp_ns=stamp_ms * MS, points_lidar=points, T_global_ego=None)


def only_camera(frozen_after: int = 3) -> Synchronizer:
    """One whose grid begins with a sweep at 1000 ms, and whose LiDAR is silent then."""
    found = new(cameras=(CAMERA,), offset_ns={CAMERA: 0}, frozen_after=frozen_after)
    found.push(sweep(1000, 1.0))
    return found


def sent(found: Synchronizer, *messages: SensorMessage) -> list[bool]:
    """Whether each of the messages, one a period, is in its frame."""
    frames = [frame for message in messages for frame in found.push(message)]
    frames += found.flush()
    stamps = {image.stamp_ns for frame in frames for image in frame.images.values()}
    stamps |= {sweep.stamp_ns for frame in frames for sweep in frame.sweeps[:1]}
    return [message.stamp_ns in stamps for message in messages]


def test_a_driver_that_hangs_is_noticed_at_its_third_message() -> None:
    found = only_camera()
    contents = (5, 7, 7, 7, 7, 9, 7)  # 7 comes back at the end: that is no repetition
    messages = [image(1000 + 100 * i, content) for i, content in enumerate(contents)]
    assert sent(found, *messages) == [True, True, True, False, False, True, True]
    assert found.counters == {f"{CAMERA}: frozen": 2}


def test_a_frozen_sensor_is_named_in_the_frame() -> None:
    found = only_camera()
    frames = [frame for i in range(5) for frame in found.push(image(1000 + 100 * i, 7))]
    frames += found.advance(1460 * MS)
    assert [frame.missing.get(CAMERA) for frame in frames[-2:]] == ["message dropped: frozen"] * 2


def test_a_lidar_can_hang_too() -> None:
    found = new(cameras=(), frozen_after=3)
    messages = [sweep(1000 + 100 * i, x) for i, x in enumerate((1.0, 2.0, 2.0, 2.0, 3.0))]
    assert sent(found, *messages) == [True, True, True, False, True]
    assert found.counters == {f"{LIDAR}: frozen": 1}


def test_a_message_that_comes_twice_is_a_duplicate_and_no_repetition() -> None:
    found = only_camera()
    messages = [image(1000, 7), image(1000, 7), image(1000, 7), image(1100, 7), image(1200, 8)]
    assert all(sent(found, *messages))
    assert found.counters == {f"{CAMERA}: duplicate": 2}


def test_zero_takes_everything() -> None:
    found = only_camera(frozen_after=0)
    assert all(sent(found, *(image(1000 + 100 * i, 7) for i in range(8))))
    assert not found.counters


def test_contents_differ_where_a_pixel_does_that_is_looked_at() -> None:
    rgb = np.zeros((2 * ALIKE_STEP, 2 * ALIKE_STEP, 3), np.uint8)
    track = SensorTrack(offset_ns=0)
    counts = []
    for row, column, channel in ((0, 0, 0), (ALIKE_STEP, ALIKE_STEP, 2), (1, 0, 0), (0, 1, 0)):
        rgb = rgb.copy()
        rgb[row, column, channel] += 1
        message = CameraImage(camera=CAMERA, stamp_ns=0, rgb=rgb, T_global_ego=None)
        counts.append(track.count_alike(message))
    assert counts == [1, 1, 2, 3]


@given(st.lists(st.integers(0, 1), max_size=30), st.integers(2, 4))
def test_just_what_ends_a_run_of_that_length_is_dropped(
    contents: list[int], frozen_after: int
) -> None:
    messages = [image(1000 + 100 * i, content) for i, content in enumerate(contents)]
    expected = [
        len(set(contents[: i + 1][-frozen_after:])) > 1 or i + 1 < frozen_after
        for i in range(len(contents))
    ]
    assert sent(only_camera(frozen_after), *messages) == expected
