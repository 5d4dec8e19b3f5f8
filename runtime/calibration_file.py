"""The rig as a small JSON file: what a car without a recorded log starts from."""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from perception import atomic_file, json_codec
from perception.errors import InputError
from perception.messages import Calibration, CameraCalibration
from perception.rig_faults import MAX_MOUNTING, intrinsics_fault, transform_fault

FORMAT_VERSION = 1
"""Raised when an older runtime could misread a newer file."""

Matrix = tuple[tuple[float, ...], ...]


@dataclass(frozen=True, kw_only=True)
class _CameraEntry:
    width_px: int
    height_px: int
    K_cam: Matrix
    T_ego_cam: Matrix


@dataclass(frozen=True, kw_only=True)
class _File:
    format_version: int
    cameras: dict[str, _CameraEntry]
    T_ego_lidar: Matrix


def write_calibration(path: Path, calibration: Calibration) -> None:
    """Write a rig as JSON: sizes and intrinsics [px], 4x4 transforms [m].

    Raises:
        InputError: The file cannot be written.
    """
    cameras = {
        name: _CameraEntry(
            width_px=camera.width_px,
            height_px=camera.height_px,
            K_cam=_rows(camera.K_cam),
            T_ego_cam=_rows(camera.T_ego_cam),
        )
        for name, camera in calibration.cameras.items()
    }
    file = _File(
        format_version=FORMAT_VERSION, cameras=cameras, T_ego_lidar=_rows(calibration.T_ego_lidar)
    )
    # One matrix row per line instead of one number per line.
    text = re.sub(
        r"\[([^][{}]*)\]", lambda row: f"[{' '.join(row[1].split())}]", json_codec.to_json(file)
    )
    atomic_file.write_text(path, text)


def read_calibration(path: Path) -> Calibration:
    """Read a rig and check it.

    Raises:
        InputError: The file is absent or no calibration, or a number in it cannot be right (see
            `perception.rig_faults`).
    """
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise InputError(
            f"Calibration {path} cannot be read ({reason}): write one with "
            "'python runtime/replay.py --log ROOT --scene NAME --write-calibration FILE'."
        ) from error
    file = json_codec.from_json(_File, text, str(path))
    if file.format_version != FORMAT_VERSION:
        raise InputError(
            f"{path} has format {file.format_version}, this version reads {FORMAT_VERSION}: "
            "write it again."
        )
    cameras = {
        name: CameraCalibration(
            K_cam=_matrix(entry.K_cam, 3, f"{path}: K_cam of {name}"),
            T_ego_cam=_matrix(entry.T_ego_cam, 4, f"{path}: T_ego_cam of {name}"),
            width_px=entry.width_px,
            height_px=entry.height_px,
        )
        for name, entry in file.cameras.items()
    }
    T_ego_lidar = _matrix(file.T_ego_lidar, 4, f"{path}: T_ego_lidar")
    calibration = Calibration(cameras=cameras, T_ego_lidar=T_ego_lidar)
    check_calibration(calibration, str(path))
    return calibration


def check_calibration(calibration: Calibration, where: str) -> None:
    """Refuse a rig that cannot be right, wherever it comes from.

    Args:
        calibration: The rig.
        where: Its origin, for the message.

    Raises:
        InputError: As `read_calibration`.
    """
    faults = {"T_ego_lidar": transform_fault(calibration.T_ego_lidar, MAX_MOUNTING)}
    for name, camera in calibration.cameras.items():
        size = {"width_px": camera.width_px, "height_px": camera.height_px}
        for what, value in size.items():
            if value < 1:
                faults[f"{what} of {name}"] = f"is {value}, expected 1 or more"
        fault = intrinsics_fault(camera.K_cam, *size.values())
        faults[f"K_cam of {name}"] = None if fault is None else fault[1]
        faults[f"T_ego_cam of {name}"] = transform_fault(camera.T_ego_cam, MAX_MOUNTING)
    for what, text in faults.items():
        if text is not None:
            raise InputError(f"{where}: {what} {text}: calibrate again.")


def _rows(matrix: np.ndarray) -> Matrix:
    return tuple(tuple(float(value) for value in row) for row in matrix)


def _matrix(rows: Matrix, size: int, where: str) -> np.ndarray:
    if len(rows) != size or any(len(row) != size for row in rows):
        raise InputError(
            f"{where} has rows of {[len(row) for row in rows]} values, expected {size} x {size}."
        )
    return np.array(rows, dtype=np.float64)
