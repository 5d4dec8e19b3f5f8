import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from small_detector import small_config

from export.graph_scopes import leaving, module_path, with_outputs
from export.parity_frames import noise_frame
from export.precision import to_half
from export.quantization import Quantizer, inner_layers, layer_groups
from export.quantize import MAX_ERROR
from export.sensitivity import Reference, channel_scales, choose_layers, head_values
from export.stage_parity import OnnxRuntimeRunner
from perception.errors import InputError
from perception.models.heads.box_code import CODE_COLUMNS


@pytest.fixture(scope="module")
def frames():
    return [noise_frame(small_config().inputs, 1)]


class ToldErrors(Reference):
    """Errors as a test says them: of each part, by its layers, and their sum for several."""

    def __init__(self, model, error_of_layer):
        self.names, self.num_frames = head_values(model), 1
        self.error_of_layer = error_of_layer

    def error(self, model):
        return sum(self.error_of_layer.get(name, 0.0) for name in rounded_nodes(model))


class MarksLayers(Quantizer):
    """Gives an empty graph with the layers' names instead of rounding anything."""

    def __init__(self):
        pass

    def quantize(self, layers):
        nodes = [helper.make_node("Conv", ["x", "w"], [name], name) for name in layers]
        return helper.make_model(helper.make_graph(nodes, "g", [], []))


def rounded_nodes(model):
    return [node.name for node in model.graph.node]


def test_the_most_sensitive_parts_stay_until_the_error_is_allowed(small_export):
    _, model = small_export
    groups = layer_groups(model, inner_layers(model, head_values(model)))
    error = {groups["fusion.mix"][0]: 0.5, groups["bev_encoder.mix"][0]: 0.25}
    error[groups["point_encoder.smooth"][0]] = 0.125
    told = ToldErrors(model, error)
    # all: 0.875; without fusion 0.375; without the encoder's mix, too, 0.125
    result, report = choose_layers(model, MarksLayers(), told, 0.3)
    assert report.error_of_all == 0.875
    assert report.error == 0.125
    kept = [row.group for row in report.rows if not row.is_rounded]
    assert kept == ["fusion.mix", "bev_encoder.mix"]
    assert [row.error for row in report.rows[:4]] == [0.5, 0.25, 0.125, 0.0]
    names = rounded_nodes(result)
    assert not set(names) & {groups["fusion.mix"][0], groups["bev_encoder.mix"][0]}
    assert len(names) == report.rounded_layers == sum(map(len, groups.values())) - 2
    lines = report.markdown().splitlines()
    assert lines[2] == "| fusion.mix | 1 | 0.5000 | fp32 |"
    assert "| all of them |" in report.markdown()
    # 0.375 is allowed by 0.4: only the fusion stays
    assert choose_layers(model, MarksLayers(), told, 0.4)[1].error == 0.375
    everything = dict.fromkeys((name for group in groups.values() for name in group), 1.0)
    with pytest.raises(InputError, match="No part of the network can be rounded within"):
        choose_layers(model, MarksLayers(), ToldErrors(model, everything), 0.3)


def test_the_error_is_relative_and_what_is_no_number_is_infinite(small_export, frames):
    _, model = small_export
    reference = Reference(model, frames, OnnxRuntimeRunner())
    assert reference.error(model) == 0.0
    names = {w.name: w for w in model.graph.initializer}
    for factor, error in ((2.0, None), (np.nan, float("inf"))):
        other = onnx.ModelProto()
        other.CopyFrom(model)
        node = next(
            n for n in other.graph.node if module_path(n).startswith("detector.map_head.la")
        )
        weights = next(w for w in other.graph.initializer if w.name == node.input[1])
        changed = numpy_helper.to_array(names[node.input[1]]) * np.float32(factor)
        weights.CopyFrom(numpy_helper.from_array(changed, weights.name))
        got = reference.error(other)
        assert got > 0.1 if error is None else got == error


def test_the_scale_of_a_channel_is_its_deviation_and_has_a_floor():
    # two frames of three channels. Mean square: (25 + 9 + 25 + 9 + 4 * 0.01) / 12 = 5.67
    first = np.array([[5.0, 3.0], [0.1, 0.1], [0.0, 0.0]], np.float32)
    second = np.array([[5.0, 3.0], [-0.1, -0.1], [0.0, 0.0]], np.float32)
    floor = 0.1 * np.sqrt(68.04 / 12)
    np.testing.assert_allclose(channel_scales([first, second]), [1.0, floor, floor], rtol=1e-6)
    assert channel_scales([np.zeros((2, 3), np.float32)]).tolist() == [1.0, 1.0]
    assert channel_scales([np.zeros((2, 0), np.float32)]).tolist() == [1.0, 1.0]


def changed(model, value, change):
    """A copy in which the weights of the convolution that makes `value` are others."""
    other = onnx.ModelProto()
    other.CopyFrom(model)
    made_by = {name: node for node in other.graph.node for name in node.output}
    while made_by[value].op_type != "Conv":
        value = made_by[value].input[0]
    weights = next(w for w in other.graph.initializer if w.name == made_by[value].input[1])
    array = numpy_helper.to_array(weights).copy()
    change(array)
    weights.CopyFrom(numpy_helper.from_array(array, weights.name))
    return other


def test_a_head_that_says_nothing_yet_bears_half_precision(small_export, frames):
    # -2.19 in every cell, give or take less than what half rounds there (0.001)
    _, model = small_export
    heatmap = leaving(model, "detector.box_head")[0]

    def hardly_anything(weights):
        weights *= 1e-4

    untrained = changed(model, heatmap, hardly_anything)
    reference = Reference(untrained, frames, OnnxRuntimeRunner())
    assert 0.0 < reference.error(to_half(untrained)) < 0.05


@pytest.mark.parametrize("column", [CODE_COLUMNS.index("sin"), CODE_COLUMNS.index("vx")])
def test_a_channel_far_smaller_than_the_others_is_not_ruined_unseen(small_export, frames, column):
    _, model = small_export
    code = leaving(model, "detector.box_head")[1]

    def scaled(factor):
        def change(weights):
            weights[column] *= np.float32(factor)

        return change

    small = changed(model, code, scaled(0.05))
    reference = Reference(small, frames, OnnxRuntimeRunner())
    assert reference.error(changed(small, code, scaled(0.0))) > MAX_ERROR


def test_harm_to_a_branch_that_the_network_ignores_is_seen(small_export, frames):
    _, model = small_export
    (camera,) = leaving(model, "detector.view_transform")[-1:]
    (fused,) = leaving(model, "detector.fusion")
    num_camera = 8  # channels, which come first

    def ignore_cameras(weights):
        weights[:, :num_camera] = 0.0

    def harm(weights):
        weights *= np.float32(0.5)

    blind = changed(model, fused, ignore_cameras)
    harmed = changed(blind, camera, harm)
    reference = Reference(blind, frames, OnnxRuntimeRunner())
    assert reference.error(harmed) > 0.3
    heads = head_values(blind)
    told = [
        next(OnnxRuntimeRunner().run(with_outputs(graph, heads), heads, frames))
        for graph in (blind, harmed)
    ]
    for a, b in zip(*told, strict=True):
        assert np.array_equal(a, b)
