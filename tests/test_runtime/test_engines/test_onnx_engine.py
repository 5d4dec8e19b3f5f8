import dataclasses
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from toy_bundle import toy_card, toy_model, write_toy_bundle

from perception.bundle import Bundle, load_bundle
from perception.errors import InputError
from perception.messages import Calibration, SensorFrame
from perception.model_card import TensorSpec
from perception.model_inputs import ModelInputs, prepare_frame
from runtime.engines.base import EngineError
from runtime.engines.onnx_engine import OnnxEngine


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


def test_without_onnxruntime_the_install_is_named(
    toy_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InputError, match="pip install onnxruntime"):
        OnnxEngine(load_bundle(toy_bundle))
