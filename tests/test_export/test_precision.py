import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from export.precision import to_half
from perception.errors import InputError

FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16


def graph(
    nodes: list, weights: dict, inputs: dict | None = None, outputs: tuple[str, ...] = ("y",)
) -> onnx.ModelProto:
    """A graph of float inputs [1 2 4 4] unless said otherwise, checked."""
    infos = {"x": (FLOAT, [1, 2, 4, 4]), **(inputs or {})}
    made = helper.make_graph(
        [helper.make_node(op, ins, outs, name=outs[0], **more) for op, ins, outs, more in nodes],
        "g",
        [helper.make_tensor_value_info(n, kind, shape) for n, (kind, shape) in infos.items()],
        [helper.make_tensor_value_info(name, FLOAT, [None] * 4) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def types(model: onnx.ModelProto) -> dict[str, int]:
    inferred = onnx.shape_inference.infer_shapes(model).graph
    return {i.name: i.type.tensor_type.elem_type for i in inferred.value_info}


CONV = np.full((2, 2, 1, 1), 0.25, np.float32)


def conv(source: str, target: str) -> tuple:
    return ("Conv", [source, "w"], [target], {})


def test_what_lies_between_heavy_nodes_is_half_and_the_rest_is_not():
    # x (metres) -> scaled -> conv a -> relu -> conv b -> decoded
    model = graph(
        [
            ("Mul", ["x", "tenth"], ["scaled"], {}),
            conv("scaled", "a"),
            ("Relu", ["a"], ["r"], {}),
            conv("r", "b"),
            ("Add", ["b", "tenth"], ["decoded"], {}),
            ("Exp", ["decoded"], ["y"], {}),
        ],
        {"w": CONV, "tenth": np.float32(0.1)},
    )
    half = to_half(model)
    kinds = types(half)
    assert kinds["scaled"] == FLOAT
    assert [kinds[f"{name}_half"] for name in ("scaled", "a", "r", "b")] == [HALF] * 4
    assert kinds["decoded"] == FLOAT
    casts = [node.output[0] for node in half.graph.node if node.op_type == "Cast"]
    assert casts == ["scaled_half", "b"]  # one each way, none between
    assert {weight.name: weight.data_type for weight in half.graph.initializer} == {
        "w_half": HALF,
        "tenth": FLOAT,
    }


def test_softmax_and_norms_are_float_amid_half():
    model = graph(
        [
            conv("x", "a"),
            ("Softmax", ["a"], ["s"], {"axis": 1}),
            conv("s", "b"),
            ("Identity", ["b"], ["y"], {}),
        ],
        {"w": CONV},
    )
    kinds = types(to_half(model))
    assert kinds["s"] == FLOAT
    assert kinds["s_half"] == kinds["a_half"] == HALF


def test_a_mask_does_not_hold_its_features_in_float_but_a_position_does():
    # places come from integers: half has steps of 1/4 m at 300 m
    model = graph(
        [
            conv("x", "a"),
            ("Mul", ["a", "lidar_mask"], ["masked"], {}),
            ("Cast", ["cell"], ["place"], {"to": FLOAT}),
            ("Add", ["masked", "place"], ["placed"], {}),
            conv("placed", "b"),
            ("Identity", ["b"], ["y"], {}),
        ],
        {"w": CONV},
        {"lidar_mask": (FLOAT, [1]), "cell": (TensorProto.INT32, [4])},
    )
    kinds = types(to_half(model))
    assert kinds["masked_half"] == HALF
    assert kinds["placed"] == kinds["place"] == FLOAT


def test_weights_that_half_cannot_hold_keep_their_node_in_float():
    # 65504 is the largest half
    model = graph(
        [
            conv("x", "a"),
            ("Add", ["a", "huge"], ["sum"], {}),
            ("Min", ["sum", "infinite"], ["least"], {}),
            conv("least", "b"),
            ("Identity", ["b"], ["y"], {}),
        ],
        {"w": CONV, "huge": np.float32(1e6), "infinite": np.float32(np.inf)},
    )
    kinds = types(to_half(model))
    assert kinds["sum"] == FLOAT
    assert kinds["least_half"] == HALF


def test_scales_of_a_resize_stay_float():
    model = graph(
        [
            conv("x", "a"),
            ("Resize", ["a", "", "scales"], ["wide"], {"mode": "nearest"}),
            conv("wide", "b"),
            ("Identity", ["b"], ["y"], {}),
        ],
        {"w": CONV, "scales": np.array([1, 1, 2, 2], np.float32)},
    )
    half = to_half(model)
    assert types(half)["wide_half"] == HALF
    (resize,) = (node for node in half.graph.node if node.op_type == "Resize")
    assert list(resize.input) == ["a_half", "", "scales"]


def test_a_half_tensor_may_be_an_output_and_be_read_on_and_the_order_is_valid():
    model = graph(
        [conv("x", "y"), ("Relu", ["y"], ["r"], {}), conv("r", "z")],
        {"w": CONV},
        outputs=("y", "z"),
    )
    half = to_half(model)
    onnx.checker.check_model(half, full_check=True)
    assert [o.type.tensor_type.elem_type for o in half.graph.output] == [FLOAT, FLOAT]
    known = {"x"} | {weight.name for weight in half.graph.initializer}
    for node in half.graph.node:
        assert set(node.input) <= known
        known |= set(node.output)
    x = np.random.default_rng(0).normal(size=(1, 2, 4, 4)).astype(np.float32)
    for got, expected in zip(run(half, x), run(model, x), strict=True):
        assert got.dtype == np.float32
        # a product of half has 11 bits: 5e-4 of a value of about 1
        np.testing.assert_allclose(got, expected, atol=2e-3)
        assert not np.array_equal(got, expected)


def test_constants_of_the_graph_become_half_weights():
    value = numpy_helper.from_array(np.float32(2.0))
    nodes = [
        ("Constant", [], ["two"], {"value": value}),
        conv("x", "a"),
        ("Mul", ["a", "two"], ["doubled"], {}),
        conv("doubled", "b"),
        ("Identity", ["b"], ["y"], {}),
    ]
    half = to_half(graph(nodes, {"w": CONV}))
    assert "Constant" not in {node.op_type for node in half.graph.node}
    assert "two_half" in {weight.name for weight in half.graph.initializer}


def test_the_model_that_is_given_stays_as_it_is():
    model = graph([conv("x", "y")], {"w": CONV})
    before = model.SerializeToString()
    to_half(model)
    assert model.SerializeToString() == before


def test_a_node_with_a_body_is_refused():
    body = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["z"])],
        "body",
        [],
        [helper.make_tensor_value_info("z", FLOAT, [None] * 4)],
    )
    model = graph([("If", ["c"], ["y"], {"then_branch": body, "else_branch": body})], {})
    model.graph.input.append(helper.make_tensor_value_info("c", TensorProto.BOOL, []))
    with pytest.raises(InputError, match=r"Node 'y' \(If\) has a body"):
        to_half(model)


def run(model: onnx.ModelProto, x: np.ndarray) -> list[np.ndarray]:
    """By ONNX's own definition: ONNX Runtime's CPU leaves casts out where it has no half kernel."""
    return ReferenceEvaluator(model).run(None, {"x": x})
