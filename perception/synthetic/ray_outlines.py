"""What each annotated object would show if it stood alone, for its visibility."""

import itertools
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int64

from perception.synthetic.ray_windows import Windows


@dataclass(frozen=True, kw_only=True)
class Outlines:
    """One small picture per annotated object: rays that meet any of its boxes."""

    object_index: Int64[np.ndarray, " k"]
    """Of each window; negative: none."""
    begin: Int64[np.ndarray, " objects_and_1"]
    """Where an object's picture begins in `is_met`; then the total."""
    line: Int64[np.ndarray, " objects"]
    """First line of an object's picture in the grid."""
    column: Int64[np.ndarray, " objects"]
    width: Int64[np.ndarray, " objects"]
    is_met: Bool[np.ndarray, " cells"]
    """Filled by the caster."""

    @staticmethod
    def of(windows: Windows, object_index: Int64[np.ndarray, " k"], num_objects: int) -> "Outlines":
        """Empty pictures, each as large as the windows of an object need."""
        annotated = object_index >= 0
        index = object_index[annotated]
        far = np.iinfo(np.int64).max
        first, end = np.full((2, num_objects), far), np.zeros((2, num_objects), dtype=np.int64)
        np.minimum.at(first[0], index, windows.line[annotated])
        np.minimum.at(first[1], index, windows.column[annotated])
        np.maximum.at(end[0], index, windows.end_line[annotated])
        np.maximum.at(end[1], index, windows.end_column[annotated])
        height, width = np.where(end > 0, end - first, 0)
        begin = np.concatenate([[0], np.cumsum(height * width)])
        return Outlines(
            object_index=object_index,
            begin=begin,
            line=first[0],
            column=first[1],
            width=width,
            is_met=np.zeros(begin[-1], dtype=bool),
        )

    def of_window(self, k: int, here: tuple[slice, slice]) -> Bool[np.ndarray, "h w"] | None:
        """View of window k in its object's picture; None for clutter."""
        index = int(self.object_index[k])
        if index < 0:
            return None
        cells = self.is_met[self.begin[index] : self.begin[index + 1]]
        picture = cells.reshape(-1, self.width[index])
        line, column = int(self.line[index]), int(self.column[index])
        return picture[
            here[0].start - line : here[0].stop - line,
            here[1].start - column : here[1].stop - column,
        ]

    def mark(
        self,
        k: Int64[np.ndarray, " n"],
        line: Int64[np.ndarray, " n"],
        column: Int64[np.ndarray, " n"],
    ) -> None:
        """Rays, by line and column of the grid, that meet the box of window k."""
        annotated = self.object_index[k] >= 0
        index = self.object_index[k[annotated]]
        line, column = line[annotated] - self.line[index], column[annotated] - self.column[index]
        self.is_met[self.begin[index] + line * self.width[index] + column] = True

    def areas(self) -> Int64[np.ndarray, " objects"]:
        """Rays that meet each object."""
        pictures = itertools.pairwise(self.begin.tolist())
        return np.array([np.count_nonzero(self.is_met[a:b]) for a, b in pictures], dtype=np.int64)
