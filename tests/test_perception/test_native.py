import _ctypes
import os
import shutil
import sysconfig

import numpy as np
import pytest

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


def test_where_there_is_a_compiler_there_is_a_library():
    # an install goes on without: were this skipped, too, a mistake in the C++ code would go unseen
    compiler = shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++")
    if compiler is None or "BEV_PLUGINS" in os.environ:
        pytest.skip("no C++ compiler, or BEV_PLUGINS is set")
    assert native.library() is not None, f"{compiler} is there: {native.description()}"


def test_to_do_without_is_no_fault(look_again):
    look_again("")
    assert native.library() is None
    assert native.library_path() is None
    assert native.description() == "kernels in Python (BEV_PLUGINS is empty)"


def test_a_named_file_that_is_no_library_is_refused(look_again, tmp_path):
    missing, text = tmp_path / "no.so", tmp_path / "text.so"
    text.write_text("no library\n")
    for named, words in (
        (missing, "No such file"),
        (text, "text.so: "),  # what the loader of the system says
        (
            _ctypes.__file__,
            f"has version None, expected {native.VERSION}",
        ),  # a library, and not ours
    ):
        look_again(str(named))
        for ask in (native.library, native.library_path, native.description):
            with pytest.raises(InputError, match=f"^BEV_PLUGINS names {named}.*{words}"):
                ask()


@pytest.fixture
def places(look_again, tmp_path, monkeypatch):
    """Where an installed library and one under development would lie."""
    installed = tmp_path / "site" / "perception" / native.LIBRARY_NAME
    built = tmp_path / "tree" / "build" / "plugins" / native.LIBRARY_NAME
    for path in (installed, built):
        path.parent.mkdir(parents=True)
    monkeypatch.setattr(native, "__file__", str(tmp_path / "tree" / "perception" / "native.py"))
    monkeypatch.setattr(sysconfig, "get_path", {"platlib": str(tmp_path / "site")}.get)
    return installed, built


def test_where_nothing_was_built_everybody_is_told(places, look_again):
    look_again(None)
    assert native.library() is None
    assert native.description() == (
        "kernels in Python (libbev_plugins.so was not built when this was installed, which takes a "
        "C++ compiler)"
    )


def test_the_installed_library_goes_before_a_built_one(library, places, look_again, tmp_path):
    beside = tmp_path / "tree" / "perception" / native.LIBRARY_NAME  # as in a wheel
    beside.parent.mkdir()
    for path in (beside, *places):
        shutil.copy(library.path, path)
    for expected in (beside, *places, None):
        look_again(None)
        assert native.library_path() == expected
        if expected is not None:
            expected.unlink()


def test_a_library_of_another_version_hides_no_good_one(library, places, look_again):
    installed, built = places
    shutil.copy(_ctypes.__file__, installed)
    look_again(None)
    assert native.library() is None
    assert f"{installed} has version None, expected {native.VERSION}" in native.description()
    shutil.copy(library.path, built)
    look_again(None)
    assert native.library_path() == built


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


def table():
    return [np.array([[0, 0, 3]], np.int32), np.array([0, 1, 1], np.int32)]


@pytest.mark.parametrize(
    ("index", "wrong"),
    [
        (0, np.array([[0, 0, 3]])),  # int64
        (0, np.array([[0, 0, 3]], np.uint32)),
        (0, np.array([0, 0, 3], np.int32)),  # no columns
        (0, np.array([[0, 0]], np.int32)),
        (0, np.array([[0, 0, 0, 0, 3, 3]], np.int32)[:, ::2]),  # not contiguous
        (1, np.array([0, 1, 1])),  # int64
        (1, np.array([[0, 1, 1]], np.int32)),
    ],
)
def test_what_is_no_table_is_not_looked_at(library, index, wrong):
    arrays = table()
    assert library.pool_table_fault(*arrays, (1, 2, 3, 4)) is None
    arrays[index] = wrong
    with pytest.raises((InputError, TypeError)):
        library.pool_table_fault(*arrays, (1, 2, 3, 4))


def test_a_size_beyond_32_bits_is_a_fault_and_does_not_wrap(library):
    fault = library.pool_table_fault(*table(), (2**32 + 1, 2, 3, 4))
    assert fault == "a size is not positive or more than 32 bits can index"
    assert library.pool_table_fault(table()[0], np.zeros(0, np.int32), (1, 2, 3, 4)) == fault


@pytest.mark.parametrize(
    ("index", "wrong"),
    [
        (0, np.zeros((2, 3, 3), np.float32)),
        (0, np.zeros((1, 3, 3))),  # of one camera
        (0, np.zeros((2, 9))),
        (1, np.zeros((2, 3), np.float32)),
        (1, np.zeros((2, 4))),
        (2, np.ones(2, np.int32)),
        (2, np.ones((2, 1), bool)),
    ],
)
def test_a_rig_of_other_arrays_is_refused(library, index, wrong):
    frustum = Frustum(stride=8, depth_min=1.0, depth_max=9.0, depth_step=1.0, z_min=-1.0, z_max=1.0)
    grid = BevGrid(x_min=0.0, x_max=1.0, y_min=0.0, y_max=1.0, cell=1.0)
    rig = [np.zeros((2, 3, 3)), np.zeros((2, 3)), np.ones(2, bool)]
    assert len(library.build_pool_table(*rig, frustum, grid, 2, 2)[1]) == 2
    rig[index] = wrong
    with pytest.raises((InputError, TypeError)):
        library.build_pool_table(*rig, frustum, grid, 2, 2)


def test_no_threads_are_refused(library):
    with pytest.raises(InputError, match="size is not positive"):
        library.bev_pool_forward(*problem(), num_threads=0)


def test_more_points_than_indices_are_refused(library):
    frustum = Frustum(stride=8, depth_min=1.0, depth_max=9.0, depth_step=1.0, z_min=-1.0, z_max=1.0)
    grid = BevGrid(x_min=0.0, x_max=1.0, y_min=0.0, y_max=1.0, cell=1.0)
    rig = np.zeros((1, 3, 3)), np.zeros((1, 3)), np.ones(1, bool)
    with pytest.raises(InputError, match="more than 32 bits can index"):
        library.build_pool_table(*rig, frustum, grid, 1 << 15, 1 << 14)  # 2^3 2^15 2^14 = 2^32
