import dataclasses
import sys
import types
import weakref
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from toy_bundle import toy_card, toy_model, write_toy_bundle

from perception import native
from perception.bundle import Bundle, load_bundle
from perception.errors import InputError
from perception.messages import Calibration, SensorFrame
from perception.model_card import TensorSpec
from perception.model_inputs import ModelInputs, prepare_frame
from runtime.engines.base import EngineError
from runtime.engines.onnx_engine import BevPoolForm, OnnxEngine
from runtime.engines.selection import open_engine


def inputs_without_sensors(bundle: Bundle) -> ModelInputs:
    frame = SensorFrame(
        stamp_ns=0,
        T_global_ego=None,
        images={},
        sweeps=(),
        calibration=Calibration(cameras={}, T_ego_lidar=np.eye(4)),
        missing={},
    )
    return prepare_frame(frame, bundle.card.inputs).inputs


def test_masked_sensors_give_scores_of_zero(toy_bundle: Path) -> None:
    bundle = load_bundle(toy_bundle)
    engine = OnnxEngine(bundle, num_threads=1)
    outputs = engine.run(inputs_without_sensors(bundle))
    np.testing.assert_array_equal(outputs.scores, np.zeros(7, np.float32))
    assert outputs.boxes_ego.shape == (7, 9)
    assert outputs.labels.dtype == np.int64
    assert "ONNX Runtime" in engine.description


def test_one_mask_is_one_score(toy_bundle: Path) -> None:
    bundle = load_bundle(toy_bundle)
    mask = np.array([0, 0, 1, 0, 0, 0], np.float32)
    inputs = dataclasses.replace(inputs_without_sensors(bundle), camera_mask=mask)
    scores = OnnxEngine(bundle, 1).run(inputs).scores
    np.testing.assert_allclose(scores, [0, 0, 0.6, 0, 0, 0, 0], rtol=1e-6)  # 0.5 + 0.05 * 2


def test_inputs_that_the_graph_refuses_are_an_engine_error(toy_bundle: Path) -> None:
    bundle = load_bundle(toy_bundle)
    low = np.zeros((6, 16, 88, 3), np.uint8)
    wrong = dataclasses.replace(inputs_without_sensors(bundle), images=low)
    with pytest.raises(EngineError, match="images"):
        OnnxEngine(bundle, 1).run(wrong)


def test_a_table_that_points_outside_is_an_engine_error(toy_bundle: Path) -> None:
    # the compiled pool looks at its table itself: tests/test_plugins/test_onnxruntime_op.py
    bundle = load_bundle(toy_bundle)
    inputs = inputs_without_sensors(bundle)
    runs, starts = np.array([[0, 0, 99]], np.int32), np.ones_like(inputs.cell_start)
    starts[0] = 0
    wrong = dataclasses.replace(inputs, pool_runs=runs, cell_start=starts)
    with pytest.raises(EngineError, match="the pool table cannot be used: run 0"):
        OnnxEngine(bundle, 1, "function").run(wrong)


@pytest.mark.parametrize("content", [b"", b"no model", bytes(range(256)) * 20])
def test_a_file_that_is_no_model_is_refused(tmp_path: Path, content: bytes) -> None:
    folder = write_toy_bundle(tmp_path / "bundle")
    bundle = load_bundle(folder)
    (folder / "model.onnx").write_bytes(content)
    with pytest.raises(InputError, match=r"model\.onnx cannot be opened") as caught:
        OnnxEngine(bundle)
    assert "\n" not in str(caught.value)


def with_spec(kind: str, name: str, **changes: object) -> dict:
    specs = [
        dataclasses.replace(spec, **changes) if spec.name == name else spec
        for spec in getattr(toy_card(), kind)
    ]
    return {kind: tuple(specs)}


EXTRA = TensorSpec(name="radar", dtype="float32", shape=("1",), meaning="toy")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (with_spec("input_tensors", "images", dtype="float32"), "images of the graph is uint8"),
        (with_spec("input_tensors", "images", shape=("5", "32", "88", "3")), "[5 32 88 3]"),
        (with_spec("input_tensors", "camera_mask", shape=("1", "6")), "camera_mask"),
        (with_spec("output_tensors", "labels", dtype="int32"), "labels"),
        (with_spec("output_tensors", "map_prob", shape=("6", "40", "41")), "[6 40 41]"),
        ({"input_tensors": (*toy_card().input_tensors, EXTRA)}, "radar"),
        ({"output_tensors": toy_card().output_tensors[:-1]}, "map_prob"),
    ],
)
def test_a_card_of_another_model_is_refused(tmp_path: Path, changes: dict, words: str) -> None:
    card = dataclasses.replace(toy_card(), **changes)
    bundle = load_bundle(write_toy_bundle(tmp_path / "bundle", card=card))
    with pytest.raises(InputError) as caught:
        OnnxEngine(bundle)
    assert words in str(caught.value)


def test_a_graph_with_another_output_is_refused(tmp_path: Path) -> None:
    model = toy_model()
    extra = onnx.helper.make_tensor_value_info("depth", onnx.TensorProto.FLOAT, [1])
    model.graph.node.append(onnx.helper.make_node("Identity", ["lidar_mask"], ["depth"]))
    model.graph.output.append(extra)
    bundle = load_bundle(write_toy_bundle(tmp_path / "bundle", model=model))
    with pytest.raises(InputError, match=r"outputs of the graph differ .* depth"):
        OnnxEngine(bundle)


def bundle_with_a_bare_pool(folder: Path) -> Bundle:
    """The toy's graph and, beside it, a pool node that brings no function to compute it."""
    model = toy_model()
    tensors = {
        "depth": np.ones((1, 1, 1, 1), np.float32),
        "feat": np.ones((1, 1, 1, 1), np.float32),
        "runs": np.array([[0, 0, 1]], np.int32),
        "start": np.array([0, 1], np.int32),
    }
    for name, array in tensors.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, f"bare_{name}"))
    names = [f"bare_{name}" for name in tensors]
    node = onnx.helper.make_node("BevPool", names, ["pool"], domain="perception")
    model.graph.node.append(node)
    model.opset_import.append(onnx.helper.make_opsetid("perception", 1))
    return load_bundle(write_toy_bundle(folder, model=model))


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "library", lambda: None)
    monkeypatch.setattr(native, "description", lambda: "kernels in Python (none was built)")


@pytest.mark.parametrize("form", ["auto", "native"])
def test_the_compiled_pool_is_registered_and_named(tmp_path: Path, form: BevPoolForm) -> None:
    library = native.library()
    if library is None:
        pytest.skip(f"no compiled op: {native.description()}")
    engine = OnnxEngine(bundle_with_a_bare_pool(tmp_path / "bundle"), 1, form)
    assert engine.description.endswith(f"BEV pool: compiled, {library.isa}")


@pytest.mark.usefixtures("no_library")
def test_the_function_serves_where_nothing_is_compiled(toy_bundle: Path) -> None:
    engine = OnnxEngine(load_bundle(toy_bundle), 1)
    assert "BEV pool: function of the model file" in engine.description
    assert "none was built" in engine.description


def test_the_function_can_be_asked_for(toy_bundle: Path, tmp_path: Path) -> None:
    engine = OnnxEngine(load_bundle(toy_bundle), 1, "function")
    assert engine.description.endswith("BEV pool: function of the model file")
    with pytest.raises(InputError, match="perception:BevPool"):  # nothing was registered
        OnnxEngine(bundle_with_a_bare_pool(tmp_path / "bundle"), 1, "function")


@pytest.mark.usefixtures("no_library")
def test_a_compiled_pool_that_is_not_there_is_refused(toy_bundle: Path) -> None:
    with pytest.raises(InputError, match=r"none was built.*C\+\+ compiler") as caught:
        OnnxEngine(load_bundle(toy_bundle), 1, "native")
    assert "\n" not in str(caught.value)


def test_a_library_that_onnxruntime_refuses(
    toy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "libbroken.so"
    broken.write_text("no library")
    loaded = types.SimpleNamespace(path=broken, isa="none")
    monkeypatch.setattr(native, "library", lambda: loaded)
    monkeypatch.setattr(native, "description", lambda: "compiled kernels")
    engine = OnnxEngine(load_bundle(toy_bundle), 1)
    assert "function of the model file" in engine.description
    assert "libbroken.so" in engine.description
    with pytest.raises(InputError, match=r"libbroken\.so"):
        OnnxEngine(load_bundle(toy_bundle), 1, "native")


def test_an_unknown_form_of_the_pool_is_refused(toy_bundle: Path) -> None:
    with pytest.raises(InputError, match="'fast', expected one of auto, native, function"):
        OnnxEngine(load_bundle(toy_bundle), 1, "fast")


def test_without_onnxruntime_the_install_is_named(
    toy_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InputError, match="pip install onnxruntime"):
        OnnxEngine(load_bundle(toy_bundle))


def test_a_provider_that_is_not_there_is_refused(toy_bundle: Path) -> None:
    bundle = load_bundle(toy_bundle)
    with pytest.raises(InputError, match=r"has no CUDAExecutionProvider.*onnxruntime-gpu"):
        OnnxEngine(bundle, 1, provider="cuda")
    with pytest.raises(InputError, match="onnxruntime-gpu"):
        open_engine(bundle, "onnx_cuda")
    with pytest.raises(InputError, match="provider is 'tpu', expected cpu or cuda"):
        OnnxEngine(bundle, 1, provider="tpu")  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_no_session_goes_back_to_the_cpu_in_silence(
    toy_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # a package with the provider on a computer without its libraries: ONNX Runtime only warns
    listed = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: listed)
    with pytest.raises(InputError, match=r"could not start its CUDA.*runs on CPUExecutionProvider"):
        OnnxEngine(load_bundle(toy_bundle), 1, provider="cuda")


def test_images_may_be_written_where_the_engine_reads_them(toy_bundle: Path) -> None:
    bundle = load_bundle(toy_bundle)
    engine = OnnxEngine(bundle, num_threads=1)
    memory = engine.input_buffer("images")
    assert memory is not None
    assert (memory.shape, memory.dtype) == ((6, 32, 88, 3), np.uint8)
    assert engine.input_buffer("images") is memory
    assert engine.input_buffer("pillar_points") is None  # of another size in each frame
    assert engine.input_buffer("no such input") is None
    inputs = dataclasses.replace(inputs_without_sensors(bundle), images=memory)
    memory[...] = np.arange(0, 60, 10, dtype=np.uint8)[:, None, None, None]
    brightness = engine.run(inputs).boxes_ego[:6, 1]
    np.testing.assert_allclose(brightness, np.arange(0, 60, 10) / 255, rtol=1e-5)


def test_a_closed_engine_holds_nothing_and_refuses_frames(toy_bundle: Path) -> None:
    engine = OnnxEngine(load_bundle(toy_bundle), num_threads=1)
    memory = engine.input_buffer("images")
    session = weakref.ref(engine._session)
    engine.close()
    engine.close()
    assert session() is None
    assert memory is not None
    assert engine.input_buffer("images") is None
    with pytest.raises(EngineError, match="the engine is closed"):
        engine.run(inputs_without_sensors(load_bundle(toy_bundle)))
