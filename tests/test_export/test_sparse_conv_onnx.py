import warnings
from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from export.bev_pool_onnx import OPSET
from perception.geometry.grid import BevGrid
from perception.geometry.pillars import PillarConfig
from perception.models.sparse_encoder import SparseEncoder, SparseEncoderConfig, SparseTables

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
STANDARD_OPERATORS = {"Gather", "Concat", "Reshape", "MatMul", "Add", "Relu", "Transpose"}
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
        tables = SparseTables(stages=stages, strided=strided, dense=dense)
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
            verbose=False,
        )
    onnx.checker.check_model(program.model_proto, full_check=True)
    return program.model_proto


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


def test_tables_padded_to_a_capacity_change_nothing(model, encoder):
    inputs, _ = frame(encoder, 300, seed=0)
    level_rows = [len(inputs[f"stage{i}"]) for i in range(1, 5)] + [len(inputs["strided4"])]
    capacity = [num + 50 * i for i, num in enumerate(level_rows, start=1)]
    padded = dict(inputs)

    def pad(name, level_in, level_out):
        table = inputs[name]
        full = torch.full((capacity[level_out], table.shape[1]), capacity[level_in]).int()
        full[: len(table)] = torch.where(table == level_rows[level_in], capacity[level_in], table)
        padded[name] = full

    for i in range(4):
        pad(f"stage{i + 1}", i, i)
        pad(f"strided{i + 1}", i, i + 1)
    padded["dense"] = torch.where(inputs["dense"] == level_rows[4], capacity[4], inputs["dense"])
    padded["points"] = torch.full((capacity[0], 4, 5), 7.0)
    padded["points"][:300] = inputs["points"]
    padded["num_points"] = torch.full((capacity[0],), 4, dtype=torch.int32)
    result, expected = run(model, padded), run(model, inputs)
    assert np.abs(result - expected).max() <= 1e-6 * np.abs(expected).max()


def test_the_graph_is_small_and_made_of_standard_operators(model):
    operators = Counter(node.op_type for node in model.graph.node)
    assert {node.domain for node in model.graph.node} <= {""}
    assert set(operators) <= STANDARD_OPERATORS | SMALL_OPERATORS
    assert operators["MatMul"] == 13  # stem, 4 blocks of two, 4 strided
    # one per convolution and one into the dense map: indexing with [] would give GatherND
    assert operators["Gather"] == 14
