"""Writes cameras, boxes and map from above as a video, or as numbered pictures."""

import os
import textwrap
from pathlib import Path

import cv2
import numpy as np

from perception.drawing import draw_frame, save_png
from perception.errors import InputError
from perception.messages import PerceptionResult, SensorFrame

BAR_HEIGHT_PX = 30
BAR_COLORS = {
    "fusion": (40, 110, 60),
    "camera": (150, 110, 20),
    "lidar": (60, 80, 160),
    "invalid": (160, 40, 40),
}
"""RGB of the line on top, by mode."""
MAX_SCALE_PX = 1600
"""Widest video [px]; pictures keep their size. Source: ours; the size that players show."""


class VideoWriter:
    """Keeps frames and their results; a video appears when it is closed, pictures at once."""

    def __init__(self, path: Path, *, fps: float, min_score: float = 0.3) -> None:
        """Prepare.

        Args:
            path: An .mp4 file, or a folder for PNG files.
            fps: Frames per second of the video.
            min_score: Boxes below are left out.

        Raises:
            InputError: The file has another ending, or the folder cannot be made.
        """
        if path.suffix not in (".mp4", ""):
            raise InputError(f"{path} ends in {path.suffix!r}, expected .mp4 or a folder for PNG.")
        self._path, self._fps, self._min_score = path, fps, min_score
        self._temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp.mp4")
        self._video: cv2.VideoWriter | None = None
        self._size = (0, 0)
        self._num = 0
        if not path.suffix:
            try:
                path.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise InputError(
                    f"Cannot make {path}: {error.strerror}; check its parent."
                ) from error

    def add(self, scene: str, frame: SensorFrame, result: PerceptionResult) -> None:
        """Take one frame.

        Raises:
            InputError: It cannot be written.
        """
        picture = draw_frame(frame, result.detections, result.map_mask, min_score=self._min_score)
        picture = np.vstack([_bar(scene, result, picture.shape[1]), picture])
        if self._path.suffix:
            self._add_to_video(picture)
        else:
            save_png(self._path / f"{self._num:05d}.png", picture)
        self._num += 1

    def close(self) -> None:
        """Finish the video; or remove the pictures that an earlier, longer run left behind these.

        Raises:
            InputError: The video cannot be written.
        """
        if self._video is not None:
            self._video.release()
            try:
                self._temporary.replace(self._path)
            except OSError as error:
                raise InputError(
                    f"Cannot write {self._path}: {error.strerror}; check its folder."
                ) from error
        elif self._num:
            for picture in self._path.glob("[0-9]" * 5 + ".png"):
                if int(picture.stem) >= self._num:
                    picture.unlink()

    def _add_to_video(self, picture: np.ndarray) -> None:
        if self._video is None:
            height, width, _ = picture.shape
            scale = min(1.0, MAX_SCALE_PX / width)
            self._size = (round(width * scale) // 2 * 2, round(height * scale) // 2 * 2)
            codec = cv2.VideoWriter_fourcc(*"mp4v")  # type: ignore[attr-defined]
            self._video = cv2.VideoWriter(str(self._temporary), codec, self._fps, self._size)
            if not self._video.isOpened():
                raise InputError(
                    f"Cannot write {self._path}: check its folder, or give a folder for PNG."
                )
        small = cv2.resize(picture, self._size, interpolation=cv2.INTER_AREA)
        self._video.write(cv2.cvtColor(small, cv2.COLOR_RGB2BGR))


def _bar(scene: str, result: PerceptionResult, width: int) -> np.ndarray:
    """A line with what the result was made from, in the colour of its mode."""
    bar = np.full((BAR_HEIGHT_PX, width, 3), BAR_COLORS[result.mode], np.uint8)
    missing = ", ".join(result.sensors_missing) or "nothing"
    text = (
        f"{scene} {result.stamp_ns * 1e-9:.3f} s | mode {result.mode} | missing: {missing} | "
        f"bundle {result.bundle_digest[:12]}"
    )
    line = textwrap.shorten(text, width // 9, placeholder="...")
    cv2.putText(bar, line, (10, 21), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (255, 255, 255), 1, cv2.LINE_AA)
    return bar
