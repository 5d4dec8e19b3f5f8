import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from export.bev_pool_onnx import DOMAIN, NAME, OPSET, attach_body, register_schema
from perception.ops.bev_pool import bev_pool_reference

CAM, D, H, W, C = 2, 5, 3, 4, 6


def model_with_one_node() -> onnx.ModelProto:
    make, kind = onnx.helper, onnx.TensorProto
    names = ("depth", "feat", "point_depth", "point_feat", "cell_start")
    inputs = [make.make_tensor_value_info(n, kind.FLOAT, [None] * 4) for n in names[:2]]
    inputs += [make.make_tensor_value_info(n, kind.INT32, [None]) for n in names[2:]]
    outputs = [make.make_tensor_value_info("bev", kind.FLOAT, [None, None])]
    node = make.make_node(NAME, names, ["bev"], domain=DOMAIN)
    model = make.make_model(
        make.make_graph([node], "pool", inputs, outputs),
        opset_imports=[make.make_opsetid("", OPSET), make.make_opsetid(DOMAIN, 1)],
        ir_version=10,
    )
    attach_body(model)
    return model


@pytest.fixture(scope="module")
def model():
    register_schema()
    return model_with_one_node()


def session(model, threads=1):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(model.SerializeToString(), options)


@pytest.fixture(scope="module")
def one_thread(model):
    return session(model)


def case(seed, num_points, num_cells, shape=(CAM, D, H, W, C)):
    cam, d, h, w, c = shape
    random = np.random.default_rng(seed)
    point_depth = random.permutation(cam * d * h * w)[:num_points].astype(np.int32)
    point_feat = (point_depth // (d * h * w) * h * w + point_depth % (h * w)).astype(np.int32)
    # crowded towards the first cells, as near the car
    cell = np.sort((random.random(num_points) ** 3 * num_cells).astype(int))
    cell_start = np.zeros(num_cells + 1, np.int32)
    cell_start[1:] = np.cumsum(np.bincount(cell, minlength=num_cells))
    return {
        "depth": random.random((cam, d, h, w)).astype(np.float32),
        "feat": random.normal(size=(cam, h, w, c)).astype(np.float32),
        "point_depth": point_depth,
        "point_feat": point_feat,
        "cell_start": cell_start,
    }


def expected(inputs):
    tensors = [torch.from_numpy(x) for x in inputs.values()]
    return bev_pool_reference(tensors[0].double(), tensors[1].double(), *tensors[2:]).numpy()


def test_the_file_is_valid_and_holds_only_the_node(model):
    onnx.checker.check_model(model, full_check=True)
    assert [(node.domain, node.op_type) for node in model.graph.node] == [("perception", "BevPool")]
    body = model.functions[0]
    assert {node.domain for node in body.node} == {""}


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, CAM * D * H * W), st.integers(1, 9))
def test_body_is_the_reference(one_thread, seed, num_points, num_cells):
    inputs = case(seed, num_points, num_cells)
    (bev,) = one_thread.run(None, inputs)
    np.testing.assert_allclose(bev, expected(inputs), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("num_points", [1, 2, 3, 100, 120])
def test_all_points_in_one_cell(one_thread, num_points):
    inputs = case(1, num_points, 5)
    inputs["cell_start"] = np.array([0, 0, 0, num_points, num_points, num_points], np.int32)
    (bev,) = one_thread.run(None, inputs)
    np.testing.assert_allclose(bev, expected(inputs), rtol=1e-5, atol=1e-5)
    assert (bev[[0, 1, 3, 4]] == 0).all()


def test_entries_behind_the_last_cell_are_padding(one_thread):
    inputs = case(2, 60, 5)
    padded = dict(inputs)
    for name in ("point_depth", "point_feat"):
        padded[name] = np.concatenate([inputs[name], np.zeros(13, np.int32)])
    assert np.array_equal(one_thread.run(None, inputs)[0], one_thread.run(None, padded)[0])


def test_the_sum_does_not_depend_on_threads_or_on_the_run(model):
    inputs = case(3, 60_000, 2_000, shape=(6, 30, 16, 44, 16))
    results = [session(model, threads).run(None, inputs)[0] for threads in (1, 2, 4, 2, 4)]
    for other in results[1:]:
        assert np.array_equal(results[0], other)
