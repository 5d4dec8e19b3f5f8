"""One page on what `make demo` did: `python demo_page.py runs/demo`.

Reads the reports that evaluation, export, replay and the ROS 2 node left; computes nothing itself.
"""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from perception import atomic_file
from perception.errors import InputError, run_command

PAGE_FILE = "page.txt"
ROS_RESULT = re.compile(r"^\d+  .*  from (?P<sensors>.*?)(?:  without .*)?$")
"""A line of `result_printer`."""


def page(folder: Path) -> str:
    """Put the reports of a demo's folder together.

    Raises:
        InputError: A report is missing or has another form.
    """
    evaluation = _report(folder / "run" / "evaluation" / "evaluation.json")
    parity = _report(folder / "bundle" / "parity.json")
    replay = _report(folder / "replay" / "replay.json")
    environment = _report(folder / "run" / "environment.json")
    pictures = sorted((folder / "run" / "evaluation").glob("keyframe_*.png"))
    try:
        return "\n".join(
            [
                f"bev-perception {environment['commit']}, {environment['date_utc']}, "
                f"{environment['cpu_count']} x {environment['processor']}",
                f"synthetic data only: trained on {len(environment['keyframes'])} keyframes, "
                f"scored on {evaluation['num_keyframes']} of scenes it has not seen",
                "",
                *_accuracy(evaluation),
                "",
                *_parity(parity),
                "",
                *_latency(replay),
                "",
                _ros(folder / "ros2.txt"),
                "",
                "pictures (six cameras with boxes; found and true, from above):",
                *(f"  {path}" for path in pictures),
                "",
            ]
        )
    except (KeyError, TypeError) as error:
        raise InputError(
            f"A report in {folder} lacks {error}, it is from another version: run make demo again."
        ) from error


def _accuracy(report: dict[str, Any]) -> list[str]:
    found = report["detection"]
    layers = ", ".join(f"{name} {value:.2f}" for name, value in report["map_iou"].items())
    classes = ", ".join(f"{name} {value:.2f}" for name, value in found["ap"].items())
    return [
        f"boxes     mAP {found['mean_ap']:.3f}, NDS {found['nds']:.3f} "
        f"(devkit's evaluation, {report['split']})",
        f"          {classes}",
        f"map       mIoU {report['map_mean_iou']:.3f}",
        f"          {layers}",
    ]


def _parity(report: dict[str, Any]) -> list[str]:
    worst = max(report["rows"], key=lambda row: row["max_error"] / row["bound"])
    return [
        f"export    {report['num_matched']} of {report['num_boxes']} boxes of torch found again in "
        f"{report['num_frames']} frames by ONNX Runtime, {report['num_ties']} ties left out",
        f"          worst output: {worst['output']}, off by {worst['max_error']:.0e}, allowed "
        f"{worst['bound']:.0e}",
    ]


def _latency(report: dict[str, Any]) -> list[str]:
    rows = [
        f"  {stage:<22}{s['p50_ms']:>9.1f}{s['p95_ms']:>9.1f}{s['max_ms']:>9.1f}"
        for stage, s in report["latency"].items()
    ]
    return [
        f"latency   {report['frames_out']} frames of a drive with its true timing, "
        f"{sum(report['frames_dropped'].values())} overtaken by a newer one",
        f"  {'stage [ms]':<22}{'p50':>9}{'p95':>9}{'max':>9}",
        *rows,
        f"  {report['latency_meaning']}; {report['engine']}",
    ]


def _ros(path: Path) -> str:
    results = [found for line in _text(path).splitlines() if (found := ROS_RESULT.match(line))]
    whole = sum(len(found["sensors"].split()) == 7 for found in results)
    return f"ROS 2     {len(results)} results published, {whole} of them from 6 cameras + LiDAR"


def _report(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(_text(path)))
    except ValueError as error:
        raise InputError(f"{path} is no JSON ({error}): run make demo again.") from error


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError as error:
        raise InputError(
            f"Cannot read {path}: {error.strerror}; run make demo, which makes it."
        ) from error


def main() -> None:
    """Print the page and keep it beside the reports."""
    parser = argparse.ArgumentParser(prog="demo_page.py", description=__doc__)
    parser.add_argument("folder", type=Path, help="folder of the demo, such as runs/demo")
    folder = parser.parse_args().folder
    text = page(folder)
    atomic_file.write_text(folder / PAGE_FILE, text)
    sys.stdout.write("\n" + text)


if __name__ == "__main__":
    run_command(main)
