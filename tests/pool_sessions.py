"""Random inputs of the BEV pool's ONNX node, its answer in float64, and sessions that run it."""

import numpy as np
import onnx
import onnxruntime
import torch
from pool_tables import table_of_cells

from export.bev_pool_onnx import DOMAIN, NAME, bev_pool_model
from perception.ops.bev_pool import bev_pool_reference

Feed = dict[str, np.ndarray]


def random_feed(seed: int, shape: tuple[int, ...], num_cells: int, *, change: float = 0.3) -> Feed:
    """Inputs of the node.

    Args:
        seed: Of the random numbers.
        shape: n, d, h, w, c.
        num_cells: Cells, crowded towards the first ones, as near the car.
        change: Probability that a row's cell is not the one of the row above.
    """
    n, d, h, w, c = shape
    random = np.random.default_rng(seed)
    cell = (random.random((n, d, h, w)) ** 3 * (num_cells + 1)).astype(int) - 1  # -1: none
    for row in range(1, h):
        same = random.random((n, d, w)) > change
        cell[:, :, row][same] = cell[:, :, row - 1][same]
    runs, cell_start = table_of_cells(cell, num_cells)
    return {
        "depth": random.random((n, d, h, w)).astype(np.float32),
        "feat": random.normal(size=(n, h, w, c)).astype(np.float32),
        "runs": runs,
        "cell_start": cell_start,
    }


def expected(feed: Feed) -> np.ndarray:
    """The sum in float64."""
    depth, feat, runs, cell_start = (torch.from_numpy(array) for array in feed.values())
    return bev_pool_reference(depth.double(), feat.double(), runs, cell_start).numpy()


def half(feed: Feed) -> Feed:
    """The same with maps in half precision."""
    return feed | {name: feed[name].astype(np.float16) for name in ("depth", "feat")}


def model_for(feed: Feed) -> onnx.ModelProto:
    """A model of the one node, for inputs of these sizes and types."""
    sizes = (*feed["depth"].shape, feed["feat"].shape[3], len(feed["cell_start"]) - 1)
    return bev_pool_model(*sizes, half=feed["feat"].dtype == np.float16)


def open_session(
    model: onnx.ModelProto,
    threads: int = 1,
    library: str | None = None,
    level: onnxruntime.GraphOptimizationLevel = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
) -> onnxruntime.InferenceSession:
    """A session on the CPU, with the compiled op if its library is given."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.graph_optimization_level = level
    options.log_severity_level = 4  # what a session refuses is in its exception
    if library is not None:
        options.register_custom_ops_library(library)
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def pool(feed: Feed, threads: int = 1, library: str | None = None) -> np.ndarray:
    """The node's answer."""
    (bev,) = open_session(model_for(feed), threads, library).run(None, feed)
    return bev


def without_body(model: onnx.ModelProto) -> onnx.ModelProto:
    """The bare node, as a file made for a native kernel alone."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    del bare.functions[:]
    return bare


def with_body_of_zeros(model: onnx.ModelProto) -> onnx.ModelProto:
    """The node with a wrong body, so that it shows who computes."""
    make = onnx.helper
    zero = make.make_node("Constant", [], ["zero"], value_float=0.0)
    total = make.make_node("ReduceSum", ["feat"], ["total"], keepdims=0)
    nothing = make.make_node("Mul", ["total", "zero"], ["nothing"])
    cells = make.make_node("Shape", ["cell_start"], ["cells"])
    one = make.make_node("Constant", [], ["one"], value_ints=[1])
    rows = make.make_node("Sub", ["cells", "one"], ["rows"])
    channels = make.make_node("Shape", ["feat"], ["channels"], start=3)
    shape = make.make_node("Concat", ["rows", "channels"], ["shape"], axis=0)
    bev = make.make_node("Expand", ["nothing", "shape"], ["bev"])
    wrong = without_body(model)
    wrong.functions.append(
        make.make_function(
            DOMAIN,
            NAME,
            ["depth", "feat", "runs", "cell_start"],
            ["bev"],
            [zero, total, nothing, cells, one, rows, channels, shape, bev],
            [make.make_opsetid("", 20)],
            attribute_protos=list(model.functions[0].attribute_proto),
        )
    )
    return wrong
