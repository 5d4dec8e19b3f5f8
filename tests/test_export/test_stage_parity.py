import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from small_detector import small_config

from export.deploy_graph import DeployGraph
from export.graph_scopes import SCOPES_KEY, entering, leaving, module_path, with_outputs
from export.parity import run_torch
from export.parity_frames import noise_frame, with_missing_sensors
from export.stage_parity import OnnxRuntimeRunner, _Differences, compare_stages, stages_of
from perception.checkpoint import load_checkpoint
from perception.errors import InputError

NAMES = (
    "image encoder",
    "depth and context",
    "BEV pool",
    "view transform",
    "point encoder",
    "fusion",
    "BEV encoder",
    "box head",
    "map head",
)


@pytest.fixture(scope="module")
def frames():
    frame = noise_frame(small_config().inputs, 3)
    return [frame, with_missing_sensors(frame)[0]]


def test_every_stage_of_an_exported_network_agrees(small_export, frames):
    graph, model = small_export
    report = compare_stages(graph, model, frames)
    assert tuple(row.stage for row in report.rows) == NAMES
    assert report.passed, report.table()
    assert report.first_failed is None
    # heatmap and code of the box head, one value elsewhere
    assert [row.num_values for row in report.rows] == [1, 1, 1, 1, 1, 1, 1, 2, 1]
    assert "FAILED" not in report.table()


@pytest.mark.parametrize(
    ("module", "stage"),
    [
        ("detector.view_transform.smooth", "view transform"),
        ("detector.point_encoder.smooth", "point encoder"),
        ("detector.map_head", "map head"),
    ],
)
def test_the_stage_with_another_weight_is_the_first_that_differs(
    small_export, frames, module, stage
):
    graph, model = small_export
    report = compare_stages(graph, with_other_weights(model, module, 1.01), frames)
    assert report.first_failed == stage
    table = report.table().splitlines()
    assert table[-1] == f"the first stage that differs: {stage}"
    assert "FAILED" in table[1 + NAMES.index(stage)]
    assert all("FAILED" not in line for line in table[1 : 1 + NAMES.index(stage)])


def test_what_is_no_number_fails(small_export, frames):
    graph, model = small_export
    report = compare_stages(graph, with_other_weights(model, "detector.fusion", np.nan), frames)
    assert report.first_failed == "fusion"


class PoolOffByHalf:
    """ONNX Runtime, but for one value: what enters the convolutions behind the pool."""

    name = "engine"

    def __init__(self, model):
        self.wrong = entering(model, "detector.view_transform.smooth")

    def run(self, model, names, frames):
        for arrays in OnnxRuntimeRunner().run(model, names, frames):
            yield [
                a + np.float32(0.5) if name in self.wrong else a
                for name, a in zip(names, arrays, strict=True)
            ]


def test_another_runner_is_named_and_its_error_is_relative_to_the_scale(small_export, frames):
    graph, model = small_export
    report = compare_stages(graph, model, frames, runner=PoolOffByHalf(model))
    assert report.first_failed == "BEV pool"
    assert [row.stage for row in report.rows if not row.passed] == ["BEV pool"]
    assert "torch - engine" in report.table()
    largest = max(np.abs(pooled(graph, frame)).max() for frame in frames)
    row = report.rows[NAMES.index("BEV pool")]
    assert row.max_error == pytest.approx(0.5 / largest, rel=1e-3)


def test_a_file_that_does_not_know_its_modules_is_refused(small_export, frames):
    graph, model = small_export
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    for node in bare.graph.node:
        del node.metadata_props[:]
    with pytest.raises(InputError, match="does not say which module"):
        compare_stages(graph, bare, frames)


def test_a_stage_that_is_not_found_in_the_file_fails(small_export, frames):
    graph, model = small_export
    other = onnx.ModelProto()
    other.CopyFrom(model)
    for node in other.graph.node:
        if module_path(node).startswith("detector.fusion"):
            del node.metadata_props[:]
    report = compare_stages(graph, other, frames)
    assert report.first_failed == "fusion"
    assert "0 of 1 values found" in report.table()


def test_a_head_that_lost_an_output_fails(small_export, frames):
    graph, model = small_export
    other = onnx.ModelProto()
    other.CopyFrom(model)
    _, code = leaving(model, "detector.box_head")
    wanted = {code}
    for node in reversed(other.graph.node):  # nobody knows any more where the code comes from
        if wanted & set(node.output) and module_path(node).startswith("detector.box_head"):
            wanted.update(node.input)
            if "shared" not in module_path(node):
                del node.metadata_props[:]
    report = compare_stages(graph, other, frames)
    assert [row.stage for row in report.rows if not row.passed] == ["box head"]
    row = report.rows[NAMES.index("box head")]
    assert (row.num_values, row.num_expected) == (1, 2)
    assert row.max_error <= row.bound
    assert "1 of 2 values found" in report.table()


def differences(expected, *frames):
    found = _Differences()
    for got in frames:
        found.add(
            [np.array(tensor, np.float64) for tensor in expected],
            {name: np.array(value, np.float32) for name, value in got.items()},
        )
    return found.num_expected, sorted(found.errors())


def test_each_tensor_has_a_value_of_its_own():
    expected = [[1.0, 2.0], [4.0, 3.0]]
    both = {"a": [4.0, 3.0], "b": [1.0, 2.0]}
    assert differences(expected, both) == (2, [0.0, 0.0])
    # each is nearest to the first tensor, and one must do for the second: |3 - 2| and |4 - 1| of 4
    assert differences(expected, {"a": [1.0, 2.0], "b": [1.0, 2.0]}) == (2, [0.0, 0.75])
    # what is left over in the file, or of another size, says nothing
    assert differences(expected, {**both, "c": [9.0, 9.0], "d": [1.0]}) == (2, [0.0, 0.0])
    assert differences(expected, {"a": [1.0, 2.0]}) == (2, [0.0])
    assert differences(expected, {}) == (2, [])
    # a value must fit in every frame
    assert differences(expected, both, {**both, "b": [1.0, 2.0, 3.0]}) == (2, [0.0])
    assert differences(expected, {"a": [np.nan, 3.0], "b": [1.0, 2.0]}) == (2, [0.0, np.inf])


def test_stages_are_those_that_the_network_has(small_run):
    checkpoint = load_checkpoint(small_run)
    checkpoint.detector.image_encoder = checkpoint.detector.view_transform = None
    names = [stage.name for stage in stages_of(DeployGraph(checkpoint))]
    assert names == ["point encoder", "fusion", "BEV encoder", "box head", "map head"]


def test_values_at_the_border_of_a_module():
    # x -> a (in m.a) -> b (in m.b.c) -> y;  a also goes straight into y
    nodes = [
        node_in("Relu", ["x"], ["a"], "['', 'm', 'm.a', 'relu']"),
        node_in("Neg", ["a"], ["b"], "['', 'm', 'm.b', 'm.b.c', 'neg']"),
        node_in("Add", ["a", "b"], ["y"], "['', 'add']"),
    ]
    model = model_of(nodes)
    assert [module_path(node) for node in nodes] == ["m.a", "m.b.c", ""]
    assert leaving(model, "m.a") == ["a"]
    assert leaving(model, "m.b") == ["b"]
    assert leaving(model, "m") == ["a", "b"]
    assert entering(model, "m.b") == ["a"]
    assert entering(model, "m.a") == []  # x is the graph's input
    assert leaving(model, "m.") == leaving(model, "a") == []
    outputs = [output.name for output in with_outputs(model, ["a", "y", "a"]).graph.output]
    assert outputs == ["y", "a"]
    assert [output.name for output in model.graph.output] == ["y"]


def node_in(kind, inputs, outputs, scopes):
    node = helper.make_node(kind, inputs, outputs)
    node.metadata_props.append(onnx.StringStringEntryProto(key=SCOPES_KEY, value=scopes))
    return node


def model_of(nodes):
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "g", [info("x", TensorProto.FLOAT, [2])], [info("y", TensorProto.FLOAT, [2])]
    )
    return helper.make_model(graph)


def with_other_weights(model, module, factor):
    """The last weights that a module reads, times `factor`."""
    other = onnx.ModelProto()
    other.CopyFrom(model)
    weights = {weight.name: weight for weight in other.graph.initializer}
    name = [
        name
        for node in other.graph.node
        if module_path(node).startswith(module) and node.op_type == "Conv"
        for name in node.input[1:2]
    ][-1]
    changed = numpy_helper.to_array(weights[name]) * np.float32(factor)
    weights[name].CopyFrom(numpy_helper.from_array(changed, name))
    return other


def pooled(graph, frame):
    kept = []
    module = graph.detector.view_transform.smooth
    hook = module.register_forward_pre_hook(lambda m, args: kept.append(args[0].numpy()))
    run_torch(graph, frame)
    hook.remove()
    return kept[0]
