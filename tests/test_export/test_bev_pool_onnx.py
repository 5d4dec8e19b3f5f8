import contextlib
import subprocess
import sys

import numpy as np
import onnx
import onnx.inliner
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument
from pool_sessions import expected, half, model_for, open_session, pool, random_feed, without_body
from torch import nn

from export.bev_pool_onnx import (
    INPUTS,
    NAME,
    OPSET,
    attach_body,
    bev_pool_model,
    bev_pool_node,
    register_schema,
)
from perception.ops.bev_pool import bev_pool

sizes = st.tuples(*(st.integers(1, most) for most in (3, 4, 7, 4, 6)))


@pytest.fixture(scope="module", autouse=True)
def schema():
    register_schema()


def test_the_file_is_valid_and_holds_only_the_node():
    model = bev_pool_model(2, 3, 4, 5, 6, 7)
    onnx.checker.check_model(model, full_check=True)
    assert [(node.domain, node.op_type) for node in model.graph.node] == [("perception", "BevPool")]
    (body,) = model.functions
    assert {node.domain for node in body.node} == {""}
    for attributes in (model.graph.node[0].attribute, body.attribute_proto):
        texts = {attribute.name: attribute.s for attribute in attributes}
        assert texts == {"plugin_version": b"1", "plugin_namespace": b"perception"}


def test_no_sum_is_scattered_on_values():
    # a scattered sum of floats depends on the threads; those that count runs are of integers
    inlined = onnx.inliner.inline_local_functions(bev_pool_model(2, 3, 4, 5, 6, 7))
    assert "ScatterND" not in {node.op_type for node in inlined.graph.node}
    inferred = onnx.shape_inference.infer_shapes(inlined, data_prop=True)
    types = {x.name: x.type.tensor_type.elem_type for x in inferred.graph.value_info}
    scatters = [node for node in inlined.graph.node if node.op_type == "ScatterElements"]
    assert {types[node.output[0]] for node in scatters} == {onnx.TensorProto.INT64}


def test_a_sum_worked_by_hand():
    # one camera, one depth bin, three rows of two columns, one channel: pixels 0..5, row by row
    feed = {
        "depth": np.array([1, 2, 3, 4, 5, 6], np.float32).reshape(1, 1, 3, 2),
        "feat": np.array([10, 20, 30, 40, 50, 60], np.float32).reshape(1, 3, 2, 1),
        # cell 0: pixels 0, 2, 4 (left column); cell 1: none; cell 2: pixel 1 and pixels 3, 5
        "runs": np.array([[0, 0, 3], [1, 1, 1], [3, 3, 2]], np.int32),
        "cell_start": np.array([0, 1, 1, 3], np.int32),
    }
    # 1 * 10 + 3 * 30 + 5 * 50 = 350;    2 * 20 + (4 * 40 + 6 * 60) = 560
    np.testing.assert_array_equal(pool(feed), [[350], [0], [560]])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), sizes, st.integers(1, 9), st.sampled_from([0.0, 0.3, 1.0]))
def test_body_is_the_reference(seed, shape, num_cells, change):
    feed = random_feed(seed, shape, num_cells, change=change)
    np.testing.assert_allclose(pool(feed), expected(feed), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("num_runs", [1, 2, 3, 4, 5, 9, 33])
def test_a_cell_of_many_runs(num_runs):
    feed = random_feed(1, (1, 1, 2, num_runs, 3), 5)
    feed["runs"] = np.array([[w, w, 2] for w in range(num_runs)], np.int32)
    feed["cell_start"] = np.array([0, 0, 0, num_runs, num_runs, num_runs], np.int32)
    bev = pool(feed)
    np.testing.assert_allclose(bev, expected(feed), rtol=1e-5, atol=1e-5)
    assert (bev[[0, 1, 3, 4]] == 0).all()


def test_rows_behind_the_last_cell_are_padding():
    feed = random_feed(2, (2, 5, 3, 4, 6), 5)
    session = open_session(model_for(feed))
    padding = np.array([[-7, 2**31 - 1, 0], [2**31 - 1, -9, 40]], np.int32)
    padded = feed | {"runs": np.concatenate([feed["runs"], padding])}
    assert np.array_equal(session.run(None, feed)[0], session.run(None, padded)[0])


@pytest.mark.parametrize("rows_of_padding", [0, 3])
def test_a_table_without_runs_gives_zeros(rows_of_padding):
    feed = random_feed(3, (2, 3, 4, 5, 6), 8)
    feed["runs"] = np.full((rows_of_padding, 3), -1, np.int32)
    feed["cell_start"] = np.zeros(9, np.int32)
    feed["feat"][:] = np.nan
    assert np.array_equal(pool(feed), np.zeros((8, 6)))


@pytest.mark.parametrize(
    ("run", "cell_start"),
    [
        ([-1, 0, 1], [0, 1]),
        ([2**31 - 1, 0, 1], [0, 1]),
        ([5, -2000, 1], [0, 1]),
        ([5, 2**31 - 1, 2**31 - 1], [0, 1]),
        ([5, 5, -3], [0, 1]),
        ([5, 5, 2], [0, 2**31 - 1]),
        ([5, 5, 2], [2**31 - 1, 1]),
        ([5, 5, 2], [-9, -5]),
    ],
)
def test_a_table_that_points_outside_is_never_a_fault(run, cell_start):
    # the body trusts its table: it may refuse this one or return nonsense, but must live
    feed = random_feed(9, (2, 3, 4, 5, 6), 1)
    feed["runs"] = np.array([run], np.int32)
    feed["cell_start"] = np.array(cell_start, np.int32)
    with contextlib.suppress(Fail, InvalidArgument):
        assert pool(feed).shape == (1, 6)


def test_what_is_in_pixels_of_no_run_does_not_matter():
    feed = random_feed(4, (2, 9, 8, 5, 6), 8)
    # of the runs only those in the upper half of the first camera are left
    depth, pixel, rows = feed["runs"].T
    keep = (pixel + (rows - 1) * 5 < 4 * 5) & (depth < 9 * 8 * 5)
    cell = np.repeat(np.arange(8), np.diff(feed["cell_start"]))[keep]
    feed["runs"] = feed["runs"][keep]
    feed["cell_start"][1:] = np.cumsum(np.bincount(cell, minlength=8))
    assert len(feed["runs"]) > 20
    bev = pool(feed)
    feed["feat"][0, 4:] = feed["depth"][0, :, 4:] = np.nan
    feed["feat"][1] = feed["depth"][1] = np.inf
    assert np.isfinite(bev).all()
    assert np.array_equal(pool(feed), bev)


def test_the_sum_does_not_depend_on_threads_or_on_the_run():
    feed = random_feed(5, (3, 20, 12, 22, 40), 900)
    model = model_for(feed)
    results = [open_session(model, t).run(None, feed)[0] for t in (1, 2, 3, 4, 2, 4)]
    for other in results[1:]:
        assert np.array_equal(results[0], other)


def test_half_precision_is_rounded_once_at_the_end():
    feed = half(random_feed(6, (2, 5, 6, 4, 6), 9))
    wide = feed | {name: feed[name].astype(np.float32) for name in ("depth", "feat")}
    bev = pool(feed)
    assert bev.dtype == np.float16
    assert np.array_equal(bev, pool(wide).astype(np.float16))


def test_without_body_and_without_library_the_missing_op_is_named():
    with pytest.raises(Fail, match="perception:BevPool"):
        open_session(without_body(bev_pool_model(2, 3, 4, 5, 6, 7)))


class Pool(nn.Module):
    def forward(self, depth, feat, runs, cell_start):
        return bev_pool(depth.softmax(1), feat, runs, cell_start)


def test_the_torch_op_becomes_the_node():
    feed = random_feed(7, (2, 4, 3, 5, 6), 8)
    program = torch.onnx.export(
        Pool().eval(),
        kwargs={name: torch.from_numpy(array) for name, array in feed.items()},
        dynamo=True,
        opset_version=OPSET,
        dynamic_shapes={
            name: {0: torch.export.Dim("runs")} if name == "runs" else None for name in INPUTS
        },
        custom_translation_table={torch.ops.perception.bev_pool.default: bev_pool_node},
        verbose=False,
    )
    model = program.model_proto
    attach_body(model)
    onnx.checker.check_model(model, full_check=True)
    (node,) = [node for node in model.graph.node if node.op_type == NAME]
    attributes = {attribute.name: attribute.s for attribute in node.attribute}
    assert attributes == {"plugin_version": b"1", "plugin_namespace": b"perception"}
    (output,) = model.graph.output
    assert [dim.dim_value for dim in output.type.tensor_type.shape.dim] == [8, 6]
    (bev,) = open_session(model).run(None, feed)
    truth = Pool()(*(torch.from_numpy(array) for array in feed.values())).numpy()
    np.testing.assert_allclose(bev, truth, rtol=1e-5, atol=1e-5)


FULL_SIZE = """
import sys
import numpy as np
import onnxruntime
n, d, h, w, c, cells = 6, 118, 32, 88, 80, 360 * 360
random = np.random.default_rng(0)
first = np.arange(n * d * 2 * w).reshape(n, d, 2, w)  # two runs of half a column each
depth = first + np.arange(n * d)[:, None, None].reshape(n, d, 1, 1) * (h - 2) * w
depth[:, :, 1] += 15 * w
pixel = depth - np.arange(n)[:, None, None, None] * (d - 1) * h * w
pixel -= np.arange(d)[None, :, None, None] * h * w
runs = np.stack([depth, pixel, np.full_like(depth, 16)], -1).reshape(-1, 3).astype(np.int32)
cell = random.permutation(np.arange(len(runs)) % cells)
runs = runs[np.argsort(cell, kind="stable")]
start = np.concatenate([[0], np.cumsum(np.bincount(cell, minlength=cells))]).astype(np.int32)
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
options.enable_mem_pattern = False
session = onnxruntime.InferenceSession(sys.argv[1], options)
feed = {"depth": np.ones((n, d, h, w), np.float32), "feat": np.ones((n, h, w, c), np.float32)}
(bev,) = session.run(None, feed | {"runs": runs, "cell_start": start})
assert (bev.sum(1) == 16 * 80 * np.diff(start)).all()
sys.stdout.write(open("/proc/self/status").read())
"""
"""A process of its own, because the peak of a process's memory never falls."""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_full_size_takes_less_than_half_a_gigabyte(tmp_path):
    onnx.save(bev_pool_model(6, 118, 32, 88, 80, 360 * 360), tmp_path / "pool.onnx")
    (tmp_path / "full_size.py").write_text(FULL_SIZE)
    command = [sys.executable, "full_size.py", "pool.onnx"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    (peak,) = [line for line in result.stdout.splitlines() if line.startswith("VmHWM:")]
    assert int(peak.split()[1]) < 500 * 1024  # KiB
