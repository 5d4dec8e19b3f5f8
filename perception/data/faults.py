"""Sensors that fail: dropped, late, frozen, noisy. For training, and to test what a network does.

Every function gives a new frame and leaves the one it gets as it is; nothing here raises for what
is in a frame, and a fault of a sensor that the frame does not have changes nothing.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, UInt8

from perception.messages import CameraImage, LidarSweep, SensorFrame, SensorMessage
from perception.taxonomy import LIDAR

BEAM_STEP_DEG = 1.33
"""Angle between neighbouring beams. Source: Velodyne HDL-32E manual, 41.33 degrees for 32 beams."""

Earlier = Callable[[str], SensorMessage | None]
"""A sensor's record before the frame's own; None where there is none."""


@dataclass(frozen=True, kw_only=True)
class FaultConfig:
    """How often what fails, per frame; all faults are drawn independently."""

    drop_camera: float = 0.0
    """Probability that a camera is absent, each for itself."""
    drop_lidar: float = 0.0
    """Probability that the LiDAR is absent."""
    drop_all_cameras: float = 0.0
    """Probability that all cameras are absent together."""
    late: float = 0.0
    """Probability per sensor that its newest record has not come: the one before it, as it is."""
    frozen: float = 0.0
    """Probability per sensor that it repeats the record before with a new stamp: no mask shows."""
    noisy: float = 0.0
    """Probability per sensor that its data is spoilt."""

    def __post_init__(self) -> None:
        """Refuse what is no probability."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not 0 <= value <= 1:
                raise ValueError(f"{field.name} is {value}, expected a probability, 0 to 1")


def inject(
    frame: SensorFrame, config: FaultConfig, rng: np.random.Generator, earlier: Earlier
) -> SensorFrame:
    """Let sensors of a frame fail at random; at least one is never dropped.

    Args:
        frame: A whole frame, or what is there of it.
        config: Probabilities.
        rng: Where the numbers come from.
        earlier: Asked only for sensors that are late or frozen.
    """
    sensors = _sensors(frame)
    dropped = _draw_dropped(sensors, config, rng)
    for sensor in sensors:
        is_late, is_frozen, is_noisy = rng.uniform(size=3) < (
            config.late,
            config.frozen,
            config.noisy,
        )
        # noise of its own: how much of it is drawn does not move the other sensors
        noise = np.random.default_rng(rng.integers(1 << 62))
        if sensor in dropped:
            frame = drop(frame, sensor)
            continue
        if is_late or is_frozen:
            message = earlier(sensor)
            if message is not None:
                frame = late(frame, message) if is_late else freeze(frame, message)
        if is_noisy:
            frame = spoil(frame, sensor, noise)
    return frame


def drop(frame: SensorFrame, sensor: str) -> SensorFrame:
    """The sensor gives nothing."""
    if sensor not in _sensors(frame):
        return frame
    missing = {**frame.missing, sensor: "dropped"}
    if sensor == LIDAR:
        return dataclasses.replace(frame, sweeps=(), missing=missing)
    images = {name: image for name, image in frame.images.items() if name != sensor}
    return dataclasses.replace(frame, images=images, missing=missing)


def late(frame: SensorFrame, message: SensorMessage) -> SensorFrame:
    """The newest record of the message's sensor has not come: this one is the newest."""
    if isinstance(message, CameraImage):
        return _with_image(frame, message)
    older = (sweep for sweep in frame.sweeps if sweep.stamp_ns < message.stamp_ns)
    return dataclasses.replace(frame, sweeps=(message, *older)) if frame.sweeps else frame


def freeze(frame: SensorFrame, message: SensorMessage) -> SensorFrame:
    """The message's sensor repeats its picture or points as if they were new."""
    if isinstance(message, CameraImage):
        now = frame.images.get(message.camera)
        return _with_image(frame, dataclasses.replace(now, rgb=message.rgb)) if now else frame
    if not frame.sweeps:
        return frame
    newest, *older = frame.sweeps
    repeated = dataclasses.replace(newest, points_lidar=message.points_lidar)
    return dataclasses.replace(frame, sweeps=(repeated, *older))


def spoil(frame: SensorFrame, sensor: str, rng: np.random.Generator) -> SensorFrame:
    """One kind of noise, drawn at random, of a strength that still leaves something to see.

    Pixel noise, brightness or a black picture; lost points, noise of the range or lost beams.
    Source: kinds and strengths are ours.
    """
    kind = rng.integers(3)
    if sensor == LIDAR:
        if kind == 0:
            return lose_points(frame, float(rng.uniform(0.1, 0.9)), rng)
        if kind == 1:
            return jitter_range(frame, float(rng.uniform(0.02, 0.3)), rng)
        return lose_beams(frame, float(rng.uniform(0.1, 0.9)), rng)
    if kind == 0:
        return add_pixel_noise(frame, sensor, float(rng.uniform(5.0, 40.0)), rng)
    if kind == 1:
        return change_brightness(frame, sensor, float(np.exp(rng.uniform(-1.5, 1.0))))
    return blacken(frame, sensor)


def add_pixel_noise(
    frame: SensorFrame, camera: str, sigma: float, rng: np.random.Generator
) -> SensorFrame:
    """Noise of a standard deviation [of 255], for each value of each pixel."""

    def noisy(rgb: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
        noise = rng.standard_normal(rgb.shape, dtype=np.float32) * np.float32(sigma)
        return np.clip(rgb + noise, 0, 255).astype(np.uint8)

    return _with_changed_image(frame, camera, noisy)


def change_brightness(frame: SensorFrame, camera: str, factor: float) -> SensorFrame:
    """Every value times a factor, as by a wrong exposure."""
    table = np.clip(np.arange(256) * factor, 0, 255).astype(np.uint8)
    return _with_changed_image(frame, camera, lambda rgb: table[rgb])


def blacken(frame: SensorFrame, camera: str) -> SensorFrame:
    """A black picture, as of a covered lens."""
    return _with_changed_image(frame, camera, np.zeros_like)


def lose_points(frame: SensorFrame, share: float, rng: np.random.Generator) -> SensorFrame:
    """Points are lost at random, as in rain: this share of every sweep."""

    def kept(points_lidar: Float32[np.ndarray, "4 n"]) -> Bool[np.ndarray, " n"]:
        return rng.uniform(size=points_lidar.shape[1]) >= share

    return _with_changed_points(frame, lambda points: points[:, kept(points)])


def lose_beams(frame: SensorFrame, share: float, rng: np.random.Generator) -> SensorFrame:
    """Whole beams are lost, the same of every sweep: this share of all elevations."""
    is_lost = rng.uniform(size=int(np.ceil(180 / BEAM_STEP_DEG)) + 1) < share

    def kept(points_lidar: Float32[np.ndarray, "4 n"]) -> Bool[np.ndarray, " n"]:
        x, y, z, _ = np.nan_to_num(points_lidar)
        with np.errstate(over="ignore"):
            elevation_deg = np.rad2deg(np.arctan2(z, np.hypot(x, y)))
        return ~is_lost[((elevation_deg + 90) / BEAM_STEP_DEG).astype(np.int64)]

    return _with_changed_points(frame, lambda points: points[:, kept(points)])


def jitter_range(frame: SensorFrame, sigma: float, rng: np.random.Generator) -> SensorFrame:
    """Each point moves along its ray by noise of this standard deviation [m]."""

    def moved(points_lidar: Float32[np.ndarray, "4 n"]) -> Float32[np.ndarray, "4 n"]:
        distance = np.sqrt((points_lidar[:3] ** 2).sum(axis=0))
        noise = rng.standard_normal(len(distance), dtype=np.float32) * np.float32(sigma)
        factor = 1 + noise / np.maximum(distance, np.float32(1e-3))
        return np.concatenate([points_lidar[:3] * factor, points_lidar[3:]])

    return _with_changed_points(frame, moved)


def _sensors(frame: SensorFrame) -> tuple[str, ...]:
    """Sensors that a frame has, in an order that does not depend on how it was read."""
    return (*sorted(frame.images), LIDAR) if frame.sweeps else tuple(sorted(frame.images))


def _draw_dropped(
    sensors: tuple[str, ...], config: FaultConfig, rng: np.random.Generator
) -> set[str]:
    all_cameras = rng.uniform() < config.drop_all_cameras
    draws = rng.uniform(size=len(sensors))
    kept_at_least = sensors[rng.integers(len(sensors))] if sensors else None
    dropped = {
        sensor
        for sensor, draw in zip(sensors, draws, strict=True)
        if (
            draw < config.drop_lidar
            if sensor == LIDAR
            else all_cameras or draw < config.drop_camera
        )
    }
    return dropped - {kept_at_least} if len(dropped) == len(sensors) else dropped


def _with_image(frame: SensorFrame, image: CameraImage) -> SensorFrame:
    if image.camera not in frame.images:
        return frame
    return dataclasses.replace(frame, images={**frame.images, image.camera: image})


def _with_changed_image(
    frame: SensorFrame, camera: str, change: Callable[[np.ndarray], np.ndarray]
) -> SensorFrame:
    image = frame.images.get(camera)
    if image is None:
        return frame
    return _with_image(frame, dataclasses.replace(image, rgb=change(image.rgb)))


def _with_changed_points(
    frame: SensorFrame, change: Callable[[np.ndarray], np.ndarray]
) -> SensorFrame:
    sweeps: tuple[LidarSweep, ...] = tuple(
        dataclasses.replace(sweep, points_lidar=change(sweep.points_lidar))
        for sweep in frame.sweeps
    )
    return dataclasses.replace(frame, sweeps=sweeps)
