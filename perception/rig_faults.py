"""What cannot be right of intrinsics and poses: one rule for files, messages and frames."""

from typing import Literal

import numpy as np

ROTATION_TOLERANCE = 1e-3
"""How far R R^T may be from the identity. Source: ours; the same as for quaternions in
`perception.geometry.rigid`, and matrices in single precision pass."""

MAX_POSITION = 1e7
"""Positions of the car beyond this are damage [m]. Source: ours; UTM northings stay below."""

MAX_MOUNTING = 100.0
"""Sensors further than this from the car's origin are damage [m]. Source: ours; the longest road
trains have half of it."""

MAX_LENGTH_SHARE = 100.0
"""Focal lengths lie within this factor of the picture's longer side, either way, and the principal
point is no further from its first pixel. Source: ours; views of 0.6 to 179 degrees."""

MAX_SKEW = 0.1
"""Largest skew of the pixels' axes, as a share of the focal length. Source: ours; 6 degrees."""

IntrinsicsReason = Literal["intrinsics", "focal_length", "principal_point"]


def rotation_error(R: np.ndarray) -> float:
    """Largest difference of R R^T from the identity; infinite for a mirror, NaN for no numbers."""
    with np.errstate(all="ignore"):  # numbers near 1e308
        error = float(np.abs(R @ R.T - np.eye(3)).max())
        return error if not np.linalg.det(R) < 0 else np.inf


def transform_fault(T: np.ndarray, max_length: float) -> str | None:
    """Why a 4x4 matrix is no rigid transform of at most this translation [m]; None where it is."""
    if T.shape != (4, 4) or not np.isfinite(T).all():
        return f"has the shape {T.shape} or a number that is not finite"
    error = rotation_error(T[:3, :3])
    if not error <= ROTATION_TOLERANCE or (T[3] != (0, 0, 0, 1)).any():
        return (
            f"is no rigid transform (R R^T differs from 1 by {error:.2g}, det R = "
            f"{np.linalg.det(T[:3, :3]):.3g}, last row {T[3].tolist()})"
        )
    if not np.abs(T[:3, 3]).max() <= max_length:
        return f"has the translation {T[:3, 3].tolist()}, the limit is {max_length:g} m"
    return None


def intrinsics_fault(
    K_cam: np.ndarray, width_px: int, height_px: int
) -> tuple[IntrinsicsReason, str] | None:
    """Why a matrix cannot be a camera's intrinsics, as a word and in words; None where it can."""
    if K_cam.shape != (3, 3) or not np.isfinite(K_cam).all():
        return "intrinsics", f"has the shape {K_cam.shape} or a number that is not finite"
    (fx, skew, cx), (below, fy, cy), last = K_cam.tolist()
    if below != 0 or last != [0, 0, 1]:
        return "intrinsics", f"is {K_cam.tolist()}, expected [[fx, s, cx], [0, fy, cy], [0, 0, 1]]"
    side = max(width_px, height_px)
    low, high = side / MAX_LENGTH_SHARE, side * MAX_LENGTH_SHARE
    if not (low <= fx <= high and low <= fy <= high):
        return "focal_length", (
            f"has focal lengths {fx:g} and {fy:g} px, expected {low:g}..{high:g} for a picture of "
            f"{width_px} x {height_px} px"
        )
    if abs(skew) > MAX_SKEW * fx:
        return "intrinsics", f"has a skew of {skew:g} px, the limit is {MAX_SKEW:g} of {fx:g}"
    if max(abs(cx), abs(cy)) > high:
        return "principal_point", f"has its principal point at ({cx:g}, {cy:g}) px"
    return None
