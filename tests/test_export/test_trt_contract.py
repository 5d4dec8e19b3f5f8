import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import fake_tensorrt
import numpy as np
import onnx
import onnxruntime
import pytest
from check_tensorrt_api import used_cuda_names, used_tensorrt_names
from onnx import TensorProto, helper, numpy_helper
from small_detector import small_config
from toy_bundle import toy_card, toy_model

from export.bev_pool_onnx import bev_pool_model
from export.deploy_graph import DeployGraph
from export.parity_frames import noise_frame
from export.precision import to_half
from export.to_onnx import export_graph
from export.trt_contract import violations
from export.trt_graph import axis_sizes, for_tensorrt, input_shapes
from perception.checkpoint import Checkpoint
from perception.models.detector import build_detector
from perception.models.heads.query_box_head import QueryBoxHeadConfig
from perception.models.heads.query_map_head import QueryMapHeadConfig
from perception.taxonomy import MAP_CLASSES

REPOSITORY = Path(__file__).resolve().parents[2]
FLOAT = TensorProto.FLOAT


def graph(op: str, inputs: dict, constants: dict, num_outputs: int = 1, **attributes: object):
    """A graph of one node; inputs by type and shape, constants by value, in the node's order."""
    outputs = [f"y{index}" for index in range(num_outputs)]
    node = helper.make_node(op, [*inputs, *constants], outputs, name="n", **attributes)
    made = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info(n, kind, shape) for n, (kind, shape) in inputs.items()],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


IMAGE = (FLOAT, [1, 2, 4, 4])
INT = np.int64
BROKEN = {
    "unknown operator": (graph("Hardmax", {"x": IMAGE}, {}), "not in the parser's list"),
    "uint8 moved": (
        graph("Transpose", {"x": (TensorProto.UINT8, [2, 3])}, {}), "'x' is uint8, which"
    ),
    "bools compared": (
        graph("Equal", {"a": (TensorProto.BOOL, [2]), "b": (TensorProto.BOOL, [2])}, {}),
        "'a' is bool",
    ),
    "double": (graph("Relu", {"x": (TensorProto.DOUBLE, [2])}, {}), "'x' is double"),
    "int64 sums": (
        graph("CumSum", {"x": (TensorProto.INT64, [2])}, {"axis": INT(0)}), "'x' is int64"
    ),
    "large k": (
        graph("TopK", {"x": (FLOAT, [9000])}, {"k": np.array([3840])}, 2), "k is 3840, expected"
    ),
    "unsorted": (
        graph("TopK", {"x": (FLOAT, [9])}, {"k": np.array([3])}, 2, sorted=0), "sorted is 0"
    ),
    "k of the frame": (
        graph("TopK", {"x": (FLOAT, [9]), "k": (TensorProto.INT64, [1])}, {}, 2),
        "input 1 ('k') must be a constant",
    ),
    "volume sampled": (
        graph("GridSample", {"x": (FLOAT, [1, 2, 3, 4, 5]), "g": (FLOAT, [1, 3, 4, 5, 3])}, {}),
        "input has 5 axes, expected 4",
    ),
    "pool with indices": (
        graph("MaxPool", {"x": IMAGE}, {}, 2, kernel_shape=[2, 2]), "output of indices"
    ),
    "sum scattered": (
        graph(
            "ScatterND",
            {"x": (FLOAT, [4]), "i": (TensorProto.INT64, [2, 1]), "u": (FLOAT, [2])},
            {},
            reduction="add",
        ),
        "reduction is not supported",
    ),
    "cubic": (
        graph("Resize", {"x": IMAGE, "": IMAGE}, {"s": np.ones(4, np.float32)}, mode="cubic"),
        "mode is cubic",
    ),
    "rounded to uint8": (
        graph("QuantizeLinear", {"x": IMAGE}, {"s": np.float32(1), "z": np.uint8(0)}),
        "quantised to uint8, expected int8",
    ),
    "axes of the frame": (
        graph("ReduceMax", {"x": IMAGE, "a": (TensorProto.INT64, [1])}, {}), "must be a constant"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", sorted(BROKEN))
def test_each_rule_names_the_node_that_breaks_it(case):
    model, said = BROKEN[case]
    del model.graph.input[1 if case == "cubic" else len(model.graph.input) :]
    faults = violations(model)
    assert any(said in fault and model.graph.node[0].op_type in fault for fault in faults), faults


def test_what_is_allowed_is_not_named():
    assert violations(graph("Relu", {"x": IMAGE}, {})) == []
    assert violations(graph("Cast", {"x": (TensorProto.UINT8, [2])}, {}, to=FLOAT)) == []
    topk = graph("TopK", {"x": (FLOAT, [9000])}, {"k": np.array([3839])}, 2)
    assert violations(topk) == []


POOL_INPUTS = {
    "depth": (FLOAT, [6, 4, 2, 3]),
    "feat": (FLOAT, [6, 2, 3, 8]),
    "runs": (TensorProto.INT32, [9, 3]),
    "cell_start": (TensorProto.INT32, [5]),
}
NAMED = {"plugin_version": "1", "plugin_namespace": "perception"}


def pool_graph(inputs: dict, op: str = "BevPool", **attributes: object) -> onnx.ModelProto:
    model = graph(op, inputs, {}, domain="perception", **attributes)
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y0", FLOAT, [4, 8]))
    model.opset_import.append(helper.make_opsetid("perception", 1))
    return model


def test_the_pool_is_a_plugin_with_a_name_and_its_types():
    assert violations(pool_graph(POOL_INPUTS, **NAMED)) == []
    (first, second) = violations(pool_graph(POOL_INPUTS))
    assert "plugin_version is None, expected 1" in first
    assert "plugin_namespace is None, expected perception" in second
    wide = {**POOL_INPUTS, "cell_start": (TensorProto.INT64, [5])}
    (fault,) = violations(pool_graph(wide, **NAMED))
    assert "'cell_start' is int64, plugins take float, float16 and int32" in fault
    (fault,) = violations(pool_graph(POOL_INPUTS, "Other", **NAMED))
    assert "has no plugin of that name" in fault


def test_bodies_and_unknown_opsets_are_named():
    model = graph("Relu", {"x": IMAGE}, {})
    model.opset_import[0].version = 21
    model.functions.add(name="Own", domain="perception")
    assert violations(model) == [
        "opset 21 of the standard operators, the parser knows 9 to 20",
        "function bodies (Own) are left",
    ]


def test_pictures_are_cast_first_and_bools_compared_otherwise():
    inputs = {"x": (TensorProto.UINT8, [2, 3]), "p": (TensorProto.BOOL, [2])}
    nodes = [
        helper.make_node("Transpose", ["x"], ["moved"], name="t"),
        helper.make_node("Cast", ["moved"], ["y"], name="c", to=FLOAT),
        helper.make_node("Equal", ["p", "q"], ["same"], name="e"),
        helper.make_node("Cast", ["same"], ["z"], name="d", to=FLOAT),
    ]
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(n, kind, shape) for n, (kind, shape) in inputs.items()],
        [helper.make_tensor_value_info(name, FLOAT, None) for name in ("y", "z")],
        [numpy_helper.from_array(np.array([True, False]), "q")],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    assert len(violations(model)) == 3
    changed = for_tensorrt(model)
    assert violations(changed) == []
    feed = {"x": np.array([[1, 2, 3], [4, 5, 255]], np.uint8), "p": np.array([True, True])}
    for form in (model, changed):
        session = onnxruntime.InferenceSession(form.SerializeToString())
        y, z = session.run(["y", "z"], feed)
        np.testing.assert_array_equal(y, [[1, 4], [2, 5], [3, 255]])
        np.testing.assert_array_equal(z, [1, 0])  # true is true, true is not false


def test_the_pool_s_plugin_is_told_how_wide_the_grid_is():
    # for its speed only; the file that is shipped does not say it
    model = bev_pool_model(1, 2, 3, 4, 8, 15)
    (pool,) = for_tensorrt(model, grid_width=5).graph.node
    told = {a.name: helper.get_attribute_value(a) for a in pool.attribute}
    assert told == {"plugin_version": b"1", "plugin_namespace": b"perception", "grid_width": 5}
    assert all(a.name != "grid_width" for node in model.graph.node for a in node.attribute)


def test_axes_are_as_long_as_any_frame_may_need():
    card = toy_card()
    # 6 cameras x 10 bins x 4 x 11 pixels; the toy sorts 1600 pillars
    assert axis_sizes(card) == {"runs": 2640, "pillars": 1600}
    shapes = input_shapes(card, axis_sizes(card))
    assert shapes["pool_runs"] == (2640, 3)
    assert shapes["pillar_points"] == (1600, 8, 5)
    assert violations(for_tensorrt(toy_model())) == []


def test_the_names_that_we_use_are_seen_by_the_check():
    names = {".".join(path) for path in used_tensorrt_names()}
    assert {"Builder.build_serialized_network", "IExecutionContext.execute_async_v3"} <= names
    assert {"Runtime.deserialize_cuda_engine", "ParserError.desc", "get_plugin_registry"} <= names
    # gone in TensorRT 11, so never used
    assert not {n for n in names if n.split(".")[-1] in ("FP16", "INT8", "EXPLICIT_BATCH")}
    assert {"cudaGraphLaunch", "cudaMallocHost", "cudaStreamBeginCapture"} <= used_cuda_names()
    # what our code calls, the stand-in has, and nothing else
    fake = {".".join(path) for path in fake_tensorrt.tensorrt_names()}
    methods = {n for n in names if n.split(".")[0] in {f.split(".")[0] for f in fake} and "." in n}
    assert methods <= fake


def test_every_name_is_in_nvidia_s_bindings():
    wheels = os.environ.get("BEV_TENSORRT_WHEELS")
    if not wheels:
        pytest.skip("no TensorRT bindings: set BEV_TENSORRT_WHEELS to a folder of their wheels")
    command = [sys.executable, REPOSITORY / "tests" / "check_tensorrt_api.py", "--wheels", wheels]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "has them all" in done.stdout


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_exported_network_keeps_the_contract(precision, small_export):
    _, model = small_export
    ready = for_tensorrt(to_half(model) if precision == "fp16" else model)
    assert violations(ready) == []
    assert [n.op_type for n in ready.graph.node if n.domain == "perception"] == ["BevPool"]
    # only first axes of tables and pillars vary from frame to frame
    varying = {
        (tensor.name, axis)
        for tensor in ready.graph.input
        for axis, dim in enumerate(tensor.type.tensor_type.shape.dim)
        if not dim.HasField("dim_value")
    }
    names = ("pool_runs", "pillar_points", "pillar_num_points", "pillar_cell")
    assert varying == {(name, 0) for name in names}


def test_the_light_heads_keep_the_contract():
    small = small_config()
    size = {"channels": 16, "ffn_channels": 16, "num_heads": 2}
    config = dataclasses.replace(
        small,
        box_head=QueryBoxHeadConfig(**size, num_queries=20, branch_channels=8),
        map_head=QueryMapHeadConfig(**size, grid=small.map_head.grid, num_layers=1),
    )
    checkpoint = Checkpoint(
        detector=build_detector(config).eval(),
        config=config,
        recipe="light",
        trained_map_classes=MAP_CLASSES,
    )
    model = export_graph(DeployGraph(checkpoint), noise_frame(config.inputs))
    for form in (model, to_half(model)):
        assert violations(for_tensorrt(form)) == []
