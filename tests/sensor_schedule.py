"""What the sensors of a car send, without content: stamps and poses that tell them apart."""

import numpy as np

from perception.messages import Calibration, CameraImage, LidarSweep, SensorFrame, SensorMessage
from perception.taxonomy import CAMERAS, LIDAR
from runtime.synchronizer import Synchronizer, SynchronizerConfig

MS = 1_000_000
SECOND = 1000 * MS
SENSORS = (*CAMERAS, LIDAR)
CALIBRATION = Calibration(cameras={}, T_ego_lidar=np.eye(4))
NO_IMAGE = np.zeros((1, 1, 3), np.uint8)
NO_POINTS = np.zeros((4, 0), np.float32)
OFFSET_MS = {
    "CAM_FRONT_LEFT": -43.1,
    "CAM_FRONT": -35.5,
    "CAM_FRONT_RIGHT": -27.6,
    "CAM_BACK_RIGHT": -20.1,
    "CAM_BACK": -10.4,
    "CAM_BACK_LEFT": -0.5,
    LIDAR: 0.0,
}
"""Stamps against the LiDAR's in one round of the real car."""

Arrival = tuple[int, str]
"""Stamp [ns] and sensor."""


def message(sensor: str, stamp_ns: int) -> SensorMessage:
    """An empty message whose pose tells which one it is."""
    pose = np.eye(4)
    pose[0, 3] = stamp_ns
    if sensor == LIDAR:
        return LidarSweep(stamp_ns=stamp_ns, points_lidar=NO_POINTS, T_global_ego=pose)
    return CameraImage(camera=sensor, stamp_ns=stamp_ns, rgb=NO_IMAGE, T_global_ego=pose)


def schedule(
    seconds: float,
    sensors: tuple[str, ...] = SENSORS,
    camera_hz: float = 12,
    lidar_hz: float = 20,
    start_ms: float = 1000,
) -> list[Arrival]:
    """Stamps of the real car, in time order."""
    found = []
    for sensor in sensors:
        hz = lidar_hz if sensor == LIDAR else camera_hz
        for index in range(round(seconds * hz)):
            at_ms = start_ms + OFFSET_MS[sensor] + index * 1000 / hz
            found.append((round(at_ms * MS), sensor))
    return sorted(found)


def new(**changes: object) -> Synchronizer:
    """A synchronizer of six cameras with the configuration's defaults."""
    return Synchronizer(
        SynchronizerConfig(**{"cameras": CAMERAS, "jitter_ns": 0, "frozen_after": 0, **changes}),
        CALIBRATION,
    )


def run(synchronizer: Synchronizer, stamps: list[Arrival]) -> list[tuple[int, SensorFrame]]:
    """Push messages at their stamps, with a tick every 10 ms; pairs of (emission, frame)."""
    found = []
    tick_ns = stamps[0][0]
    for stamp_ns, sensor in stamps:
        while tick_ns < stamp_ns:
            found += [(tick_ns, frame) for frame in synchronizer.advance(tick_ns)]
            tick_ns += 10 * MS
        found += [(stamp_ns, frame) for frame in synchronizer.push(message(sensor, stamp_ns))]
    return found


def stamps_of(frame: SensorFrame) -> dict[str, int]:
    """Stamp of the newest message per sensor of a frame [ns]."""
    found = {name: image.stamp_ns for name, image in frame.images.items()}
    return {**found, LIDAR: frame.sweeps[0].stamp_ns} if frame.sweeps else found
