"""Time of the BEV pool, its rivals and its table, at the standard configuration.

    python tests/benchmark_bev_pool.py [--log ROOT] [--repeats 30] [--json FILE]

Six cameras, 32 x 88 pixels, 118 depth bins, 80 channels, 360 x 360 cells, real calibration. All
rows come from one run; the floor is the time in which the same cores read depth and features and
write the result once, without computing.
"""

import argparse
import ctypes
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from pool_sessions import model_for, open_session

from perception import native
from perception.atomic_file import write_text
from perception.data.nuscenes_log import NuScenesLog
from perception.errors import InputError, run_command
from perception.geometry.pool_table import PoolTable
from perception.input_spec import InputSpec
from perception.model_inputs import CameraRig, camera_rig, rig_pool_table
from training.recipes import p075_fusion

RIVALS = Path(__file__).with_name("bev_pool_rivals.cpp")
CHANNELS = 80
SHARED_LOG = Path(__file__).resolve().parents[2] / "shared" / "data" / "nuscenes_real"


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    name: str
    threads: int
    ms: float
    """Least of the repeats."""
    median_ms: float
    floor_ms: float | None = None
    """Bytes that must move, at the bandwidth measured in this run."""


@dataclass(frozen=True)
class Problem:
    """Tensors and tables of the standard configuration."""

    depth: np.ndarray
    feat: np.ndarray
    table: PoolTable
    point_depth: np.ndarray
    point_feat: np.ndarray
    point_start: np.ndarray
    bev: np.ndarray
    """Aligned to 64 bytes, as torch's and ONNX Runtime's memory is."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--log", type=Path, default=SHARED_LOG)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    spec = p075_fusion().detector.inputs
    rig = _rig(NuScenesLog(arguments.log), spec)
    table = rig_pool_table(rig, spec, np.eye(4))
    problem = _problem(spec, table)
    rows = [
        *_forward_rows(problem, arguments.repeats),
        *_session_rows(problem, arguments.repeats),
        *_backward_rows(problem, max(3, arguments.repeats // 3)),
        *_table_rows(rig, spec, arguments.repeats),
    ]
    facts = _facts(problem)
    sys.stdout.write(_text(rows, facts))
    if arguments.json:
        document = {"facts": facts, "rows": [asdict(row) for row in rows]}
        write_text(arguments.json, json.dumps(document, indent=1) + "\n")


def _rig(log: NuScenesLog, spec: InputSpec) -> CameraRig:
    frames = (log.keyframe(token) for token in log.keyframe_tokens())
    frame = next((frame for frame in frames if not frame.missing), None)
    if frame is None:
        raise InputError("log has no keyframe with all sensors, expected one: give another --log")
    return camera_rig(frame, spec)


def _problem(spec: InputSpec, table: PoolTable) -> Problem:
    num_cameras, height, width = len(spec.cameras), spec.feature_height, spec.feature_width
    random = np.random.default_rng(0)
    logits = random.standard_normal((num_cameras, spec.frustum.num_depths, height, width))
    depth = np.exp(logits - logits.max(axis=1, keepdims=True))
    run = np.repeat(np.arange(len(table.runs)), table.runs[:, 2])
    first = np.cumsum(table.runs[:, 2]) - table.runs[:, 2]
    offset = (np.arange(len(run)) - first[run]) * width
    starts = np.append(first, len(run)).astype(np.int32)
    return Problem(
        depth=_aligned(depth / depth.sum(axis=1, keepdims=True)),
        feat=_aligned(random.standard_normal((num_cameras, height, width, CHANNELS), np.float32)),
        table=table,
        point_depth=(table.runs[run, 0] + offset).astype(np.int32),
        point_feat=(table.runs[run, 1] + offset).astype(np.int32),
        point_start=starts[table.cell_start],
        bev=_aligned(np.zeros((spec.camera_grid.num_cells, CHANNELS))),
    )


def _aligned(array: np.ndarray) -> np.ndarray:
    """A copy in fp32 that begins at a cache line, as torch and ONNX Runtime give them."""
    memory = np.zeros(array.size + 16, np.float32)
    start = -memory.ctypes.data // 4 % 16
    copy = memory[start : start + array.size].reshape(array.shape)
    copy[:] = array
    return copy


def _time(name: str, threads: int, repeats: int, call: Callable[[], object], **more: float) -> Row:
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append((time.perf_counter() - start) * 1e3)
    return Row(name, threads, min(times), float(np.median(times)), **more)


def _forward_rows(problem: Problem, repeats: int) -> list[Row]:
    rivals = _rivals()
    library = native.library()
    depth, feat, bev, table = problem.depth, problem.feat, problem.bev, problem.table
    points = _pointers(depth, feat, problem.point_depth, problem.point_feat, problem.point_start)
    size, out = ctypes.c_int32(len(bev)), _pointers(bev)
    source = np.concatenate([depth.reshape(-1), feat.reshape(-1)])
    rows, results = [], {}
    for threads in (1, 2):
        count = ctypes.c_int32(threads)
        sizes = (ctypes.c_int64(source.size), *out, ctypes.c_int64(bev.size), count)
        floor = _time(
            "bytes alone", threads, repeats, lambda s=sizes: rivals.stream(*_pointers(source), *s)
        )
        rows.append(floor)
        if library is not None:
            arguments = (depth, feat, table.runs, table.cell_start, bev, threads)
            call = lambda a=arguments: library.bev_pool_forward(*a)  # noqa: E731
            rows.append(_time("runs (native)", threads, repeats, call, floor_ms=floor.ms))
            results["runs"] = bev.copy()
        call = lambda c=count: rivals.interval_forward(*points, size, c, *out)  # noqa: E731
        rows.append(_time("points (interval)", threads, repeats, call, floor_ms=floor.ms))
        results["points"] = bev.copy()
        torch.set_num_threads(threads)
        for name, form in _torch_forms(problem).items():
            row = _time(name, threads, max(3, repeats // 10), form, floor_ms=floor.ms)
            rows.append(row)
            results[name] = form().numpy()
    for name, result in results.items():
        if not np.allclose(result, results["points"], atol=1e-2 if "cumsum" in name else 1e-4):
            raise RuntimeError(f"{name} gives another result than the interval kernel")
    return rows


def _session_rows(problem: Problem, repeats: int) -> list[Row]:
    """ONNX Runtime with the function body and with the compiled op, outputs bound."""
    feed = {
        "depth": problem.depth,
        "feat": problem.feat,
        "runs": problem.table.runs,
        "cell_start": problem.table.cell_start,
    }
    forms = [("ONNX Runtime, body", None, max(3, repeats // 5))]
    if (path := native.library_path()) is not None:
        forms.append(("ONNX Runtime, op", str(path), repeats))
    rows = []
    for threads in (1, 2):
        for name, library, times in forms:
            session = open_session(model_for(feed), threads, library)
            binding = session.io_binding()
            for key, array in feed.items():
                binding.bind_cpu_input(key, array)
            binding.bind_output("bev")
            call = lambda s=session, b=binding: s.run_with_iobinding(b)  # noqa: E731
            rows.append(_time(name, threads, times, call))
    return rows


def _backward_rows(problem: Problem, repeats: int) -> list[Row]:
    """The compiled backward, and torch's of the plain index_add form."""
    library, table = native.library(), problem.table
    grad_bev = np.ones_like(problem.bev)
    grads = np.empty_like(problem.depth), np.empty_like(problem.feat)
    rows = []
    for threads in (1, 2):
        arguments = (grad_bev, problem.depth, problem.feat, table.runs, table.cell_start, *grads)
        if library is not None:
            call = lambda a=arguments, n=threads: library.bev_pool_backward(*a, n)  # noqa: E731
            rows.append(_time("backward, runs (native)", threads, repeats, call))
        torch.set_num_threads(threads)
        inputs = [torch.from_numpy(x).requires_grad_() for x in (problem.depth, problem.feat)]
        arrays = (problem.point_depth, problem.point_feat)
        point_depth, point_feat = (torch.from_numpy(x).long() for x in arrays)
        cell = torch.repeat_interleave(torch.from_numpy(problem.point_start).diff().long())
        weight = inputs[0].reshape(-1)[point_depth][:, None]
        products = weight * inputs[1].reshape(-1, CHANNELS)[point_feat]
        bev = products.new_zeros(problem.bev.shape).index_add(0, cell, products)
        call = lambda b=bev, i=inputs: torch.autograd.grad(  # noqa: E731
            b, i, torch.from_numpy(grad_bev), retain_graph=True
        )
        rows.append(_time("backward, index_add", threads, 3, call))
    return rows


def _table_rows(rig: CameraRig, spec: InputSpec, repeats: int) -> list[Row]:
    """Building the table of runs: compiled, and in numpy."""

    def build() -> PoolTable:
        return rig_pool_table(rig, spec, np.eye(4))

    rows = []
    if native.library() is not None:
        rows.append(_time("table (native)", 1, repeats, build))
    with mock.patch.object(native, "library", return_value=None):
        rows.append(_time("table (numpy)", 1, max(3, repeats // 5), build))
    return rows


def _rivals() -> ctypes.CDLL:
    """Compile what is compared with, for this very processor."""
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "librivals.so"
        command = ["c++", "-std=c++17", "-O3", "-march=native", "-shared", "-fPIC", "-pthread"]
        try:
            subprocess.run([*command, str(RIVALS), "-o", str(library)], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise InputError(
                f"no rivals to compare with ({error}): the benchmark needs a C++ compiler"
            ) from error
        return ctypes.CDLL(str(library))


def _pointers(*arrays: np.ndarray) -> list[ctypes.c_void_p]:
    return [ctypes.c_void_p(array.ctypes.data) for array in arrays]


def _facts(problem: Problem) -> dict[str, str | int | float]:
    with Path("/proc/cpuinfo").open() as file:
        models = [line.split(":")[1].strip() for line in file if line.startswith("model name")]
    starts = problem.table.cell_start.nbytes
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": os.cpu_count() or 1,
        "load": os.getloadavg()[0],
        "kernels": native.description(),
        "points": len(problem.point_depth),
        "runs": len(problem.table.runs),
        "bytes_of_runs": problem.table.runs.nbytes + starts,
        "bytes_of_points": problem.point_depth.nbytes + problem.point_feat.nbytes + starts,
    }


def _text(rows: list[Row], facts: dict[str, str | int | float]) -> str:
    lines = [
        f"{facts['cpu']}, {facts['cores']} cores, load average {facts['load']:.1f}; "
        f"{facts['kernels']}",
        f"{facts['points']} points in {facts['runs']} runs; the table has "
        f"{facts['bytes_of_runs'] / 1e6:.1f} MB as runs, "
        f"{facts['bytes_of_points'] / 1e6:.1f} MB as points",
        f"{'':26}{'threads':>8}{'ms':>9}{'median':>9}{'of native':>11}{'of floor':>10}",
    ]
    native_ms = {row.threads: row.ms for row in rows if row.name == "runs (native)"}
    for row in rows:
        is_forward = not row.name.startswith(("backward", "table", "bytes"))
        ratio = row.ms / native_ms[row.threads] if is_forward and native_ms else None
        floor = row.ms / row.floor_ms if row.floor_ms else None
        texts = [f"{x:{width}.2f}" if x else " " * width for x, width in ((ratio, 11), (floor, 10))]
        lines.append(
            f"{row.name:26}{row.threads:8}{row.ms:9.2f}{row.median_ms:9.2f}{''.join(texts)}"
        )
    return "\n".join(lines) + "\n"


def _torch_forms(problem: Problem) -> dict[str, Callable[[], torch.Tensor]]:
    """What the field does in PyTorch."""
    depth, feat = torch.from_numpy(problem.depth).reshape(-1), torch.from_numpy(problem.feat)
    pixels = feat.reshape(-1, CHANNELS)
    point_depth, point_feat, start = (
        torch.from_numpy(x).long()
        for x in (problem.point_depth, problem.point_feat, problem.point_start)
    )
    cell = torch.repeat_interleave(start.diff())
    num_cells = len(start) - 1
    last = cell.diff(append=cell.new_tensor([num_cells])) != 0

    def bag() -> torch.Tensor:
        return torch.nn.functional.embedding_bag(
            point_feat, pixels, start, mode="sum", per_sample_weights=depth[point_depth],
            include_last_offset=True,
        )  # fmt: skip

    def index_add() -> torch.Tensor:
        products = depth[point_depth][:, None] * pixels[point_feat]
        return pixels.new_zeros(num_cells, CHANNELS).index_add_(0, cell, products)

    def cumsum() -> torch.Tensor:
        sums = (depth[point_depth][:, None] * pixels[point_feat]).cumsum(0)[last]
        sums[1:] -= sums[:-1].clone()
        bev = pixels.new_zeros(num_cells, CHANNELS)
        bev[cell[last]] = sums
        return bev

    return {"embedding_bag": bag, "index_add": index_add, "cumsum trick": cumsum}


if __name__ == "__main__":
    run_command(main)
