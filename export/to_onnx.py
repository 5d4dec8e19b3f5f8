"""Export a run: `python export/to_onnx.py RUN --out BUNDLE`.

The bundle holds one `model.onnx`, `model_card.json`, `parity.json`, `golden.npz` for the self-test
and a manifest with the digest of each. The command prints a parity table and fails when an output
is out of bounds.
"""

import argparse
import dataclasses
import json
import logging
import sys
import warnings
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import torch

from export import bev_pool_onnx, parity, sparse_conv_onnx
from export.bev_pool_onnx import OPSET
from export.deploy_graph import DeployGraph
from export.parity_frames import log_frames, noise_frame, with_missing_sensors
from export.stage_parity import compare_stages
from perception import atomic_file, json_codec, provenance
from perception.bundle import CARD_FILE, MODEL_FILE, load_bundle, write_manifest
from perception.checkpoint import Checkpoint, load_checkpoint
from perception.data.nuscenes_log import NuScenesLog
from perception.errors import InputError, run_command
from perception.geometry.pillars import POINT_COLUMNS
from perception.geometry.sparse_tables import (
    SparseLevels,
    build_sparse_tables,
    encoder_levels,
)
from perception.model_card import BOX_COLUMNS, FORMAT_VERSION, ModelCard, TensorSpec
from perception.model_inputs import TENSOR_NAMES, ModelInputs
from perception.models.sparse_encoder import SparseEncoderConfig
from perception.taxonomy import DETECTION_CLASSES
from runtime.agreement import BOUNDS, MIN_DECISIVE_BOXES, is_decisive
from runtime.engines.base import Engine
from runtime.engines.onnx_engine import OnnxEngine
from runtime.self_test import write_golden

PARITY_FILE = "parity.json"
VARIABLE_AXES = {
    "pool_runs": "runs",
    "pillar_points": "pillars",
    "pillar_num_points": "pillars",
    "pillar_cell": "pillars",
}
"""Tensors whose first axis changes from frame to frame."""

MEANINGS = {
    "images": "camera pictures after resize and crop, RGB 0..255, cameras in the card's order",
    "camera_mask": "1 where the camera's picture counts, else 0",
    "pool_runs": "runs of frustum points by BEV cell: first index into (cam, depth, h, w), first "
    "index into (cam, h, w), number of rows",
    "cell_start": "runs of BEV cell g are cell_start[g] to cell_start[g + 1], excluded",
    "depth_img": "LiDAR depth [m] at each pixel, 0 where no point is; empty where not asked for",
    "pillar_points": "LiDAR points per pillar, columns as point_columns, zero where unused",
    "pillar_num_points": "points used per pillar",
    "pillar_cell": "pillar's cell, (iz * ny + iy) * nx + ix",
    "cell_pillar": "cell's pillar, counted from 1; 0 where the cell is empty",
    "lidar_mask": "1 where the LiDAR counts, else 0",
    "stage_table": "rows that each voxel sees in its own level (z, y, x), from 1; 0 where none is",
    "strided_table": "rows that each voxel sees in the level before, from 1; 0 where none is",
    "dense_table": "voxel of the last level at each place (y, x, z), from 1; 0 where none is",
    "boxes_ego": "columns as box_columns, ego frame at the frame's stamp, SI units, best first",
    "scores": "0..1",
    "labels": "index into detection_classes",
    "map_prob": "probability per map layer on map_grid; rows grow with y, columns with x",
}


def export_checkpoint(
    checkpoint: Checkpoint, out: Path, frames: list[ModelInputs], overwrite: bool = False
) -> parity.ParityReport:
    """Export a trained detector into a bundle and compare it with torch.

    Args:
        checkpoint: The detector, in evaluation mode.
        out: The bundle, a folder that appears when it is whole.
        frames: Real inputs for the parity table, besides noise and frames with sensors missing; one
            of them becomes the golden frame, unless the network sees more in noise.
        overwrite: Replace an existing bundle.

    Returns:
        The comparison, which passed.

    Raises:
        InputError: The exported file disagrees with torch, and there is no bundle; or the folder
            exists or cannot be made.
    """
    graph = DeployGraph(checkpoint)
    spec = checkpoint.config.inputs
    noise = noise_frame(spec)
    compared = [noise, *frames, *with_missing_sensors(frames[0] if frames else noise)]
    levels = sparse_levels(checkpoint)
    if levels is not None:
        compared = [with_sparse_tables(frame, levels.unlimited) for frame in compared]
        noise = compared[0]
    with atomic_file.new_folder(out, overwrite) as folder:
        model = export_graph(graph, noise, levels)
        card = model_card(checkpoint, graph, noise, levels)
        atomic_file.write_bytes(folder / MODEL_FILE, model.SerializeToString())
        atomic_file.write_text(folder / CARD_FILE, json_codec.to_json(card))
        write_manifest(folder)
        stages = compare_stages(graph, model, compared)
        engine = OnnxEngine(load_bundle(folder))
        report = parity.compare(graph, engine, compared)
        sys.stdout.write(f"{stages.table()}\n\n{report.table()}\n")
        if not (stages.passed and report.passed):
            raise InputError(
                f"{out} was not written: the exported file disagrees with torch (table above); "
                "report it with this run, or export from another version of torch."
            )
        figures = {**dataclasses.asdict(report), "stages": dataclasses.asdict(stages)}
        text = json.dumps(figures, indent=2)
        atomic_file.write_text(folder / PARITY_FILE, text + "\n")
        _write_best_golden(folder, engine, [*frames, noise_frame(spec)], levels)
        write_manifest(folder)
    return report


def _write_best_golden(
    folder: Path, engine: Engine, frames: list[ModelInputs], levels: SparseLevels | None
) -> None:
    """Make that frame the golden one of which an engine in half precision shows the most boxes."""
    if levels is not None:
        frames = [with_sparse_tables(frame, levels) for frame in frames]
    answers = [engine.run(frame) for frame in frames]
    counts = [
        [int(is_decisive(answer, BOUNDS[precision]).sum()) for precision in ("fp16", "fp32")]
        for answer in answers
    ]
    best = counts.index(max(counts))
    num_boxes = counts[best][0]
    write_golden(folder, frames[best], answers[best])
    sys.stdout.write(f"golden frame: {num_boxes} boxes that a self-test in fp16 compares\n")
    if num_boxes < MIN_DECISIVE_BOXES:
        sys.stderr.write(
            f"the self-test will hardly look at boxes ({MIN_DECISIVE_BOXES} are wanted): export "
            "with --log of a drive in which the network sees something\n"
        )


def sparse_levels(checkpoint: Checkpoint) -> SparseLevels | None:
    """Levels of the checkpoint's sparse encoder; None where it has none."""
    config = checkpoint.config
    is_sparse = isinstance(config.point_encoder, SparseEncoderConfig)
    return encoder_levels(config.inputs.pillars) if is_sparse else None


def with_sparse_tables(inputs: ModelInputs, levels: SparseLevels) -> ModelInputs:
    """The frame and the tables of its voxels."""
    tables = build_sparse_tables(inputs.pillar_cell, levels)
    return dataclasses.replace(inputs, sparse_tables=tables.by_name)


def export_graph(
    graph: DeployGraph, example: ModelInputs, levels: SparseLevels | None = None
) -> onnx.ModelProto:
    """Trace the graph and give our nodes their bodies."""
    bev_pool_onnx.register_schema()
    sparse_conv_onnx.register_schema()
    # it warns that torchvision, which nothing here needs, is absent
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    tensors = {name: torch.from_numpy(array) for name, array in example.tensors.items()}
    axes = _varying_axes(levels)
    dims = {name: torch.export.Dim(name) for name in sorted(set(axes.values()))}
    shapes = {name: {0: dims[axes[name]]} if name in axes else None for name in tensors}
    with warnings.catch_warnings():
        # the exporter warns of its own deprecations, and that shared axis names are shared
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            graph,
            kwargs=_arguments(tensors),
            dynamo=True,
            opset_version=OPSET,
            input_names=list(tensors),
            output_names=list(parity.OUTPUT_NAMES),
            dynamic_shapes=_arguments(shapes),
            custom_translation_table={
                torch.ops.perception.bev_pool.default: bev_pool_onnx.bev_pool_node,
                torch.ops.perception.sparse_conv.default: sparse_conv_onnx.sparse_conv_node,
            },
            verbose=False,
        )
    model = cast(torch.onnx.ONNXProgram, program).model_proto
    bev_pool_onnx.attach_body(model)
    if example.sparse_tables:
        sparse_conv_onnx.attach_body(model)
    onnx.checker.check_model(model, full_check=True)
    return model


def model_card(
    checkpoint: Checkpoint,
    graph: DeployGraph,
    example: ModelInputs,
    levels: SparseLevels | None = None,
) -> ModelCard:
    """Write down what the car must know."""
    outputs = parity.run_torch(graph, example)
    axes = _varying_axes(levels)
    return ModelCard(
        format_version=FORMAT_VERSION,
        recipe=checkpoint.recipe,
        commit=provenance.commit_name(),
        inputs=checkpoint.config.inputs,
        point_columns=POINT_COLUMNS,
        box_columns=BOX_COLUMNS,
        detection_classes=DETECTION_CLASSES,
        map_classes=checkpoint.trained_map_classes,
        map_grid=checkpoint.config.map_head.grid,
        num_boxes=len(outputs.scores),
        input_tensors=tuple(
            _tensor_spec(name, array, axes.get(name)) for name, array in example.tensors.items()
        ),
        output_tensors=tuple(
            _tensor_spec(name, getattr(outputs, name)) for name in parity.OUTPUT_NAMES
        ),
        sparse_levels=levels,
    )


def main() -> None:
    """Read the command line, export, print the parity table."""
    parser = argparse.ArgumentParser(prog="to_onnx.py", description=__doc__)
    parser.add_argument("run", type=Path, help="run folder made by train.py")
    parser.add_argument("--out", type=Path, required=True, help="bundle folder to make")
    parser.add_argument(
        "--log",
        type=Path,
        help="nuScenes log for the parity table and the golden frame (default: the run's own)",
    )
    parser.add_argument("--version", help="folder of the log's tables, such as v1.0-mini")
    parser.add_argument("--frames", type=int, default=4, help="keyframes compared (default: 4)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing bundle")
    arguments = parser.parse_args()
    if arguments.frames < 1:
        raise InputError(f"--frames is {arguments.frames}, expected 1 or more.")
    if not arguments.run.is_dir():
        raise InputError(f"{arguments.run} is no folder: give a run folder made by train.py.")
    log = _parity_log(arguments.run, arguments.log, arguments.version)
    checkpoint = load_checkpoint(arguments.run)
    frames = log_frames(log, checkpoint.config.inputs, arguments.frames) if log else []
    export_checkpoint(checkpoint, arguments.out, frames, arguments.overwrite)
    sys.stdout.write(f"bundle: {arguments.out}\n")


def _parity_log(run: Path, log: Path | None, version: str | None) -> NuScenesLog | None:
    """The log that was asked for, else the one the run was trained on, else none."""
    if log is not None:
        return NuScenesLog(log, version)
    try:
        data = json.loads((run / "config.json").read_text())["data"]
        own, version = Path(data["log"]), data["version"] or None
    except (OSError, ValueError, KeyError, TypeError):  # no run of train.py, or a damaged one
        own = None
    if own is not None and own.is_dir() and own != Path():
        return NuScenesLog(own, version)
    sys.stderr.write("no log: parity table and golden frame are of noise only, pass --log ROOT\n")
    return None


def _varying_axes(levels: SparseLevels | None) -> dict[str, str]:
    """Name of the first axis of each input where it varies."""
    tables = levels.table_axes.items() if levels else ()
    return VARIABLE_AXES | {table: axis for table, axis in tables if axis is not None}


def _arguments(by_name: dict[str, Any]) -> dict[str, Any]:
    """Arguments of the graph by name: the tables are one of them."""
    is_table = {name: name not in TENSOR_NAMES for name in by_name}
    arguments = {name: value for name, value in by_name.items() if not is_table[name]}
    tables = tuple(value for name, value in by_name.items() if is_table[name])
    return arguments | ({"sparse_tables": tables} if tables else {})


def _tensor_spec(name: str, array: np.ndarray, varying_axis: str | None = None) -> TensorSpec:
    shape = [str(size) for size in array.shape]
    if varying_axis is not None:
        shape[0] = varying_axis
    meaning = MEANINGS[name.rstrip("_0123456789")]
    return TensorSpec(name=name, dtype=array.dtype.name, shape=tuple(shape), meaning=meaning)


if __name__ == "__main__":
    run_command(main)
