"""Time of the BEV pool's CUDA kernel and of two older algorithms, at the standard configuration.

    python tests/benchmark_bev_pool_cuda.py [--log ROOT] [--repeats 100] [--json FILE]

Six cameras, 32 x 88 pixels, 118 depth bins, 80 channels, 360 x 360 cells, real calibration; needs a
GPU and nvcc. The L2 cache is flushed before every launch. All rows come from one run. `bytes alone`
is what must move (depth, features and table read, result written once) at the bandwidth of a copy
measured beside it; `nothing` is the time between two events with nothing between them, which is in
every other row, too.
"""

import argparse
import ctypes
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
from cuda_pool import CudaPool, build_with_nvcc

from perception.atomic_file import write_text
from perception.data.nuscenes_log import NuScenesLog
from perception.errors import InputError, run_command
from perception.geometry.pool_table import PoolTable
from perception.input_spec import InputSpec
from perception.model_inputs import camera_rig, rig_pool_table
from training.recipes import p075_fusion

RIVALS = Path(__file__).with_name("bev_pool_rivals.cu")
CHANNELS = 80
FLUSH_BYTES = 512 << 20
"""More than any card's L2. Source: ours."""
SHARED_LOG = Path(__file__).resolve().parents[2] / "shared" / "data" / "nuscenes_real"


class Problem:
    """Tensors of the standard configuration on the GPU, in one precision."""

    def __init__(self, spec: InputSpec, table: PoolTable, dtype: torch.dtype) -> None:
        height, width = spec.feature_height, spec.feature_width
        shape = (len(spec.cameras), spec.frustum.num_depths, height, width)
        generator = torch.Generator("cuda").manual_seed(0)
        logits = torch.randn(shape, generator=generator, device="cuda")
        feat = torch.randn((shape[0], height, width, CHANNELS), generator=generator, device="cuda")
        self.depth, self.feat = logits.softmax(1).to(dtype), feat.to(dtype)
        self.runs = torch.from_numpy(table.runs).cuda()
        self.cell_start = torch.from_numpy(table.cell_start).cuda()
        self.cells, self.width, self.grid_width = (
            len(table.cell_start) - 1,
            width,
            spec.camera_grid.nx,
        )
        run = np.repeat(np.arange(len(table.runs)), table.runs[:, 2])
        first = np.cumsum(table.runs[:, 2]) - table.runs[:, 2]
        offset = (np.arange(len(run)) - first[run]) * width
        point_starts = np.append(first, len(run)).astype(np.int32)[table.cell_start]
        self.point_depth = torch.from_numpy((table.runs[run, 0] + offset).astype(np.int32)).cuda()
        self.point_feat = torch.from_numpy((table.runs[run, 1] + offset).astype(np.int32)).cuda()
        self.point_start = torch.from_numpy(point_starts).cuda()
        self.bev = feat.new_empty((self.cells, CHANNELS), dtype=dtype)

    @property
    def num_bytes(self) -> int:
        """What must move: the depths that count, features, table and result."""
        depth = len(self.point_depth) * self.depth.element_size()
        rest = (self.feat, self.runs, self.cell_start, self.bev)
        return depth + sum(tensor.nbytes for tensor in rest)

    def exact(self) -> torch.Tensor:
        """The pool in float64."""
        cell = torch.repeat_interleave(self.point_start.diff().long())
        bev = torch.zeros(self.cells, CHANNELS, dtype=torch.float64, device="cuda")
        weight, pixels = self.depth.double().reshape(-1), self.feat.double().flatten(0, 2)
        for part in torch.arange(len(cell), device="cuda").split(1 << 18):
            product = (
                weight[self.point_depth[part].long(), None] * pixels[self.point_feat[part].long()]
            )
            bev.index_add_(0, cell[part], product)
        return bev


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--log", type=Path, default=SHARED_LOG)
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise InputError("this machine has no CUDA device that torch can use, expected one")
    with tempfile.TemporaryDirectory() as folder:
        kernel, rivals = Path(folder) / "libpool.so", Path(folder) / "librivals.so"
        build_with_nvcc(kernel, "-arch=native")
        build_with_nvcc(rivals, "-arch=native", source=RIVALS)
        pool, rival = CudaPool(kernel), ctypes.CDLL(str(rivals)).pool_rival
    rival.argtypes = [ctypes.c_int, *[ctypes.c_void_p] * 7, ctypes.c_int64]
    rival.argtypes += [ctypes.c_int, ctypes.c_int, ctypes.c_void_p]
    spec = p075_fusion().detector.inputs
    log = NuScenesLog(arguments.log)
    frames = (log.keyframe(token) for token in log.keyframe_tokens())
    frame = next((frame for frame in frames if not frame.missing), None)
    if frame is None:
        raise InputError("log has no keyframe with all sensors, expected one: give another --log")
    table = rig_pool_table(camera_rig(frame, spec), spec, np.eye(4))
    rows = []
    for dtype in (torch.float32, torch.float16):
        rows += measure(Problem(spec, table, dtype), pool, rival, arguments.repeats)
    facts = {"device": torch.cuda.get_device_name(), "bytes_per_s": copy_bandwidth()}
    sys.stdout.write(text(rows, facts))
    if arguments.json:
        write_text(arguments.json, json.dumps({"facts": facts, "rows": rows}, indent=1) + "\n")


def measure(problem: Problem, pool: CudaPool, rival: Callable, repeats: int) -> list[dict]:
    """Rows of one precision."""
    stream = torch.cuda.current_stream().cuda_stream
    inputs = (problem.depth, problem.feat, problem.runs, problem.cell_start, problem.bev)
    pointers = [tensor.data_ptr() for tensor in inputs]
    dtype, half = problem.bev.dtype, int(problem.bev.dtype is torch.float16)
    products = problem.bev.new_empty(len(problem.point_depth) * CHANNELS)
    lists = (
        problem.depth,
        problem.feat,
        problem.point_depth,
        problem.point_feat,
        problem.point_start,
    )

    def runs(grid_width: int) -> int:
        sizes = (problem.cells, problem.width, CHANNELS, grid_width)
        return pool.launch(dtype, pointers, sizes, stream)

    def points(room: int | None) -> int:
        given = [tensor.data_ptr() for tensor in lists]
        sizes = (len(problem.point_depth), problem.cells, CHANNELS)
        return rival(half, *given, room, problem.bev.data_ptr(), *sizes, stream)

    calls: dict[str, Callable[[], int]] = {
        "nothing": lambda: 0,
        "runs, in tiles": lambda: runs(problem.grid_width),
        "runs, grid width not known": lambda: runs(0),
        "points (v2)": lambda: points(None),
        "products (v1)": lambda: points(products.data_ptr()),
    }
    exact, rows = problem.exact(), []
    floor_us = problem.num_bytes / copy_bandwidth() * 1e6
    for name, call in calls.items():
        problem.bev.fill_(torch.nan)
        times = time_us(call, repeats)
        error = None if name == "nothing" else float((problem.bev.double() - exact).abs().max())
        rows.append(
            {
                "precision": str(dtype).removeprefix("torch."),
                "name": name,
                "median_us": median(times),
                "least_us": min(times),
                "floor_us": floor_us,
                "largest_error": error,
            }
        )
    return rows


def time_us(call: Callable[[], int], repeats: int) -> list[float]:
    """Times of a call by GPU events, with a flushed L2; ten calls before them do not count."""
    flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda")
    times = []
    for _ in range(repeats + 10):
        flush.zero_()  # long enough for the events and the launch to be queued behind it
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        code = call()
        end.record()
        torch.cuda.synchronize()
        if code != 0:
            raise RuntimeError(f"the launch returned CUDA error {code}")
        times.append(start.elapsed_time(end) * 1e3)
    return times[10:]


def copy_bandwidth() -> float:
    """Bytes per second of a copy, read and written."""
    source = torch.zeros(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)

    def copy() -> int:
        target.copy_(source)
        return 0

    return 2 * source.nbytes / (min(time_us(copy, 20)) * 1e-6)


def text(rows: list[dict], facts: dict) -> str:
    """The table."""
    lines = [f"{facts['device']}, copy {facts['bytes_per_s'] / 1e12:.2f} TB/s"]
    lines.append(
        f"{'':38s}{'median us':>10s}{'least us':>10s}{'floor us':>10s}{'x floor':>9s}  error"
    )
    for row in rows:
        error = "" if row["largest_error"] is None else f"{row['largest_error']:.1e}"
        lines.append(
            f"{row['precision']:9s}{row['name']:29s}{row['median_us']:10.1f}{row['least_us']:10.1f}"
            f"{row['floor_us']:10.1f}{row['median_us'] / row['floor_us']:9.2f}  {error}"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    run_command(main)
