from pathlib import Path

import numpy as np
import pytest

from perception.errors import InputError
from perception.geometry.pool_table import PoolTable
from perception.geometry.pool_table_file import load_table, save_table

# one camera, two bins, 2 x 1 pixels: both rows of bin 0 in cell 0, row 1 of bin 1 in cell 2
TABLE = PoolTable(
    runs=np.array([[0, 0, 2], [3, 1, 1]], np.int32), cell_start=np.array([0, 1, 1, 2], np.int32)
)
KEY = "ab" * 32
SIZES = (1, 2, 2, 1)


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    save_table(tmp_path / "table.npz", TABLE, KEY)
    table = load_table(tmp_path / "table.npz", KEY, *SIZES)
    np.testing.assert_array_equal(table.runs, TABLE.runs)
    np.testing.assert_array_equal(table.cell_start, TABLE.cell_start)


def test_another_calibration_is_refused(tmp_path: Path) -> None:
    save_table(tmp_path / "table.npz", TABLE, KEY)
    with pytest.raises(InputError, match="another calibration or grid"):
        load_table(tmp_path / "table.npz", "cd" * 32, *SIZES)


def test_indices_outside_the_feature_map_are_refused(tmp_path: Path) -> None:
    save_table(tmp_path / "table.npz", TABLE, KEY)
    with pytest.raises(InputError, match=r"run 0 is .* outside the feature map"):
        load_table(tmp_path / "table.npz", KEY, 1, 2, 1, 1)


def test_another_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_table(tmp_path / "table.npz", TABLE, KEY)
    monkeypatch.setattr("perception.geometry.pool_table_file.TABLE_VERSION", 2)
    with pytest.raises(InputError, match="version 1, this program reads 2"):
        load_table(tmp_path / "table.npz", KEY, *SIZES)


@pytest.mark.parametrize("damage", ["cut", "missing", "text", "other arrays"])
def test_what_is_no_table_is_refused(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "table.npz"
    save_table(path, TABLE, KEY)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:300])
    elif damage == "missing":
        path.unlink()
    elif damage == "text":
        path.write_text("no table")
    else:
        np.savez(path, runs=TABLE.runs)
    with pytest.raises(InputError, match="cannot be read as a pool table"):
        load_table(path, KEY, *SIZES)
