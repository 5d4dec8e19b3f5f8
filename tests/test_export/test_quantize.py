import dataclasses
import json

import numpy as np
import onnx
import pytest
from google.protobuf.message import DecodeError
from onnx import helper, numpy_helper
from onnxruntime.capi.onnxruntime_pybind11_state import Fail
from small_detector import small_config

from export import quantize, sensitivity
from export.graph_scopes import SCOPES_KEY, module_path
from export.parity_frames import noise_frame
from export.quantization import QuantizationOptions, Quantizer, inner_layers, layer_groups
from export.quantize import Frames, calibration_frames, convert_bundle
from export.sensitivity import head_values
from export.to_onnx import model_card
from perception import atomic_file, json_codec
from perception.bundle import CARD_FILE, MODEL_FILE, load_bundle, write_manifest
from perception.data.nuscenes_log import NuScenesLog
from perception.errors import InputError
from runtime.engines.onnx_engine import OnnxEngine

SPEC = small_config().inputs


@pytest.fixture(scope="module")
def frames():
    return [noise_frame(SPEC, seed) for seed in (1, 2, 3)]


@pytest.fixture(scope="module")
def bundle(settled, small_export, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fp32") / "bundle"
    folder.mkdir()
    graph, model = small_export
    card = model_card(settled, graph, noise_frame(SPEC))
    atomic_file.write_bytes(folder / MODEL_FILE, model.SerializeToString())
    atomic_file.write_text(folder / CARD_FILE, json_codec.to_json(card))
    write_manifest(folder)
    return load_bundle(folder)


@pytest.fixture(scope="module")
def rounded(small_export, frames):
    """The network with every layer rounded that may be, once for each precision."""
    _, model = small_export
    layers = inner_layers(model, head_values(model))
    graphs = {}
    for precision in ("int8", "uint8"):
        options = QuantizationOptions(precision=precision)
        with Quantizer(model, frames[:1], options) as quantizer:
            graphs[precision] = quantizer.quantize(layers)
    return layers, graphs


def test_only_layers_between_layers_are_rounded():
    # x -> first -> relu -> a -> b -> softmax -> y;  a -> map;  a -> c -> d -> nowhere
    nodes = [
        conv("first", "x", "v0"),
        helper.make_node("Relu", ["v0"], ["v1"]),
        conv("a", "v1", "v2"),
        conv("b", "v2", "v3"),
        helper.make_node("Softmax", ["v3"], ["v4"]),
        conv("after", "v4", "y"),
        conv("map", "v2", "m"),
        conv("c", "v2", "v5"),
        conv("d", "v5", "nowhere"),
        helper.make_node("MatMul", ["v1", "v2"], ["product"], "attention"),
    ]
    weights = [numpy_helper.from_array(np.zeros((1, 1, 1, 1), np.float32), "w")]
    model = helper.make_model(helper.make_graph(nodes, "g", [], [], weights))
    # first reads the input; b feeds the softmax; after and map are the last; d leads nowhere
    assert inner_layers(model, ["y", "m"]) == ("a",)
    # c is between layers, too, but what it does is only seen in what d says
    assert inner_layers(model, ["y", "m", "nowhere"]) == ("a", "c")


def test_groups_are_parts_of_modules_and_stages_of_backbones():
    stage = "'detector.image_encoder.backbone.net.encoder.stages.1'"
    scopes = {
        "stem": "['', 'detector', 'detector.image_encoder', 'detector.image_encoder.backbone', "
        "'detector.image_encoder.backbone.net', 'conv']",
        "deep": "['', 'detector', 'detector.image_encoder', 'detector.image_encoder.backbone', "
        f"'detector.image_encoder.backbone.net', {stage}, {stage[:-1]}.layers.0', 'conv']",
        "mix": "['', 'detector', 'detector.fusion', 'detector.fusion.mix', "
        "'detector.fusion.mix.1', 'conv']",
        "bare": "['', 'conv']",
    }
    nodes = []
    for name, text in scopes.items():
        nodes.append(conv(name, "x", name))
        nodes[-1].metadata_props.append(onnx.StringStringEntryProto(key=SCOPES_KEY, value=text))
    model = helper.make_model(helper.make_graph(nodes, "g", [], []))
    assert layer_groups(model, ["stem", "deep", "mix", "bare"]) == {
        "image_encoder.backbone (stem)": ("stem",),
        "image_encoder.backbone.net.encoder.stages.1": ("deep",),
        "fusion.mix": ("mix",),
        "unknown": ("bare",),
    }
    assert layer_groups(model, ["mix"]) == {"fusion.mix": ("mix",)}


def test_int8_is_what_tensorrt_takes(rounded):
    layers, graphs = rounded
    model = graphs["int8"]
    weights = {w.name: numpy_helper.to_array(w) for w in model.graph.initializer}
    made_by = {name: node for node in model.graph.node for name in node.output}
    num_rounded = 0
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            zero_point = weights[node.input[2]]
            assert zero_point.dtype == np.int8
            assert not zero_point.any()
        if node.name not in layers:
            continue
        num_rounded += 1
        activation, weight = made_by[node.input[0]], made_by[node.input[1]]
        assert activation.op_type == weight.op_type == "DequantizeLinear", node.name
        assert weights[activation.input[1]].shape == ()
        if node.op_type == "Conv":  # a scale per channel that leaves
            assert weights[weight.input[1]].shape == weights[weight.input[0]].shape[:1]
            assert weights[node.input[2]].dtype == np.float32  # the bias
    assert num_rounded == len(layers) > 20
    assert {node.domain for node in model.graph.node} == {"", "perception"}


@pytest.mark.parametrize("precision", ["int8", "uint8"])
def test_pool_softmax_first_and_last_layers_see_no_rounded_value(rounded, precision):
    model = rounded[1][precision]
    made_by = {name: node.op_type for node in model.graph.node for name in node.output}
    plain = [node for node in model.graph.node if node.op_type in ("BevPool", "Softmax", "Sigmoid")]
    assert {node.op_type for node in plain} == {"BevPool", "Softmax", "Sigmoid"}
    for module in ("point_net.0", "groups.0.heatmap.1", "depth_and_context.2"):
        found = [n for n in model.graph.node if module_path(n).endswith(module) and n.input[1:]]
        assert found, module
        plain += [node for node in found if node.op_type in ("Conv", "MatMul")]
    for node in plain:
        kinds = {made_by.get(name) for name in node.input}
        assert "DequantizeLinear" not in kinds, node.name
    # what the quantiser's own preprocessing would have taken away
    assert [function.name for function in model.functions] == ["BevPool"]


def test_a_cell_far_above_all_others_does_not_set_the_range(small_export, frames):
    # half of all values are in the range of 50 %, so the steps are finer than those of 100 %
    _, model = small_export
    layer = inner_layers(model, head_values(model))[-1]
    scales = []
    for percentile in (60.0, 100.0):
        options = QuantizationOptions(percentile=percentile)
        with Quantizer(model, frames[:1], options) as quantizer:
            graph = quantizer.quantize([layer]).graph
        weights = {w.name: numpy_helper.to_array(w) for w in graph.initializer}
        (node,) = [node for node in graph.node if node.op_type == "QuantizeLinear"]
        scales.append(float(weights[node.input[1]]))
    assert scales[0] < 0.8 * scales[1]


def two_groups(model, layers):
    """Fewer parts than there are: each takes a third of a second."""
    groups = layer_groups(model, layers)
    return {name: groups[name] for name in ("fusion.mix", "bev_encoder.mix")}


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_bundle_of_another_precision_runs_and_says_how_it_was_made(
    bundle, frames, tmp_path, precision, capsys, monkeypatch
):
    monkeypatch.setattr(sensitivity, "layer_groups", two_groups)
    options = None if precision == "fp16" else QuantizationOptions()
    given = Frames(calibration=tuple(frames[:1]), check=tuple(frames[1:2]), source="noise")
    report = convert_bundle(bundle, tmp_path / "out", given, options, max_error=0.9)
    made = load_bundle(tmp_path / "out")
    assert made.card == dataclasses.replace(bundle.card, precision=precision)
    assert {path.name for path in made.path.iterdir()} == {
        "model.onnx", "model_card.json", "golden.npz",
        "precision.json", "precision.md", "manifest.json",
    }  # fmt: skip
    said = json.loads((made.path / "precision.json").read_text())
    assert said["error"] == report.error
    assert said["source_digest"] == bundle.digest
    assert 0.0 < report.error < 0.9
    expected, got = OnnxEngine(bundle).run(frames[2]), OnnxEngine(made).run(frames[2])
    assert 0.0 < np.abs(expected.map_prob - got.map_prob).mean() < 0.05
    if precision == "int8":
        parts = {row["group"]: row["is_rounded"] for row in said["sensitivity"]["rows"]}
        assert parts == {"fusion.mix": True, "bev_encoder.mix": True}
    assert made.model_path.stat().st_size < bundle.model_path.stat().st_size
    assert capsys.readouterr().out == ""  # ONNX Runtime's quantiser prints
    with pytest.raises(InputError, match=f"is in {precision}, expected fp32"):
        convert_bundle(made, tmp_path / "again", given, options)


def test_beyond_the_error_nothing_is_written(bundle, frames, tmp_path):
    given = Frames(calibration=(), check=tuple(frames[:1]), source="noise")
    with pytest.raises(InputError, match="network in fp16 is off by"):
        convert_bundle(bundle, tmp_path / "out", given, None, max_error=1e-9)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "failure",
    [OSError(28, "No space left on device"), Fail("half a model"), DecodeError("half a model")],
)
def test_a_full_disk_is_one_sentence_and_leaves_nothing(
    bundle, frames, tmp_path, monkeypatch, failure
):
    def fail(*arguments, **options):
        raise failure

    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    monkeypatch.setattr(Quantizer, "_calibrate", fail)
    given = Frames(calibration=tuple(frames[:1]), check=tuple(frames[1:2]), source="noise")
    with pytest.raises(InputError, match=r"out was not written \(.*(space|half).*free space"):
        convert_bundle(bundle, tmp_path / "out", given, QuantizationOptions())
    assert [path.name for path in tmp_path.rglob("*")] == ["temporary"]


def test_fp16_asks_for_no_frames_to_calibrate(bundle, small_log_root, tmp_path, monkeypatch):
    given = []

    def keep(source, out, frames, options, **others):
        given.append(frames)
        raise InputError("That is all.")

    monkeypatch.setattr(quantize, "convert_bundle", keep)
    words = ["--precision", "fp16", "--log", small_log_root, "--split", "all"]
    words = ["quantize.py", bundle.path, "--out", tmp_path, *words, "--frames", 999, "--check", 1]
    monkeypatch.setattr("sys.argv", [str(word) for word in words])
    with pytest.raises(InputError, match="That is all"):
        quantize.main()
    assert given[0].calibration == ()
    # a frame, and the same without LiDAR, without cameras, with neither
    masks = [(frame.lidar_mask.max(), frame.camera_mask.max()) for frame in given[0].check]
    assert masks == [(1, 1), (0, 1), (1, 0), (0, 0)]


def test_frames_are_drawn_by_seed_and_none_is_used_twice(small_log_root, bundle):
    log = NuScenesLog(small_log_root)
    drawn = [
        calibration_frames(log, bundle.card, "all", number=2, num_check=1, seed=seed)
        for seed in (0, 0, 1)
    ]
    tables = [[f.images.tobytes() for f in (*d.calibration, *d.check)] for d in drawn]
    assert tables[0] == tables[1] != tables[2]
    assert len(set(tables[0])) == 3
    with pytest.raises(InputError, match="expected 1000 to calibrate and 1 to check"):
        calibration_frames(log, bundle.card, "all", number=1000, num_check=1, seed=0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "pass --log ROOT"),
        (["nowhere", "--precision", "fp16"], "is no folder"),
        (["nowhere", "--percentile", "20"], "percentile is 20.0, expected more than 50"),
    ],
)
def test_wrong_arguments_are_one_sentence(arguments, said, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["quantize.py", *arguments, "--out", str(tmp_path / "out")])
    with pytest.raises(InputError, match=said):
        quantize.main()
    assert list(tmp_path.iterdir()) == []


def conv(name, value, output):
    return helper.make_node("Conv", [value, "w"], [output], name)
