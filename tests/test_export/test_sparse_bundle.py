import dataclasses

import numpy as np
import onnx
import pytest
import torch
from small_detector import SQUARE, small_config

from export import parity, sparse_conv_onnx
from export.deploy_graph import DeployGraph
from export.parity_frames import noise_frame
from export.to_onnx import export_checkpoint, sparse_levels, with_sparse_tables
from perception.bundle import load_bundle
from perception.checkpoint import Checkpoint
from perception.data.nuscenes_log import NuScenesLog
from perception.geometry.grid import BevGrid
from perception.geometry.sparse_tables import encoder_levels
from perception.model_inputs import TENSOR_NAMES
from perception.models.detector import build_detector
from perception.models.sparse_encoder import SparseEncoderConfig
from perception.taxonomy import LIDAR, MAP_CLASSES
from runtime.engines.base import OUTPUT_NAMES
from runtime.engines.onnx_engine import OnnxEngine
from runtime.pipeline import Pipeline


@pytest.fixture(scope="module")
def checkpoint():
    """The small network over voxels of 0.4 x 0.4 x 1 m."""
    small = small_config()
    pillars = dataclasses.replace(
        small.inputs.pillars, grid=BevGrid(**SQUARE, cell=0.4), num_slices=8, max_pillars=20_000
    )
    inputs = dataclasses.replace(small.inputs, pillars=pillars)
    config = dataclasses.replace(
        small,
        inputs=inputs,
        point_encoder=SparseEncoderConfig(channels=(4, 6, 8, 8), num_blocks=1),
    )
    torch.manual_seed(0)
    detector = build_detector(config)
    for module in detector.point_encoder.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, std=0.2)
    return Checkpoint(
        detector=detector, config=config, recipe="voxels", trained_map_classes=MAP_CLASSES
    )


@pytest.fixture(scope="module")
def bundle(checkpoint, tmp_path_factory):
    out = tmp_path_factory.mktemp("sparse") / "bundle"
    assert export_checkpoint(checkpoint, out, []).passed
    return load_bundle(out)


@pytest.fixture(scope="module")
def frame(checkpoint):
    """Noise that the file was not traced with."""
    levels = sparse_levels(checkpoint)
    return with_sparse_tables(noise_frame(checkpoint.config.inputs, seed=5), levels.unlimited)


def test_the_graph_has_a_node_per_convolution_and_a_body_of_gather_and_matmul(bundle):
    model = onnx.load(bundle.model_path)
    nodes = [node for node in model.graph.node if node.op_type == "SparseConv"]
    assert len(nodes) == 1 + 4 * 2 + 4  # stem, a block of two per stage, and what leaves it
    assert {node.domain for node in nodes} == {"perception"}
    weights = {initializer.name for initializer in model.graph.initializer}
    assert all({node.input[2], node.input[3]} <= weights for node in nodes)  # norms are folded
    inlined = sparse_conv_onnx.inlined(model)
    kinds = {node.op_type for node in inlined.graph.node}
    assert "SparseConv" not in kinds
    assert {"Gather", "MatMul"} <= kinds
    assert not {kind for kind in kinds if kind.startswith("Scatter")}
    body = next(f for f in model.functions if f.name == "SparseConv")
    assert {node.op_type for node in body.node} <= {
        "Constant", "Shape", "CastLike", "Concat", "Expand", "Gather", "Reshape", "Mul", "MatMul",
        "Add",
    }  # fmt: skip


def test_the_card_says_how_tables_are_made(checkpoint, bundle):
    levels = bundle.card.sparse_levels
    assert levels == encoder_levels(checkpoint.config.inputs.pillars)
    assert levels.size == (9, 256, 256)
    tensors = {t.name: t for t in bundle.card.input_tensors}
    assert tuple(tensors) == bundle.card.input_names == (*TENSOR_NAMES, *levels.table_axes)
    assert tensors["stage_table_1"].shape == ("pillars", "27")
    assert tensors["strided_table_3"].shape == ("voxels_4", "27")
    # 8 slices and one of padding: 9, 5, 3, 1; the last kernel covers the one slice there is
    assert tensors["strided_table_4"].shape == ("voxels_5", "1")
    assert tensors["dense_table"].shape == (str(32 * 32),)


def test_the_file_agrees_with_the_trained_form(checkpoint, bundle, frame):
    # torch convolves pairs of rows and is given no table; 32,768 places of noise
    expected = parity.run_torch(DeployGraph(checkpoint), frame)
    got = OnnxEngine(bundle).run(frame)
    scale = np.abs(expected.map_prob).max()
    assert np.abs(got.map_prob - expected.map_prob).max() <= 1e-5 * scale
    blank = dataclasses.replace(frame, lidar_mask=np.zeros(1, np.float32))
    assert np.abs(got.map_prob - OnnxEngine(bundle).run(blank).map_prob).max() > 1e-3


def test_rows_behind_those_in_use_change_no_bit(bundle, frame):
    # as an engine of fixed shapes has them: whatever an earlier frame left up to the capacity
    random = np.random.default_rng(0)
    tensors, axes = frame.tensors, bundle.card.sparse_levels.table_axes
    longer = dict(tensors)
    rows = {axis: len(tensors[name]) for name, axis in axes.items() if axis}
    room = {axis: number + 500 * k for k, (axis, number) in enumerate(rows.items(), start=1)}
    for name, axis in axes.items():
        if axis:
            table = random.integers(0, min(rows.values()), (room[axis], tensors[name].shape[1]))
            longer[name] = table.astype(np.int32)
            longer[name][: rows[axis]] = tensors[name]
    for name in ("pillar_points", "pillar_num_points", "pillar_cell"):
        first = tensors[name][:1]
        behind = np.repeat(first, room["pillars"] - rows["pillars"], axis=0)
        longer[name] = np.concatenate([tensors[name], behind])
    fields = {name: longer.pop(name) for name in TENSOR_NAMES}
    engine = OnnxEngine(bundle)
    result = engine.run(dataclasses.replace(frame, **fields, sparse_tables=longer))
    expected = engine.run(frame)
    for name in OUTPUT_NAMES:
        np.testing.assert_array_equal(getattr(result, name), getattr(expected, name))


def test_the_pipeline_builds_the_tables_of_a_log_s_frame(bundle, small_log_root):
    log = NuScenesLog(small_log_root)
    keyframe = log.keyframe(log.keyframe_tokens()[0], 3)
    pipeline = Pipeline(bundle)
    pipeline.warm_up()
    result = pipeline.process(keyframe)
    assert LIDAR in result.sensors_used
    assert len(result.detections.scores) == bundle.card.num_boxes
    assert pipeline.counters["dropped_voxels"] == pipeline.counters["engine_failures"] == 0
    pipeline.close()


def test_voxels_beyond_a_capacity_are_counted_and_the_frame_is_computed(bundle, small_log_root):
    log = NuScenesLog(small_log_root)
    keyframe = log.keyframe(log.keyframe_tokens()[0], 3)
    levels = dataclasses.replace(bundle.card.sparse_levels, capacities=(20_000, 2, 2, 2, 2))
    card = dataclasses.replace(bundle.card, sparse_levels=levels)
    pipeline = Pipeline(dataclasses.replace(bundle, card=card))
    first, again = pipeline.process(keyframe), pipeline.process(keyframe)
    assert pipeline.counters["engine_failures"] == 0
    dropped = pipeline.counters["dropped_voxels"]
    assert dropped > 0
    assert dropped % 2 == 0  # the same ones twice
    assert LIDAR in first.sensors_used
    np.testing.assert_array_equal(first.map_mask.prob, again.map_mask.prob)
    pipeline.close()
