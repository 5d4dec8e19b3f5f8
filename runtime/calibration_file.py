"""The rig as a small JSON file: what a car without a recorded log starts from."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from perception import atomic_file, json_codec
from perception.errors import InputError
from perception.messages import Calibration, CameraCalibration

FORMAT_VERSION = 1
"""Raised when an older runtime could misread a newer file."""

ORTHONORMAL_TOLERANCE = 1e-3
"""How far R R^T may be from the identity. Source: ours; the same as for quaternions in
`perception.geometry.rigid`."""

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
        InputError: The file is absent or no calibration, or a number in it cannot be right: not
            finite, a rotation that is not orthonormal, a focal length that is not positive.
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
            K_cam=_intrinsics(entry.K_cam, f"{path}: K_cam of {name}"),
            T_ego_cam=_transform(entry.T_ego_cam, f"{path}: T_ego_cam of {name}"),
            width_px=_size(entry.width_px, f"{path}: width_px of {name}"),
            height_px=_size(entry.height_px, f"{path}: height_px of {name}"),
        )
        for name, entry in file.cameras.items()
    }
    return Calibration(
        cameras=cameras, T_ego_lidar=_transform(file.T_ego_lidar, f"{path}: T_ego_lidar")
    )


def check_calibration(calibration: Calibration, where: str) -> None:
    """Look at a rig that comes from elsewhere as `read_calibration` looks at a file's.

    Args:
        calibration: The rig.
        where: Its origin, for the message.

    Raises:
        InputError: As `read_calibration`.
    """
    _transform(calibration.T_ego_lidar, f"{where}: T_ego_lidar")
    for name, camera in calibration.cameras.items():
        _intrinsics(camera.K_cam, f"{where}: K_cam of {name}")
        _transform(camera.T_ego_cam, f"{where}: T_ego_cam of {name}")
        _size(camera.width_px, f"{where}: width_px of {name}")
        _size(camera.height_px, f"{where}: height_px of {name}")


def _rows(matrix: np.ndarray) -> Matrix:
    return tuple(tuple(float(value) for value in row) for row in matrix)


def _matrix(rows: Sequence[Sequence[float]] | np.ndarray, size: int, where: str) -> np.ndarray:
    if len(rows) != size or any(len(row) != size for row in rows):
        raise InputError(
            f"{where} has rows of {[len(row) for row in rows]} values, expected {size} x {size}."
        )
    matrix = np.array(rows, dtype=np.float64)
    if not np.isfinite(matrix).all():
        raise InputError(f"{where} holds a number that is not finite: calibrate again.")
    return matrix


def _transform(rows: Sequence[Sequence[float]] | np.ndarray, where: str) -> np.ndarray:
    T = _matrix(rows, 4, where)
    R = T[:3, :3]
    with np.errstate(over="ignore", invalid="ignore"):  # numbers near 1e308
        error = float(np.abs(R @ R.T - np.eye(3)).max())
    orthonormal = error <= ORTHONORMAL_TOLERANCE  # false for NaN too
    if not orthonormal or np.linalg.det(R) < 0 or (T[3] != (0, 0, 0, 1)).any():
        raise InputError(
            f"{where} is no rigid transform (R R^T differs from 1 by {error:.2g}, det R = "
            f"{np.linalg.det(R):.3g}, last row {T[3].tolist()}): expected a rotation, a "
            "translation and 0 0 0 1."
        )
    return T


def _intrinsics(rows: Sequence[Sequence[float]] | np.ndarray, where: str) -> np.ndarray:
    K = _matrix(rows, 3, where)
    if K[0, 0] <= 0 or K[1, 1] <= 0:
        raise InputError(
            f"{where} has focal lengths {K[0, 0]} and {K[1, 1]} px, expected positive ones."
        )
    if K[1, 0] != 0 or (K[2] != (0, 0, 1)).any():
        raise InputError(
            f"{where} is {K.tolist()}, expected [[fx, s, cx], [0, fy, cy], [0, 0, 1]]."
        )
    return K


def _size(value: int, where: str) -> int:
    if value < 1:
        raise InputError(f"{where} is {value}, expected 1 or more.")
    return value
