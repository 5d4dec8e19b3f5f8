"""The command line of `runtime/replay.py`."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from perception.errors import InputError
from runtime.engines.onnx_engine import BevPoolForm
from runtime.engines.selection import EngineKind
from runtime.replay_faults import SCRIPT_FORM
from runtime.synchronizer import SynchronizerConfig

ONLY_FOR = {"--log": ("version",), "--bag": ("topic", "calibration", "base_frame")}
"""Options that one kind of recording has and the other has not."""


def parse(arguments: Sequence[str] | None, description: str) -> argparse.Namespace:
    """Read the command line.

    Raises:
        InputError: An option has nothing to act on.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("bundle", type=Path, nargs="?", help="folder made by export/to_onnx.py")
    _add_model(parser.add_argument_group("model"))
    _add_recording(parser.add_argument_group("recording"))
    _add_faults(parser.add_argument_group("faults, the same ones for the same seed"))
    _add_results(parser.add_argument_group("results"))
    options = parser.parse_args(arguments)
    _refuse_ignored(options)
    return options


def _refuse_ignored(options: argparse.Namespace) -> None:
    """Options that nothing would come of."""
    kind, other = ("--bag", "--log") if options.log is None else ("--log", "--bag")
    for name in ONLY_FOR[other]:
        if getattr(options, name) is not None:
            option = f"--{name.replace('_', '-')}"
            raise InputError(f"{option} is for {other}, got it with {kind}: leave it out.")
    if options.accept and options.golden is None:
        raise InputError("--accept is given without a file: add --golden FILE.")


def _add_model(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--camera-bundle", type=Path, metavar="BUNDLE", help="computes frames without LiDAR"
    )
    group.add_argument(
        "--lidar-bundle", type=Path, metavar="BUNDLE", help="computes frames without cameras"
    )
    group.add_argument("--score-threshold", type=float, default=0.1, help="0..1, default 0.1")
    group.add_argument("--engine", choices=get_args(EngineKind), default="onnx")
    group.add_argument("--threads", type=int, default=0, metavar="N", help="0: one per core")
    group.add_argument(
        "--bev-pool",
        choices=get_args(BevPoolForm),
        default="auto",
        help="in ONNX Runtime: compiled kernel, the model file's own function, or what there is",
    )


def _add_recording(group: argparse._ArgumentGroup) -> None:
    what = group.add_mutually_exclusive_group(required=True)
    what.add_argument("--log", type=Path, metavar="ROOT", help="nuScenes folder")
    what.add_argument("--bag", type=Path, metavar="PATH", help="rosbag2 folder, .mcap or .db3")
    group.add_argument(
        "--version", help="folder of the tables, e.g. v1.0-mini; default: the only one"
    )
    group.add_argument(
        "--scene", nargs="+", action="extend", metavar="NAME", help="scenes; default: all"
    )
    group.add_argument(
        "--topic",
        nargs="+",
        action="extend",
        metavar="SENSOR=TOPIC",
        help="of the bag: CAM_..., CAM_....info, LIDAR_TOP, odometry; default: the node's "
        "image{i}, camera_info{i}, pointcloud, odometry in any namespace",
    )
    group.add_argument(
        "--calibration", type=Path, metavar="FILE", help="the bag's rig, see --write-calibration"
    )
    group.add_argument("--base-frame", help="child frame of the bag's odometry, default base_link")
    group.add_argument(
        "--speed", type=float, default=1.0, help="1: as recorded; 0: every frame, virtual clock"
    )
    group.add_argument(
        "--period", type=float, default=100.0, metavar="MS", help="between frames, default 100"
    )
    group.add_argument(
        "--frozen-after",
        type=int,
        default=SynchronizerConfig.frozen_after,
        metavar="N",
        help="a sensor is not used that sends the same content N times in a row, default "
        "%(default)s; 0: it is, for simulators without noise",
    )


def _add_faults(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--fault", nargs="+", action="extend", default=[], metavar="SCRIPT", help=SCRIPT_FORM
    )
    group.add_argument("--jitter", type=float, default=0.0, metavar="MS", help="of delivery")
    group.add_argument("--loss", type=float, default=0.0, metavar="P", help="of messages, 0..1")
    group.add_argument(
        "--bursts", type=float, default=0.0, metavar="N", help="stalls of the machine per minute"
    )
    group.add_argument("--seed", type=int, default=0)


def _add_results(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--out", type=Path, metavar="DIR", help="report (JSON, Markdown, picture) and detections"
    )
    group.add_argument(
        "--golden", type=Path, metavar="FILE", help="accepted detections; exit code 1 if others"
    )
    group.add_argument("--accept", action="store_true", help="write --golden FILE anew")
    group.add_argument(
        "--budget", type=Path, metavar="FILE", help="limits of time and drops; exit code 1 if over"
    )
    group.add_argument("--mcap", type=Path, metavar="FILE", help="one scene for Foxglove")
    group.add_argument("--video", type=Path, metavar="FILE", help=".mp4, or a folder for PNG")
    group.add_argument("--verbose", action="store_true", help="one line per frame")
    group.add_argument(
        "--write-calibration", type=Path, metavar="FILE", help="write the scene's rig and stop"
    )
