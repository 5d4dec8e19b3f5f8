"""What a camera makes of the light: exposure, vignette, tint, contrast, noise."""

import cv2
import numpy as np
from jaxtyping import UInt8

from perception.synthetic.conditions import Conditions
from perception.synthetic.noise_tiles import noise_tiles

_TARGET_BRIGHTNESS = 112.0
"""Mean of an image that the exposure strives for, 0..255. Source: ours, as the rest here."""
_EXPOSURE_STRENGTH = 0.45
_EXPOSURE_RANGE = (0.8, 1.35)
_EXPOSURE_ERROR = 0.03
_VIGNETTE = 0.16
"""Light that is missing in the corners."""
_BLOCK_ROWS = 24
"""Rows that are worked on at once: few enough for the processor's cache. Divides the tile's."""


def develop(
    image: UInt8[np.ndarray, "h w 4"], conditions: Conditions, rng: np.random.Generator
) -> UInt8[np.ndarray, "h w 3"]:
    """Make a picture of the light that reaches the sensor.

    The noise is independent of the light; its standard deviation is `conditions.noise`.
    """
    height, width = image.shape[:2]
    mean = max(float(image[::8, ::8, :3].mean()), 1.0)
    gain = (_TARGET_BRIGHTNESS / mean) ** _EXPOSURE_STRENGTH
    gain = float(np.clip(gain, *_EXPOSURE_RANGE)) * conditions.contrast
    gain *= float(rng.uniform(1 - _EXPOSURE_ERROR, 1 + _EXPOSURE_ERROR))
    x = np.square(np.linspace(-1, 1, width, dtype=np.float32))
    y = np.square(np.linspace(-1, 1, height, dtype=np.float32))[:, None]
    tile = noise_tiles().sensor
    top = int(rng.integers(len(tile) // _BLOCK_ROWS)) * _BLOCK_ROWS
    left = int(rng.integers(max(tile.shape[1] - width, 0) + 1))
    columns = (left + np.arange(width)) % tile.shape[1]
    picture = np.empty((height, width, 3), np.uint8)
    for begin in range(0, height, _BLOCK_ROWS):
        rows = slice(begin, min(begin + _BLOCK_ROWS, height))
        falloff = np.float32(gain) * (1 - np.float32(_VIGNETTE / 2) * (x + y[rows]))
        gains = cv2.merge([falloff * np.float32(value) for value in conditions.tint_rgb])
        light = cv2.multiply(cv2.cvtColor(image[rows], cv2.COLOR_RGBA2RGB), gains, dtype=cv2.CV_32F)
        first = (top + begin) % len(tile)
        noise = tile[first : first + rows.stop - begin]
        whole = noise[:, left : left + width] if width <= tile.shape[1] else noise[:, columns]
        cv2.scaleAdd(whole, conditions.noise, light, light)
        np.add(light, np.float32(128 * (1 - conditions.contrast)), out=light)
        np.maximum(light, 0, out=light)
        cv2.convertScaleAbs(light, picture[rows])
    return picture
