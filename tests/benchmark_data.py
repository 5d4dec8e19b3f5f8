"""Time of a training sample by stage, and simplejpeg against OpenCV.

    python tests/benchmark_data.py --log ROOT [--recipe tiny_fusion] [--samples 40]

CPU time of one thread (what else the machine does counts little), files in the page cache; the
parts are measured one by one on the same keyframes as the whole sample, which has the spec's
augmentation and depth targets. A log for it:

    python -m perception.synthetic ROOT --preset tiny
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg
import torch

from perception.data.augment import BevAugmentConfig, ImageAugmentConfig, draw_augmentation
from perception.data.map_layers import MapLayers
from perception.data.nuscenes_dataset import (
    NuScenesDataset,
    Sample,
    SampleConfig,
    SampleKey,
    training_boxes,
)
from perception.data.nuscenes_log import NuScenesLog
from perception.data.targets import box_targets
from perception.errors import InputError, run_command
from perception.geometry import pillars
from perception.model_inputs import camera_rig, rig_depth_images, rig_pool_table
from perception.models.depth_supervision import depth_bins
from perception.taxonomy import CAMERAS, DETECTION_CLASSES, LIDAR
from perception.usable_data import frame_points
from runtime.latency import LatencyRecorder
from training.recipes import recipe_by_name

SAMPLING = SampleConfig(
    image_augment=ImageAugmentConfig(),
    bev_augment=BevAugmentConfig(),
    depth_targets=True,
    skip_damaged=False,
)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--recipe", default="tiny_fusion")
    parser.add_argument("--samples", type=int, default=40)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    log = NuScenesLog(options.log)
    detector = recipe_by_name(options.recipe).detector
    dataset = NuScenesDataset(log, log.keyframe_tokens(), detector, SAMPLING, seed=0)
    if len(dataset) == 0:
        raise InputError(f"{log.root} has no keyframe: choose another log.")
    recorder = LatencyRecorder()
    for draw in range(options.samples + 2):
        fresh = LatencyRecorder() if draw < 2 else recorder  # caches fill up
        key = SampleKey(draw % len(dataset), draw)
        sample = timed(fresh, "whole sample", lambda key=key: dataset[key])
        if isinstance(sample, Sample):
            timed(fresh, "batch of 2", lambda sample=sample: dataset.collate([sample, sample]))
            measure_stages(fresh, dataset, detector, key)
    median = {name: summary.p50_ms for name, summary in recorder.summaries().items()}
    ratio = median["  OpenCV"] / median["  simplejpeg"]
    sys.stdout.write(
        f"{recorder.table()}\n{1e3 / median['whole sample']:.1f} samples a CPU second; "
        f"OpenCV's decoder takes {ratio:.2f} times simplejpeg's time\n"
    )


def timed(recorder: LatencyRecorder, stage: str, part: Callable[[], Any]) -> Any:
    """Run a part, take its time, give its result."""
    start = time.process_time()
    result = part()
    recorder.add(stage, (time.process_time() - start) * 1e3)
    return result


def measure_stages(
    recorder: LatencyRecorder, dataset: NuScenesDataset, detector: Any, key: SampleKey
) -> None:
    """The parts of one sample."""
    log, spec, token = dataset.log, dataset.spec, dataset.tokens[key.index]
    num_sweeps = spec.pillars.num_sweeps

    def read(*sensors: str) -> Any:
        return log.read_keyframe(token, num_sweeps, sensors).frame

    timed(recorder, "read points", lambda: read(LIDAR))
    timed(recorder, "read images", lambda: read(*CAMERAS))
    frame = read(*CAMERAS, LIDAR)
    encoded = [simplejpeg.encode_jpeg(image.rgb, quality=90) for image in frame.images.values()]
    timed(recorder, "  simplejpeg", lambda: [simplejpeg.decode_jpeg(data) for data in encoded])
    timed(recorder, "  OpenCV", lambda: [opencv_decode(data) for data in encoded])
    rng = np.random.default_rng([0, key.draw])
    change = draw_augmentation(rng, SAMPLING.image_augment, SAMPLING.bev_augment, spec)
    images = frame.images.items()
    timed(recorder, "warp", lambda: [change.cut(name, image.rgb) for name, image in images])
    timed(recorder, "  plain cut", lambda: [spec.image.apply(image.rgb) for _, image in images])
    points = timed(recorder, "points", lambda: frame_points(frame, spec))
    timed(recorder, "pillars", lambda: pillars.build_pillars(points, spec.pillars))
    rig = camera_rig(frame, spec, change)
    timed(recorder, "pool table", lambda: rig_pool_table(rig, spec, change.T_ego_aug_ego))
    depth = timed(recorder, "depth image", lambda: rig_depth_images(points, rig, spec))
    timed(recorder, "depth bins", lambda: depth_bins(depth, spec.frustum))
    annotations = timed(recorder, "annotations", lambda: log.annotations(token))
    boxes_ego, labels = training_boxes(annotations, frame)
    timed(
        recorder,
        "box targets",
        lambda: box_targets(boxes_ego, labels, len(DETECTION_CLASSES), spec.bev),
    )
    layers: MapLayers = dataset.map_layers
    timed(
        recorder,
        "raster",
        lambda: layers.at(log.scene_of(token), frame.T_global_ego, change.T_ego_aug_ego),
    )


def opencv_decode(data: bytes) -> np.ndarray:
    """Decode to RGB, as simplejpeg does."""
    bgr = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)


if __name__ == "__main__":
    run_command(main)
