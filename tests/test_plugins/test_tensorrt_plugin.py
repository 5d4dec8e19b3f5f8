"""The TensorRT plugin, driven as TensorRT would: with a stand-in for TensorRT's headers, and with
the real ones where TENSORRT_ROOT names their folder. Its kernel runs on the emulated grid.
"""

import ctypes
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from cuda_pool import EMULATION as CUDA_EMULATION
from cuda_pool import HERE, INVALID_VALUE, KERNEL, PLUGINS, build_with_gpp, problem_of_cells
from cuda_pool import upright_cells as cells_of_columns

STAND_IN = HERE / "tensorrt_stand_in"
PLUGIN = PLUGINS / "tensorrt" / "bev_pool_plugin.cpp"
DRIVER = HERE / "tensorrt_plugin_driver.cpp"

FLOAT, HALF, INT8, INT32, INT64 = 0, 1, 2, 3, 8
"""nvinfer1::DataType."""
LINEAR, CHW2 = 0, 1
"""nvinfer1::TensorFormat."""
FIELD_FLOAT32, FIELD_INT32, FIELD_INT64, NO_FIELD = 1, 5, 10, -1
"""nvinfer1::PluginFieldType."""

SHAPES = ((2, 5, 6, 7), (2, 6, 7, 16), (-1, 3), (13,), (12, 16))
FLOATS = (FLOAT, FLOAT, INT32, INT32, FLOAT)
HALVES = (HALF, HALF, INT32, INT32, HALF)


def real_headers() -> Path | None:
    """Folder of the installed TensorRT's NvInferRuntime.h, from TENSORRT_ROOT."""
    root = Path(os.environ.get("TENSORRT_ROOT", "/nowhere"))
    found = [
        folder for folder in (root, root / "include") if (folder / "NvInferRuntime.h").is_file()
    ]
    return found[0] if found else None


KINDS = ["stand-in", *(["real headers"] if real_headers() else [])]


def headers(kind: str) -> Path:
    if kind == "stand-in":
        return STAND_IN
    folder = real_headers()
    if folder is None:
        pytest.skip("no TensorRT headers: set TENSORRT_ROOT to their folder")
    return folder


@dataclass(frozen=True)
class Plugin:
    """A plugin object behind the driver's C interface."""

    library: ctypes.CDLL
    handle: int

    def text(self, which: int) -> str:
        return self.library.plugin_text(self.handle, which).decode()

    def grid_width(self) -> int:
        return self.library.stored_grid_width(self.handle)

    def combination(self, position: int, types: tuple, formats: tuple = (LINEAR,) * 5) -> bool:
        return bool(self.library.combination_of(self.handle, position, ints(types), ints(formats)))

    def output_type(self, types: tuple) -> int:
        return self.library.output_type(self.handle, ints(types), len(types))

    def output_shape(self, shapes: tuple) -> list[int] | None:
        shape = (ctypes.c_int64 * 8)()
        rank = self.library.output_shape(self.handle, *sizes(shapes), shape)
        return None if rank < 0 else shape[:rank]

    def configures(self, shapes: tuple) -> bool:
        return self.library.configure(self.handle, *sizes(shapes)) == 0

    def run(self, shapes: tuple, types: tuple, arrays: list[np.ndarray]) -> int:
        pointers = (ctypes.c_void_p * 4)(*(array.ctypes.data for array in arrays[:4]))
        output = ctypes.c_void_p(arrays[4].ctypes.data)
        return self.library.run_plugin(self.handle, *sizes(shapes), ints(types), pointers, output)


def ints(values: tuple) -> ctypes.Array:
    return (ctypes.c_int32 * len(values))(*values)


def sizes(shapes: tuple) -> tuple[ctypes.Array, ctypes.Array]:
    """Ranks, and the shapes padded to eight sizes."""
    padded = [size for shape in shapes for size in (*shape, *[0] * (8 - len(shape)))]
    return ints(tuple(len(shape) for shape in shapes)), (ctypes.c_int64 * len(padded))(*padded)


@pytest.fixture(scope="module", params=KINDS)
def driver(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    folder = headers(request.param)
    path = tmp_path_factory.mktemp("plugin") / "libdriver.so"
    library = ctypes.CDLL(os.fspath(build_with_gpp(path, [KERNEL, PLUGIN, DRIVER], [folder])))
    pointer = ctypes.c_void_p
    for name in ("clone_plugin", "attach_plugin", "restore_plugin", "create_plugin"):
        getattr(library, name).restype = pointer
    for name in ("clone_plugin", "attach_plugin", "restore_plugin", "delete_plugin"):
        getattr(library, name).argtypes = [pointer]
    library.create_plugin.argtypes = [ctypes.c_int64, ctypes.c_int, ctypes.c_int]
    library.plugin_text.restype = library.creator_text.restype = ctypes.c_char_p
    library.plugin_text.argtypes = [pointer, ctypes.c_int]
    library.stored_grid_width.argtypes = [pointer]
    library.output_type.argtypes = [pointer, pointer, ctypes.c_int]
    library.output_shape.argtypes = [pointer] * 4
    library.combination_of.argtypes = [pointer, ctypes.c_int, pointer, pointer]
    library.configure.argtypes = [pointer] * 3
    library.run_plugin.argtypes = [pointer] * 6
    return library


@pytest.fixture
def make(driver: ctypes.CDLL) -> Iterator[Callable[..., Plugin | None]]:
    """Creates plugins with the field grid_width, or without one, and deletes them in the end."""
    made = []

    def create(width: int = 0, field: int = NO_FIELD, length: int = 1) -> Plugin | None:
        handle = driver.create_plugin(width, field, length)
        if not handle:
            return None
        made.append(handle)
        return Plugin(driver, handle)

    yield create
    for handle in made:
        driver.delete_plugin(handle)


@pytest.fixture
def plugin(make: Callable[..., Plugin]) -> Plugin:
    return make()


def test_is_found_under_the_names_of_the_node(driver: ctypes.CDLL, plugin: Plugin) -> None:
    names = ["BevPool", "1", "perception"]
    assert [driver.creator_text(i).decode() for i in range(4)] == [*names, "grid_width"]
    kinds = ["PLUGIN_V3ONE_CORE", "PLUGIN_V3ONE_BUILD", "PLUGIN_V3ONE_RUNTIME", "PLUGIN"]
    assert [plugin.text(i) for i in range(7)] == [*names, *kinds]


def test_copies_keep_the_grid_width(driver: ctypes.CDLL, make: Callable[..., Plugin]) -> None:
    original = make(360, FIELD_INT32)
    for copy in (driver.clone_plugin, driver.attach_plugin, driver.restore_plugin):
        other = Plugin(driver, copy(original.handle))
        assert other.handle != original.handle
        assert other.grid_width() == 360
        driver.delete_plugin(other.handle)
    assert original.grid_width() == 360


def test_field_of_the_grid_width(make: Callable[..., Plugin | None]) -> None:
    assert make().grid_width() == 0
    assert make(360, FIELD_INT64).grid_width() == 360
    for width, field, length in (
        (-1, FIELD_INT32, 1),
        (1 << 40, FIELD_INT64, 1),
        (360, FIELD_INT32, 2),
        (360, FIELD_FLOAT32, 1),
    ):
        assert make(width, field, length) is None


def test_output_has_the_type_of_the_features(plugin: Plugin) -> None:
    assert plugin.output_type(FLOATS[:4]) == FLOAT
    assert plugin.output_type(HALVES[:4]) == HALF
    assert plugin.output_type(FLOATS[:3]) == -1


def test_output_shape_is_cells_and_channels(plugin: Plugin) -> None:
    # cell_start has one entry more than there are cells
    assert plugin.output_shape(SHAPES) == [13 - 1, 16]


@pytest.mark.parametrize(
    ("tensor", "shape"),
    [(0, (5, 6, 7)), (1, (2, 6, 7, 16, 1)), (2, (3,)), (2, (9, 3, 1)), (3, (13, 1)), (4, (12,))],
)
def test_other_ranks_are_refused(plugin: Plugin, tensor: int, shape: tuple[int, ...]) -> None:
    shapes = (*SHAPES[:tensor], shape, *SHAPES[tensor + 1 :])
    assert tensor == 4 or plugin.output_shape(shapes) is None
    assert not plugin.configures(shapes)


@pytest.mark.parametrize(
    ("tensor", "shape"),
    [
        (0, (3, 5, 6, 7)),  # images
        (0, (2, 5, 7, 7)),  # rows
        (1, (2, 6, 8, 16)),  # columns
        (2, (-1, 2)),  # columns of the table
        (3, (0,)),  # not even a beginning
        (3, (14,)),  # another number of cells than the output's
        (4, (12, 8)),  # channels
    ],
)
def test_sizes_that_disagree_are_refused(
    plugin: Plugin, tensor: int, shape: tuple[int, ...]
) -> None:
    assert plugin.configures(SHAPES)
    assert not plugin.configures((*SHAPES[:tensor], shape, *SHAPES[tensor + 1 :]))


def test_unknown_sizes_agree_with_all(plugin: Plugin) -> None:
    assert plugin.configures(tuple((-1,) * len(shape) for shape in SHAPES))


def test_types_and_formats_that_go_together(plugin: Plugin) -> None:
    for types in (FLOATS, HALVES):
        assert all(plugin.combination(position, types) for position in range(5))
        for position in range(5):
            formats = tuple(CHW2 if i == position else LINEAR for i in range(5))
            assert not plugin.combination(position, types, formats)
    for position, wrong in ((0, INT8), (1, HALF), (2, INT64), (3, FLOAT), (4, HALF)):
        types = tuple(wrong if i == position else FLOATS[i] for i in range(5))
        assert not plugin.combination(position, types)


@pytest.mark.parametrize(("types", "dtype"), [(FLOATS, np.float32), (HALVES, np.float16)])
@pytest.mark.parametrize("width", [0, 4])
def test_enqueue_pools(
    make: Callable[..., Plugin], width: int, types: tuple[int, ...], dtype: type
) -> None:
    problem = problem_of_cells(cells_of_columns(SHAPES[0], 12, seed=2), 12, 16, dtype)
    arrays = [problem.depth, problem.feat, problem.runs, problem.cell_start]
    bev = np.full((12, 16), np.nan, dtype)
    shapes = (*(array.shape for array in arrays), bev.shape)
    assert make(width, FIELD_INT32).run(shapes, types, [*arrays, bev]) == 0
    np.testing.assert_allclose(
        bev, problem.exact(), rtol=1e-3 if types == HALVES else 1e-5, atol=2e-3
    )


def test_enqueue_refuses_what_it_cannot_run(plugin: Plugin) -> None:
    problem = problem_of_cells(cells_of_columns(SHAPES[0], 12, seed=2), 12, 16)
    arrays = [problem.depth, problem.feat, problem.runs, problem.cell_start]
    bev = np.full((12, 16), np.nan, np.float32)
    shapes = (*(array.shape for array in arrays), bev.shape)
    mixed = (HALF, FLOAT, INT32, INT32, FLOAT)
    assert plugin.run(shapes, mixed, [*arrays, bev]) != 0
    assert plugin.run((*shapes[:4], (13, 16)), FLOATS, [*arrays, bev]) != 0
    nowhere = np.ndarray((12, 16), np.float32, buffer=bev.data)
    no_columns = ((2, 5, 6, 0), (2, 6, 0, 16), *shapes[2:])
    assert plugin.run(no_columns, FLOATS, [*arrays, nowhere]) == INVALID_VALUE
    assert np.isnan(bev).all()


def layouts(include: Path, folder: Path) -> str:
    """Virtual tables and layouts that g++ gives the plugin's classes and TensorRT's structs."""
    command = ["g++", "-std=c++17", "-w", "-fdump-lang-class", "-c", str(PLUGIN), "-o", "plugin.o"]
    command += [f"-I{path}" for path in (include, CUDA_EMULATION, KERNEL.parent)]
    subprocess.run(command, cwd=folder, check=True, timeout=100)
    (dump,) = folder.glob("*.class")
    blocks = re.split(r"\n\n", dump.read_text())
    wanted = r"(Vtable for|Class) (bev_plugins::BevPool|nvinfer1::(v_1_0::)?(PluginTensorDesc|"
    wanted += r"DynamicPluginTensorDesc|PluginField|PluginFieldCollection|Dims64|DimsExprs)\b)"
    kept = sorted(block for block in blocks if re.match(wanted, block.strip()))
    assert len(kept) >= 10
    text = re.sub(r"nvinfer1::v_\d_0::", "nvinfer1::", "\n".join(kept))
    # addresses in the compiler, and names of tables and type descriptions, which hold the version
    return re.sub(r"(0x)+[0-9a-f]+|_ZT[IV]\w+", "", text)


def test_the_stand_in_has_the_layout_of_the_real_headers(tmp_path: Path) -> None:
    found = []
    for kind in ("real headers", "stand-in"):
        include = headers(kind)
        folder = tmp_path / kind.replace(" ", "_")
        folder.mkdir()
        found.append(layouts(include, folder))
    assert found[0] == found[1]


REGISTRY = """
import sys
import tensorrt_lean_bindings as trt
registry = trt.get_plugin_registry()
library = registry.load_library(sys.argv[1])
creator = registry.get_creator("BevPool", "1", "perception")
plugin = creator.create_plugin("pool", trt.PluginFieldCollection([]), trt.TensorRTPhase.RUNTIME)
kinds = trt.PluginCapabilityType
found = [plugin.get_capability_interface(kind) for kind in (kinds.CORE, kinds.BUILD, kinds.RUNTIME)]
sys.stdout.write(f"{creator.name} {plugin is not None} {None in found}")
"""


@pytest.mark.trt
@pytest.mark.parametrize("kind", KINDS)
def test_the_lean_runtime_loads_the_library(tmp_path: Path, kind: str) -> None:
    if importlib.util.find_spec("tensorrt_lean_bindings") is None:
        pytest.skip("no TensorRT lean runtime: pip install tensorrt-lean-cu13-bindings")
    library = build_with_gpp(tmp_path / "libplugin.so", [KERNEL, PLUGIN], [headers(kind)])
    command = [sys.executable, "-c", REGISTRY, str(library)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.stdout == "BevPool True False", done.stderr
