"""Time of the sparse encoder's tables and of the encoder: `python tests/benchmark_sparse.py`.

Voxels are those of a log (`--log`, the densest of a few frames) or of a made-up scan. The full-size
encoder has random weights: its time does not depend on them.
"""

import argparse
import functools
import logging
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from export import sparse_conv_onnx
from export.bev_pool_onnx import OPSET
from perception import native
from perception.data.nuscenes_log import NuScenesLog
from perception.geometry.pillars import PillarConfig, build_pillars
from perception.geometry.sparse_tables import (
    SparseLevels,
    SparseTables,
    build_sparse_tables,
    build_with_numpy,
    encoder_levels,
)
from perception.models.sparse_encoder import SparseEncoder, TableTensors
from perception.usable_data import frame_points
from training.recipes import p075_lidar


class TableGraph(torch.nn.Module):
    """The encoder with its tables as one argument."""

    def __init__(self, encoder: SparseEncoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, points, num_points, lidar_mask, tables):
        """Encode one frame."""
        within, down = tuple(tables[:4]), tuple(tables[4:8])
        tensors = TableTensors(stages=within, strided=down, dense=tables[8])
        return self.encoder.encode_tables(points, num_points, tensors, lidar_mask)


def best(work, repeats: int) -> float:
    """Shortest time [ms]."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append((time.perf_counter() - start) * 1e3)
    return min(times)


def scan(config: PillarConfig, log: Path | None) -> np.ndarray:
    """Points of one frame, rows as `pillars.POINT_COLUMNS`."""
    if log is not None:
        inputs = p075_lidar().detector.inputs
        source = NuScenesLog(log)
        tokens = source.keyframe_tokens()[:: max(1, len(source.keyframe_tokens()) // 6)]
        frames = [frame_points(source.keyframe(t, config.num_sweeps), inputs) for t in tokens]
        return max(frames, key=lambda points: points.shape[1])
    # rings on a flat ground and walls that the rings meet: 180,000 points in ten sweeps
    rng = np.random.default_rng(0)
    azimuth, elevation = rng.uniform(0, 2 * np.pi, 180_000), rng.integers(1, 24, 180_000)
    wall = 10.0 + 30.0 * np.abs(np.sin(3.0 * azimuth))
    ring = np.minimum(1.8 / np.tan(np.radians(elevation)), wall)
    z = 1.8 - ring * np.tan(np.radians(elevation)) + rng.uniform(0, 2.0, 180_000) * (ring == wall)
    points = [ring * np.cos(azimuth), ring * np.sin(azimuth), z, 0 * z, 0 * z]
    return np.stack(points).astype(np.float32)


def session(encoder: SparseEncoder, feed: dict, tables: SparseTables, levels: SparseLevels):
    """The encoder in ONNX Runtime."""
    sparse_conv_onnx.register_schema()
    warnings.simplefilter("ignore")  # the exporter warns of its own deprecations
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    names = [axis for axis in levels.table_axes.values() if axis]
    dims = {name: torch.export.Dim(name) for name in dict.fromkeys(names)}
    tensors = {name: torch.from_numpy(array) for name, array in feed.items()}
    program = torch.onnx.export(
        TableGraph(encoder).eval(),
        kwargs=tensors | {"tables": tuple(torch.from_numpy(t) for t in tables.by_name.values())},
        dynamo=True,
        opset_version=OPSET,
        input_names=[*tensors, *tables.by_name],
        dynamic_shapes={
            "points": {0: dims["pillars"]},
            "num_points": {0: dims["pillars"]},
            "lidar_mask": None,
            "tables": tuple({0: dims[a]} if a else None for a in levels.table_axes.values()),
        },
        custom_translation_table={
            torch.ops.perception.sparse_conv.default: sparse_conv_onnx.sparse_conv_node
        },
        verbose=False,
    )
    model = program.model_proto
    sparse_conv_onnx.attach_body(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(model.SerializeToString(), options)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--log", type=Path, help="nuScenes log (default: a made-up scan)")
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()
    spec = p075_lidar().detector.inputs
    pillars = build_pillars(scan(spec.pillars, arguments.log), spec.pillars)
    levels = encoder_levels(spec.pillars)
    tables = build_sparse_tables(pillars.cell, levels)
    size = sum(table.nbytes for table in tables.by_name.values()) / 1e6
    sys.stdout.write(f"rows per level {tables.num_rows}, dropped {tables.num_dropped}\n")
    sys.stdout.write(f"tables {size:.1f} MB; {native.description()}\n")
    for threads in (1, 2):
        build = functools.partial(build_sparse_tables, pillars.cell, levels, num_threads=threads)
        sys.stdout.write(f"tables, {threads} thread(s) {best(build, arguments.repeats):10.1f} ms\n")
    numpy_time = best(lambda: build_with_numpy(pillars.cell, levels), 1)
    sys.stdout.write(f"tables, numpy {numpy_time:17.1f} ms\n")
    encoder = SparseEncoder(p075_lidar().detector.point_encoder, spec.pillars, spec.bev).eval()
    feed = {
        "points": pillars.points,
        "num_points": pillars.num_points,
        "lidar_mask": np.ones((1, 1), np.float32),
    }
    run = session(encoder, feed, tables, levels).run
    arrays = feed | tables.by_name
    by_tables = best(lambda: run(None, arrays), 3)
    cells = [torch.from_numpy(a) for a in (pillars.points, pillars.num_points, pillars.cell)]
    cells += [torch.zeros(0, dtype=torch.int32), torch.ones(1, 1)]
    with torch.no_grad():
        by_pairs = best(lambda: encoder(*cells), 2)
        error = np.abs(run(None, arrays)[0] - encoder(*cells).numpy()).max()
        scale = encoder(*cells).abs().max().item()
    sys.stdout.write(
        f"encoder, ONNX Runtime {by_tables:9.1f} ms, torch pairs {by_pairs:9.1f} ms, both on "
        f"{torch.get_num_threads()} thread(s); relative error {error / scale:.1e}\n"
    )


if __name__ == "__main__":
    main()
