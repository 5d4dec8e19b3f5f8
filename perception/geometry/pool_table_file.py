"""Pool tables on disk: for a rig that does not move, built once and refused for any other rig."""

import io
import zipfile
from pathlib import Path

import numpy as np

from perception import atomic_file
from perception.errors import InputError
from perception.geometry.pool_table import TABLE_VERSION, PoolTable, table_fault

_FIELDS = ("version", "key", "runs", "cell_start")


def save_table(path: Path, table: PoolTable, key: str) -> None:
    """Write a table and its name, `pool_table.table_key`, into a numpy archive."""
    buffer = io.BytesIO()
    np.savez(
        buffer,
        version=np.int64(TABLE_VERSION),
        key=np.frombuffer(key.encode(), np.uint8),
        runs=table.runs,
        cell_start=table.cell_start,
    )
    atomic_file.write_bytes(path, buffer.getvalue())


def load_table(
    path: Path, key: str, num_images: int, num_depths: int, height: int, width: int
) -> PoolTable:
    """Read a table that was made for the rig of that name.

    Args:
        path: Numpy archive made by `save_table`.
        key: `pool_table.table_key` of the rig it is wanted for.
        num_images: Cameras.
        num_depths: Depth bins.
        height: Rows of the feature map.
        width: Columns of the feature map.

    Raises:
        InputError: The file is none, or of another version or calibration, or an index in it points
            outside the feature map.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            version, name, runs, cell_start = (archive[field] for field in _FIELDS)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{path} cannot be read as a pool table ({error}): build it again."
        ) from error
    if version.shape != () or int(version) != TABLE_VERSION:
        raise InputError(
            f"{path} is a pool table of version {version}, this program reads {TABLE_VERSION}: "
            "build it again."
        )
    found = name.tobytes().decode(errors="replace")
    if found != key:
        raise InputError(
            f"{path} is the pool table of another calibration or grid ({found[:12]}..., expected "
            f"{key[:12]}...): build it again."
        )
    if not (runs.dtype == cell_start.dtype == np.int32 and runs.ndim == 2 and cell_start.ndim == 1):
        raise InputError(f"{path} does not hold the arrays of a pool table: build it again.")
    fault = table_fault(runs, cell_start, num_images, num_depths, height, width)
    if fault is not None:
        raise InputError(f"{path} is damaged ({fault}): build it again.")
    return PoolTable(runs=runs, cell_start=cell_start)
