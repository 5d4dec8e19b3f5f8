"""Counts of a log beside those of the real mini set: `python tests/synthetic_statistics.py LOG`."""

import argparse
import sys
from collections import Counter
from pathlib import Path

from nuscenes import NuScenes

from perception.errors import run_command
from perception.taxonomy import DETECTION_CLASS_OF_CATEGORY, DETECTION_CLASSES

REAL_SCENES, REAL_KEYFRAMES, REAL_INSTANCES = 10, 404, 911
REAL_ANNOTATIONS = {
    "human.pedestrian.adult": 4765,
    "human.pedestrian.child": 46,
    "human.pedestrian.construction_worker": 193,
    "human.pedestrian.personal_mobility": 25,
    "human.pedestrian.police_officer": 11,
    "movable_object.barrier": 2323,
    "movable_object.debris": 13,
    "movable_object.pushable_pullable": 82,
    "movable_object.trafficcone": 1378,
    "static_object.bicycle_rack": 54,
    "vehicle.bicycle": 243,
    "vehicle.bus.bendy": 57,
    "vehicle.bus.rigid": 353,
    "vehicle.car": 7619,
    "vehicle.construction": 196,
    "vehicle.motorcycle": 471,
    "vehicle.trailer": 60,
    "vehicle.truck": 649,
}
"""v1.0-mini, 18,538 in all. Source: `list_categories` as the public devkit tutorial prints it."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="synthetic_statistics.py", description=__doc__)
    parser.add_argument("log", type=Path)
    nusc = NuScenes("v1.0-mini", str(parser.parse_args().log), verbose=False)
    found = Counter(annotation["category_name"] for annotation in nusc.sample_annotation)
    hit = sum(annotation["num_lidar_pts"] > 0 for annotation in nusc.sample_annotation)
    scenes, keyframes = len(nusc.scene), len(nusc.sample)
    rows: list[tuple[str, float, float | None]] = [
        ("keyframes per scene", keyframes / scenes, REAL_KEYFRAMES / REAL_SCENES),
        ("instances per scene", len(nusc.instance) / scenes, REAL_INSTANCES / REAL_SCENES),
        (
            "annotations per keyframe",
            found.total() / keyframes,
            sum(REAL_ANNOTATIONS.values()) / REAL_KEYFRAMES,
        ),
        ("  with LiDAR points", hit / keyframes, None),
    ]
    for name in DETECTION_CLASSES:
        categories = [c for c, of in DETECTION_CLASS_OF_CATEGORY.items() if of == name]
        here = sum(found[c] for c in categories) / keyframes
        real = sum(REAL_ANNOTATIONS.get(c, 0) for c in categories) / REAL_KEYFRAMES
        rows.append((f"  {name}", here, real))
    sys.stdout.write(f"{nusc.dataroot}: {scenes} scenes\n{'':<28}{'here':>10}{'real mini':>12}\n")
    for name, here, real in rows:
        beside = f"{real:>12.2f}" if real is not None else f"{'?':>12}"
        sys.stdout.write(f"{name:<28}{here:>10.2f}{beside}\n")


if __name__ == "__main__":
    run_command(main)
