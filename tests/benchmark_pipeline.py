"""Time of the car's pipeline by stage, on a full-size frame.

    python tests/benchmark_pipeline.py BUNDLE --log ROOT [--frames 50]

Six 1600x900 images and ten sweeps of a real keyframe. The log's samples have one sweep, so the
older nine are made from it: as a car at 10 m/s would have seen them, with 5 cm of noise. Parts of
"preprocess" run in two threads beside each other; "1 thread" is the work of a part alone, in
processor time, which other programs on the computer do not lengthen much.
"""

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from perception.bundle import load_bundle
from perception.data.nuscenes_log import NuScenesLog
from perception.errors import InputError, run_command
from perception.geometry import rigid
from perception.geometry.pillars import build_pillars
from perception.input_spec import InputSpec
from perception.messages import LidarSweep, SensorFrame
from perception.model_inputs import camera_rig, prepare_frame, rig_depth_images, rig_pool_table
from perception.usable_data import frame_points
from runtime.latency import LatencyRecorder
from runtime.pipeline import Pipeline

NUM_SWEEPS = 10
SWEEP_PERIOD_NS = 50_000_000
SPEED = 10.0
EGO_RADIUS = 1.0


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--frames", type=int, default=50)
    arguments = parser.parse_args()
    frame = full_size_frame(NuScenesLog(arguments.log))
    bundle = load_bundle(arguments.bundle)
    spec = bundle.card.inputs
    pipeline = Pipeline(bundle)
    pipeline.warm_up()
    pipeline.process(frame)
    recorder = LatencyRecorder()
    for _ in range(arguments.frames):
        stage_ms = pipeline.process(frame).stage_ms
        recorder.add_all(stage_ms)
        recorder.add("all but the engine", stage_ms["preprocess"] + stage_ms["postprocess"])
        for name, part in parts_of(frame, spec).items():
            start = time.thread_time()
            part()
            recorder.add(f"1 thread: {name}", (time.thread_time() - start) * 1e3)
    prepared = prepare_frame(frame, spec)
    num_points = sum(sweep.points_lidar.shape[1] for sweep in frame.sweeps)
    sys.stdout.write(
        f"{len(frame.images)} images, {num_points} points, {len(prepared.inputs.pillar_cell)} "
        f"pillars, {len(prepared.inputs.pool_runs)} runs of frustum points, depth images: "
        f"{spec.depth_image}\n{recorder.table()}"
    )
    pipeline.close()


def parts_of(frame: SensorFrame, spec: InputSpec) -> dict[str, Callable[[], object]]:
    """The parts of the preparation, each to be called alone."""
    rig = camera_rig(frame, spec)
    points_ego = frame_points(frame, spec)
    bgr = [image.rgb[..., ::-1].copy()[..., ::-1] for image in frame.images.values()]
    return {
        "images": lambda: [spec.image.apply(image.rgb) for image in frame.images.values()],
        "images from bgr8": lambda: [spec.image.apply(rgb) for rgb in bgr],
        "pool table": lambda: rig_pool_table(rig, spec, np.eye(4)),
        "accumulate": lambda: frame_points(frame, spec),
        "pillars": lambda: build_pillars(points_ego, spec.pillars),
        "depth images": lambda: rig_depth_images(points_ego, rig, spec),
        "all inputs": lambda: prepare_frame(frame, spec),
    }


def full_size_frame(log: NuScenesLog) -> SensorFrame:
    """The log's first complete keyframe with ten sweeps."""
    for token in log.keyframe_tokens():
        frame = log.keyframe(token)
        if not frame.missing and frame.T_global_ego is not None:
            break
    else:
        raise InputError(f"{log.root} has no complete keyframe: choose another log.")
    random = np.random.default_rng(0)
    newest = frame.sweeps[0]
    sweeps = [newest]
    for age in range(1, NUM_SWEEPS):
        # where the car was, and the same world seen from there
        T_now_then = np.eye(4)
        T_now_then[0, 3] = -SPEED * age * SWEEP_PERIOD_NS * 1e-9
        T_lidar_now = rigid.inverse(frame.calibration.T_ego_lidar)
        T_then_now = T_lidar_now @ rigid.inverse(T_now_then) @ frame.calibration.T_ego_lidar
        xyz = rigid.apply(T_then_now, newest.points_lidar[:3].T.astype(np.float64)).T
        points_lidar = newest.points_lidar.copy()
        is_world = ~(np.abs(newest.points_lidar[:2]) < EGO_RADIUS).all(
            axis=0
        )  # else the car itself
        points_lidar[:3, is_world] = (xyz + random.normal(0.0, 0.05, xyz.shape))[:, is_world]
        sweeps.append(
            LidarSweep(
                stamp_ns=newest.stamp_ns - age * SWEEP_PERIOD_NS,
                points_lidar=points_lidar,
                T_global_ego=frame.T_global_ego @ T_now_then,
            )
        )
    return dataclasses.replace(frame, sweeps=tuple(sweeps))


if __name__ == "__main__":
    run_command(main)
