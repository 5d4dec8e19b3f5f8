"""From a camera's full image to the network's input: resize, then keep the bottom rows.

Bilinear sampling between pixel centres, written in numpy so that training and car compute the very
same bytes with nothing to install.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float64, Int64, UInt8, UInt16


@dataclass(frozen=True, kw_only=True)
class ImageCrop:
    """Size of the network's image and how it is cut from a camera's."""

    height_px: int
    """Rows of the network's image."""
    width_px: int
    """Columns of the network's image; the camera's full width is resized to it."""

    def __post_init__(self) -> None:
        """Refuse an empty image."""
        if self.height_px < 1 or self.width_px < 1:
            raise ValueError(f"image is {self.width_px} x {self.height_px} px, expected 1 or more")

    def A_img_aug_img(self, width_px: int, height_px: int) -> Float64[np.ndarray, "3 3"]:
        """Homography from the camera's pixels to the network's.

        Args:
            width_px: Width of the camera's image.
            height_px: Height of the camera's image.

        Raises:
            ValueError: The resized image has fewer rows than the network wants.
        """
        scale = self.width_px / width_px
        top = round(height_px * scale) - self.height_px
        if top < 0:
            raise ValueError(
                f"image {width_px} x {height_px} px resized to width {self.width_px} has "
                f"{round(height_px * scale)} rows, expected {self.height_px} or more: "
                "use another camera or a lower crop"
            )
        return np.array([[scale, 0.0, 0.0], [0.0, scale, -float(top)], [0.0, 0.0, 1.0]])

    def apply(
        self,
        rgb: UInt8[np.ndarray, "h w 3"],
        out: UInt8[np.ndarray, "h_aug w_aug 3"] | None = None,
    ) -> UInt8[np.ndarray, "h_aug w_aug 3"]:
        """Resize and crop an image.

        Args:
            rgb: The camera's image. No copy is made of a view that turns another layout into RGB:
                padded rows, `bgr[..., ::-1]`, `bgra[..., 2::-1]`, a grey image broadcast.
            out: Where the result is written; None makes a new array.

        Returns:
            `out`, or the new array.
        """
        height, width, _ = rgb.shape
        lines, strides = _memory(rgb)
        taps = _bilinear_taps(self, width, height, strides)
        # In place: fresh arrays of this size cost more than the arithmetic on them.
        rows = []
        for line in (taps.upper_line, taps.lower_line):
            source = lines[line]
            row = source.take(taps.left_byte, axis=1) * taps.left
            row += source.take(taps.right_byte, axis=1) * taps.right
            row >>= 8
            rows.append(row)
        blend, bottom = rows
        blend *= taps.upper
        bottom *= taps.lower
        blend += bottom
        blend += 128
        blend >>= 8
        if out is None:
            out = np.empty((self.height_px, self.width_px, 3), np.uint8)
        out[...] = blend.reshape(out.shape)
        return out


def _memory(
    rgb: UInt8[np.ndarray, "h w 3"],
) -> tuple[UInt8[np.ndarray, "h n"], tuple[int, int]]:
    """The bytes of each line, from its lowest address on, and the strides of column and channel.

    An image upside down or mirrored is copied: no camera sends one.
    """
    if rgb.strides[0] < 0 or rgb.strides[1] < 0:
        rgb = np.ascontiguousarray(rgb)
    row, column, channel = rgb.strides
    height, width, _ = rgb.shape
    lowest = rgb if channel >= 0 else rgb[..., ::-1]
    shape = (height, (width - 1) * column + 2 * abs(channel) + 1)
    lines = np.lib.stride_tricks.as_strided(lowest, shape, (row, 1), writeable=False)
    return lines, (column, channel)


@dataclass(frozen=True, kw_only=True)
class _Taps:
    """Where the four neighbours of each output value lie, and their weights out of 256."""

    upper_line: Int64[np.ndarray, " h_aug"]
    lower_line: Int64[np.ndarray, " h_aug"]
    left_byte: Int64[np.ndarray, " n"]
    right_byte: Int64[np.ndarray, " n"]
    left: UInt16[np.ndarray, " n"]
    right: UInt16[np.ndarray, " n"]
    upper: UInt16[np.ndarray, "h_aug 1"]
    lower: UInt16[np.ndarray, "h_aug 1"]


@lru_cache(maxsize=16)
def _bilinear_taps(crop: ImageCrop, width: int, height: int, strides: tuple[int, int]) -> _Taps:
    A = crop.A_img_aug_img(width, height)
    u = (np.arange(crop.width_px) + 0.5 - A[0, 2]) / A[0, 0] - 0.5
    v = (np.arange(crop.height_px) + 0.5 - A[1, 2]) / A[1, 1] - 0.5
    u, v = np.clip(u, 0, width - 1), np.clip(v, 0, height - 1)
    u_low, v_low = np.floor(u).astype(np.int64), np.floor(v).astype(np.int64)
    column_stride, channel_stride = strides
    channels = np.arange(3) * channel_stride - 2 * min(channel_stride, 0)

    def byte(columns: np.ndarray) -> np.ndarray:
        return (columns[:, None] * column_stride + channels).reshape(-1)

    right = np.repeat(np.round((u - u_low) * 256), 3).astype(np.uint16)
    lower = np.round((v - v_low) * 256).astype(np.uint16)[:, None]
    return _Taps(
        upper_line=v_low,
        lower_line=np.minimum(v_low + 1, height - 1),
        left_byte=byte(u_low),
        right_byte=byte(np.minimum(u_low + 1, width - 1)),
        left=np.uint16(256) - right,
        right=right,
        upper=np.uint16(256) - lower,
        lower=lower,
    )
