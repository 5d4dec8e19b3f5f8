import warnings
from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from export import sparse_conv_onnx
from export.bev_pool_onnx import OPSET
from perception.geometry.grid import BevGrid
from perception.geometry.pillars import PillarConfig
from perception.models.sparse_encoder import SparseEncoder, SparseEncoderConfig, TableTensors

RANGE = {"x_min": -6.4, "x_max": 6.4, "y_min": -3.2, "y_max": 3.2}
VOXELS = PillarConfig(
    grid=BevGrid(**RANGE, cell=0.2),
    z_min=-5.0,
    z_max=3.0,
    max_points=4,
    max_pillars=1000,
    num_sweeps=1,
    num_slices=40,
)
TABLES = [f"stage{i}" for i in range(1, 5)] + [f"strided{i}" for i in range(1, 5)] + ["dense"]
STANDARD_OPERATORS = {"SparseConv", "Gather", "Concat", "Reshape", "Add", "Relu", "Transpose"}
# the voxels' mean, int32 sizes, the mask, the row of zeros
SMALL_OPERATORS = {
    "ReduceSum", "Div", "Max", "Cast", "Unsqueeze", "Mul", "ConstantOfShape"
}  # fmt: skip


class TableGraph(nn.Module):
    """The encoder with its tables as plain tensors."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder

    def forward(
        self, points, num_points, lidar_mask,
        stage1, stage2, stage3, stage4, strided1, strided2, strided3, strided4, dense,
    ):  # fmt: skip
        stages, strided = (stage1, stage2, stage3, stage4), (strided1, strided2, strided3, strided4)
        tables = TableTensors(stages=stages, strided=strided, dense=dense)
        return self.encoder.encode_tables(points, num_points, tables, lidar_mask)


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    config = SparseEncoderConfig(channels=(4, 6, 8, 10), num_blocks=1)
    encoder = SparseEncoder(config, VOXELS, BevGrid(**RANGE, cell=1.6))
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=0.4)
    for name, buffer in encoder.named_buffers():
        if name.endswith("running_var"):
            nn.init.uniform_(buffer, 0.5, 1.5)
        elif name.endswith("running_mean"):
            nn.init.normal_(buffer, std=0.2)
    return encoder.eval()


def frame(encoder, num_voxels, seed):
    """Inputs of the graph, and the cells for the pairs form."""
    generator = torch.Generator().manual_seed(seed)
    cell = torch.randperm(40 * 32 * 64, generator=generator)[:num_voxels].sort().values.int()
    tables = encoder.tables(cell)
    inputs = {
        "points": torch.randn(num_voxels, 4, 5, generator=generator),
        "num_points": torch.full((num_voxels,), 4, dtype=torch.int32),
        "lidar_mask": torch.ones(1, 1),
    }
    named = zip(TABLES, (*tables.stages, *tables.strided, tables.dense), strict=True)
    return inputs | dict(named), cell


@pytest.fixture(scope="module")
def model(encoder):
    rows = [torch.export.Dim(f"rows{i}") for i in range(1, 6)]
    shapes = {"points": {0: rows[0]}, "num_points": {0: rows[0]}, "lidar_mask": None}
    shapes |= {f"stage{i}": {0: rows[i - 1]} for i in range(1, 5)}
    shapes |= {f"strided{i}": {0: rows[i]} for i in range(1, 5)} | {"dense": None}
    inputs, _ = frame(encoder, 300, seed=0)
    assert list(shapes) == list(inputs)  # the exporter names axes by order, not by key
    sparse_conv_onnx.register_schema()
    translation = {torch.ops.perception.sparse_conv.default: sparse_conv_onnx.sparse_conv_node}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns of its own deprecations
        program = torch.onnx.export(
            TableGraph(encoder).eval(),
            kwargs=inputs,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=["bev"],
            dynamic_shapes=shapes,
            custom_translation_table=translation,
            verbose=False,
        )
    proto = program.model_proto  # made anew at each access
    sparse_conv_onnx.attach_body(proto)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def run(model, inputs):
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return session.run(None, {name: value.numpy() for name, value in inputs.items()})[0]


@pytest.mark.parametrize(("num_voxels", "seed"), [(300, 0), (517, 1), (1, 2)])
def test_onnx_runtime_agrees_with_the_pairs_form(model, encoder, num_voxels, seed):
    inputs, cell = frame(encoder, num_voxels, seed)
    with torch.no_grad():
        expected = encoder(
            inputs["points"], inputs["num_points"], cell, cell[:0], inputs["lidar_mask"]
        ).numpy()
    assert expected.any()
    assert np.abs(run(model, inputs) - expected).max() <= 1e-5 * np.abs(expected).max()


def test_no_voxels_and_a_masked_lidar_give_zeros(model, encoder):
    inputs, _ = frame(encoder, 0, seed=3)
    assert not run(model, inputs).any()
    inputs, _ = frame(encoder, 100, seed=4)
    assert not run(model, inputs | {"lidar_mask": torch.zeros(1, 1)}).any()


def test_half_precision_stays_half(model):
    half = onnx.helper.make_tensor_value_info
    kind = onnx.TensorProto
    inputs = [
        half("x", kind.FLOAT16, ["n", 2]),
        half("table", kind.INT32, ["m", 1]),
        half("weight", kind.FLOAT16, [1, 2, 1]),
        half("bias", kind.FLOAT16, [1]),
    ]
    node = onnx.helper.make_node("SparseConv", [i.name for i in inputs], ["y"], domain="perception")
    graph = onnx.helper.make_graph([node], "one", inputs, [half("y", kind.FLOAT16, ["m", 1])])
    opsets = [onnx.helper.make_opsetid("", OPSET), onnx.helper.make_opsetid("perception", 1)]
    single = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
    sparse_conv_onnx.attach_body(single)
    onnx.checker.check_model(single, full_check=True)
    values = {
        "x": np.array([[1, 2], [3, 4]], np.float16),
        "table": np.array([[2], [0], [1]], np.int32),
        "weight": np.array([[[1], [10]]], np.float16),
        "bias": np.array([0.5], np.float16),
    }
    y = onnxruntime.InferenceSession(single.SerializeToString()).run(None, values)[0]
    assert y.dtype == np.float16
    assert y.tolist() == [[43.5], [0.5], [21.5]]


def test_the_graph_is_small_and_made_of_standard_operators(model):
    operators = Counter(node.op_type for node in model.graph.node)
    assert set(operators) <= STANDARD_OPERATORS | SMALL_OPERATORS
    assert operators["SparseConv"] == 13  # stem, 4 blocks of two, 4 strided
    assert operators["Gather"] == 1  # into the dense map
