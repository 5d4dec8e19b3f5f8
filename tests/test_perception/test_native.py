import _ctypes
import shutil

import numpy as np
import pytest

import perception
from perception import native
from perception.errors import InputError
from perception.geometry.frustum import Frustum
from perception.geometry.grid import BevGrid


@pytest.fixture
def look_again(monkeypatch):
    """Makes the module look for the library anew, now and after the test."""

    def look(named: str | None) -> None:
        if named is None:
            monkeypatch.delenv("BEV_PLUGINS", raising=False)
        else:
            monkeypatch.setenv("BEV_PLUGINS", named)
        native._load.cache_clear()

    yield look
    monkeypatch.undo()
    native._load.cache_clear()


@pytest.fixture
def library():
    if native.library() is None:
        pytest.skip(native.description())
    return native.library()


def test_library_and_description_agree():
    if native.library() is None:
        assert native.library_path() is None
        assert native.description().startswith("kernels in Python (")
    else:
        assert native.library_path().is_file()
        assert native.description() == (
            f"compiled kernels, {native.library().isa} ({native.library_path()})"
        )


def test_without_a_library_everybody_is_told_why(look_again, tmp_path):
    missing, text = tmp_path / "no.so", tmp_path / "text.so"
    text.write_text("no library\n")
    for named, words in (
        ("", "BEV_PLUGINS is empty"),
        (str(missing), f"no file {missing}: install with a C++ compiler"),
        (str(text), str(text)),  # what the loader of the system says
        (_ctypes.__file__, "has version None, expected 1"),  # a library, and not ours
    ):
        look_again(named)
        assert native.library() is None
        assert native.library_path() is None
        assert native.description().startswith("kernels in Python (")
        assert words in native.description()


def test_the_installed_library_goes_before_a_built_one(library, look_again, tmp_path, monkeypatch):
    installed = shutil.copy(library.path, tmp_path / native.LIBRARY_NAME)
    monkeypatch.setattr(perception, "__path__", [*perception.__path__, str(tmp_path)])
    look_again(None)
    # the package's own folder holds none: an editable install keeps it in the environment
    assert native.library_path() in (installed, *(p for p in [library.path] if p != installed))
    monkeypatch.setattr(perception, "__path__", [str(tmp_path)])
    look_again(None)
    assert native.library_path() == installed


def problem():
    depth, feat = np.ones((1, 2, 3, 4), np.float32), np.ones((1, 3, 4, 5), np.float32)
    runs, cell_start = np.array([[0, 0, 3]], np.int32), np.array([0, 1, 1], np.int32)
    return [depth, feat, runs, cell_start, np.zeros((2, 5), np.float32)]


def test_arrays_are_pooled_in_place(library):
    arrays = problem()
    library.bev_pool_forward(*arrays)
    np.testing.assert_array_equal(arrays[-1], [[3] * 5, [0] * 5])


@pytest.mark.parametrize(
    ("index", "wrong"),
    [
        (0, np.ones((1, 2, 3, 4))),  # float64
        (0, np.ones((2, 2, 3, 4), np.float32)),  # more images than features have
        (0, np.ones((1, 2, 4, 4), np.float32)),  # other rows
        (1, np.ones((1, 3, 5, 4), np.float32).swapaxes(2, 3)),  # not contiguous
        (2, np.array([[0, 0, 3]])),  # int64
        (2, np.array([0, 0, 3], np.int32)),  # no columns
        (3, np.array([0, 1], np.int32)),  # of one cell
        (4, np.zeros((2, 6), np.float32)),  # another number of channels
    ],
)
def test_arrays_that_do_not_belong_together_are_refused(library, index, wrong):
    arrays = problem()
    arrays[index] = wrong
    with pytest.raises((InputError, TypeError)):  # TypeError where shapes are checked at each call
        library.bev_pool_forward(*arrays)


def test_backward_refuses_an_output_of_another_shape(library):
    depth, feat, runs, cell_start, bev = problem()
    with pytest.raises((InputError, TypeError)):
        library.bev_pool_backward(bev, depth, feat, runs, cell_start, depth[:, :1].copy(), feat)


def test_no_threads_are_refused(library):
    with pytest.raises(InputError, match="size is not positive"):
        library.bev_pool_forward(*problem(), num_threads=0)


def test_more_points_than_indices_are_refused(library):
    frustum = Frustum(stride=8, depth_min=1.0, depth_max=9.0, depth_step=1.0, z_min=-1.0, z_max=1.0)
    grid = BevGrid(x_min=0.0, x_max=1.0, y_min=0.0, y_max=1.0, cell=1.0)
    rig = np.zeros((1, 3, 3)), np.zeros((1, 3)), np.ones(1, bool)
    with pytest.raises(InputError, match="more than 32 bits can index"):
        library.build_pool_table(*rig, frustum, grid, 1 << 15, 1 << 14)  # 2^3 2^15 2^14 = 2^32
