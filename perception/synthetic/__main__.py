"""Make a synthetic driving log in nuScenes' format: `python -m perception.synthetic OUT`."""

import argparse
import dataclasses
import os
import sys
import time
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from perception.errors import InputError, run_command
from perception.synthetic.generator import VERSION, Generated, generate_log
from perception.synthetic.log_plan import PRESETS, LogConfig


def main() -> None:
    """Read the command line, make the log, say what was made."""
    arguments = _parser().parse_args()
    config = _config(arguments)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    started = time.perf_counter()
    with Progress(*columns) as progress:
        bars = {name: progress.add_task(name, total=None) for name in ("maps", "keyframes")}
        generated = generate_log(
            arguments.out,
            config,
            workers=arguments.workers,
            overwrite=arguments.overwrite,
            on_progress=lambda stage, done, total: progress.update(
                bars[stage], completed=done, total=total
            ),
        )
    sys.stdout.write(_summary(generated, time.perf_counter() - started))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m perception.synthetic",
        description="Make a synthetic driving log in nuScenes' format. "
        "The same arguments give the same bytes, whatever the number of workers.",
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to make")
    parser.add_argument("--preset", choices=PRESETS, default="small", help="default: small")
    parser.add_argument("--scenes", type=int, metavar="N", help="number of scenes (default: 10)")
    parser.add_argument("--keyframes", type=int, metavar="N", help="keyframes per scene, at 2 Hz")
    parser.add_argument(
        "--sweeps", type=int, metavar="N", help="LiDAR sweeps per keyframe, 1 to 10 (20 Hz)"
    )
    parser.add_argument("--image-size", metavar="WxH", help="such as 704x396; 16:9 as nuScenes")
    parser.add_argument(
        "--camera-sweeps", action="store_true", help="images at 12 Hz, not at keyframes only"
    )
    parser.add_argument(
        "--pixel-labels",
        action="store_true",
        help="depth, instances, classes and drivable area per pixel as well",
    )
    parser.add_argument("--seed", type=int, default=0, help="another seed is another world")
    parser.add_argument("--backend", choices=("numpy", "numba"), default="numpy", help="ray caster")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="processes (default: all cores)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a synthetic log")
    return parser


def _config(arguments: argparse.Namespace) -> LogConfig:
    given = {
        "num_scenes": arguments.scenes,
        "num_keyframes": arguments.keyframes,
        "sweeps_per_keyframe": arguments.sweeps,
        "camera_sweeps": arguments.camera_sweeps,
        "pixel_labels": arguments.pixel_labels,
        "seed": arguments.seed,
        "backend": arguments.backend,
    }
    if arguments.image_size is not None:
        size = parse_image_size(arguments.image_size)
        given |= {"image_width_px": size[0], "image_height_px": size[1]}
    changes = {name: value for name, value in given.items() if value is not None}
    return dataclasses.replace(PRESETS[arguments.preset], **changes)


def parse_image_size(text: str) -> tuple[int, int]:
    """Width and height from "704x396".

    Raises:
        InputError: The text has another form.
    """
    width, _, height = text.lower().partition("x")
    if not (width.isdigit() and height.isdigit()):
        raise InputError(f"The image size is {text!r}, expected WIDTHxHEIGHT such as 704x396.")
    return int(width), int(height)


def _summary(generated: Generated, seconds: float) -> str:
    files = [path for path in generated.root.rglob("*") if path.is_file()]
    megabytes = sum(path.stat().st_size for path in files) / 1e6
    return (
        f"{generated.num_keyframes} keyframes, {len(files)} files, {megabytes:.0f} MB in "
        f"{seconds:.0f} s: {generated.root}\n"
        f"load it with NuScenes('{VERSION}', '{generated.root}')\n"
    )


if __name__ == "__main__":
    run_command(main)
