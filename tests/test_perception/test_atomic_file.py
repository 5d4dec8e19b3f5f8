from pathlib import Path

import pytest

from perception import atomic_file
from perception.errors import InputError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_files_are_replaced_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    atomic_file.write_text(path, "eins")
    atomic_file.write_text(path, "zwölf")
    assert path.read_bytes() == "zwölf".encode()
    assert names(tmp_path) == ["a.txt"]


def test_a_file_that_cannot_be_replaced_is_named_and_stays(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    with pytest.raises(InputError, match=r"Cannot write .*a: "):
        atomic_file.write_bytes(tmp_path / "a", b"x")
    with pytest.raises(InputError, match="No such file or directory"):
        atomic_file.write_bytes(tmp_path / "nowhere" / "x", b"x")
    assert names(tmp_path) == ["a"]


def test_a_folder_appears_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "run"
    with atomic_file.new_folder(path) as folder:
        (folder / "x").write_text("1")
        assert not path.exists()
    assert names(path) == ["x"]
    assert names(path.parent) == ["run"]


def test_an_interrupted_folder_leaves_nothing(tmp_path: Path) -> None:
    def interrupt() -> None:
        with atomic_file.new_folder(tmp_path / "run") as folder:
            (folder / "x").write_text("1")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupt()
    assert names(tmp_path) == []


def test_an_existing_folder_is_kept_unless_it_may_be_replaced(tmp_path: Path) -> None:
    path = tmp_path / "run"
    path.mkdir()
    (path / "old").write_text("")
    with pytest.raises(InputError, match="exists already"), atomic_file.new_folder(path):
        pass
    assert names(path) == ["old"]
    with atomic_file.new_folder(path, overwrite=True) as folder:
        (folder / "new").write_text("")
        assert names(path) == ["old"]
    assert names(path) == ["new"]
    assert names(tmp_path) == ["run"]


def test_a_file_is_never_replaced_by_a_folder(tmp_path: Path) -> None:
    path = tmp_path / "run"
    path.write_text("mine")
    with (
        pytest.raises(InputError, match="it is a file"),
        atomic_file.new_folder(path, overwrite=True),
    ):
        pass
    assert path.read_text() == "mine"


def test_a_folder_below_a_file_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(InputError, match="Cannot make"),
        atomic_file.new_folder(tmp_path / "file" / "run"),
    ):
        pass
