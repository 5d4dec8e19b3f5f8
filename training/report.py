"""A run on one page: `python training/report.py RUN` writes RUN/report.html.

One file that needs nothing else: pictures are inside, there are no scripts, nothing is loaded.
"""

import argparse
import json
import math
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from perception import atomic_file
from perception.errors import InputError, run_command
from training.curves import (
    EVENT_COLORS,
    calibration_curves,
    calibration_names,
    loss_curves,
    loss_names,
    smoothed,
    smoothing_window,
    step_curves,
    step_times,
)
from training.html_page import (
    escaped,
    facts,
    folded,
    label,
    note,
    picture,
    section,
    subsection,
    table,
    tiles,
    whole,
)
from training.run_folder import CONFIG_FILE, ENVIRONMENT_FILE
from training.run_log import read_events, read_metrics

PAGE_FILE = "report.html"
EVALUATION_FOLDER = "evaluation"
EVALUATION_FILE = "evaluation.json"
MAX_PICTURES = 12
"""Pictures of the evaluation that go onto the page. Source: ours."""
PICTURE_WIDTH_PX = 1600
JPEG_QUALITY = 85
MAX_EVENTS = 200
"""Events that are listed; all are counted, and events.jsonl has them. Source: ours."""

Lines = list[dict[str, Any]]
"""Lines of metrics.jsonl or events.jsonl."""


def write_report(run: Path) -> Path:
    """Write the page of a run, whatever of it is there already.

    Args:
        run: Run folder: metrics.jsonl, and where they are there events.jsonl, config.json,
            environment.json and evaluation/.

    Returns:
        The file that was written.

    Raises:
        InputError: The folder holds no step, or a file in it is not what it should be.
    """
    steps, events = read_metrics(run), read_events(run)
    if not steps:
        raise InputError(f"{run} holds no step in metrics.jsonl: give a run folder of train.py.")
    config = _read_json(run / CONFIG_FILE)
    environment = _read_json(run / ENVIRONMENT_FILE)
    name = str(config.get("recipe", run.resolve().name))
    sections = [
        f"<h1>{escaped(name)}</h1>",
        note(f"run folder {run.resolve().name}"),
        section("Run", facts(_facts(config, environment, steps))),
        _evaluation(run / EVALUATION_FOLDER),
        _training(config, steps, events),
        _calibration(steps, events),
        _events(events),
        folded("Configuration", json.dumps(config, indent=2)) if config else "",
        folded("Environment", json.dumps(_counted(environment), indent=2)) if environment else "",
    ]
    path = run / PAGE_FILE
    atomic_file.write_text(path, whole(name, sections))
    return path


def _facts(config: dict[str, Any], environment: dict[str, Any], steps: Lines) -> dict[str, Any]:
    optim, data = config.get("optim", {}), config.get("data", {})
    keyframes = environment.get("keyframes")
    versions = environment.get("versions") or {}
    return {
        "commit": environment.get("commit"),
        "date": environment.get("date_utc"),
        "hardware": _hardware(environment),
        "device": environment.get("device"),
        "ranks": environment.get("world_size"),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items() if version),
        "seed": config.get("seed"),
        "log": Path(str(data["log"])).name if data.get("log") else None,
        "split": data.get("split"),
        "keyframes": len(keyframes) if isinstance(keyframes, list) else keyframes,
        "steps": f"{steps[-1]['step']} of {optim.get('steps', '?')}",
        "global batch": optim.get("batch_size"),
        "precision": optim.get("precision"),
    }


def _hardware(environment: dict[str, Any]) -> str:
    processor, gpu = environment.get("processor"), environment.get("gpu")
    parts = [f"{environment.get('cpu_count', '?')} x {processor}"] if processor else []
    parts += gpu if isinstance(gpu, list) else [gpu] if gpu else []
    return ", ".join(map(str, parts))


def _training(config: dict[str, Any], steps: Lines, events: Lines) -> str:
    batch_size = config.get("optim", {}).get("batch_size", 1)
    window = smoothing_window(len(steps))
    rows = []
    for name in loss_names(steps):
        values = [math.nan if (value := line.get(name)) is None else value for line in steps]
        finite = [value for value in values if math.isfinite(value)]
        if finite:
            rows.append([name, finite[0], float(smoothed(values, window)[-1]), min(finite)])
    marks = " ".join(
        f'<span style="color:{color}">&#9482;&nbsp;{escaped(label(kind))}</span>'
        for kind, color in EVENT_COLORS.items()
        if any(event.get("kind") == kind for event in events)
    )
    legend = f"Pale: every step. Dark: smoothed over {window:.0f} steps or so. {marks}"
    return section(
        "Training",
        _speed(steps, batch_size),
        table(["loss", "first", "last (smoothed)", "lowest"], rows),
        f"<p class=note>{legend}</p>",
        picture(loss_curves(steps, events), "png", "losses by step") if rows else "",
        picture(step_curves(steps, events, batch_size), "png", "rate, gradient, timing by step"),
    )


def _calibration(steps: Lines, events: Lines) -> str:
    """Gradients of the tasks and sensors, with what they were multiplied by."""
    names = calibration_names(steps)
    if not names:
        return ""
    window = smoothing_window(len(steps))
    rows = []
    for name in names:
        values = [math.nan if (value := line.get(name)) is None else value for line in steps]
        finite = [value for value in values if math.isfinite(value)]
        if finite:
            last = float(smoothed(values, window)[-1])
            rows.append([label(name.split("/")[-1]), finite[0], last, min(finite), max(finite)])
    return section(
        "Gradient calibration",
        note("Norms are those of the gradients before they are calibrated; alpha weights a task."),
        table(["figure", "first", "last (smoothed)", "lowest", "highest"], rows),
        picture(calibration_curves(steps, events), "png", "gradients of tasks and sensors by step"),
    )


def _speed(steps: Lines, batch_size: int) -> str:
    seconds, waits = step_times(steps)
    timed = np.isfinite(seconds) & (seconds > 0)
    if not timed.any():
        return ""
    median = float(np.median(seconds[timed]))
    figures: dict[str, Any] = {
        "seconds per step (median)": median,
        "samples per second": batch_size / median,
    }
    waited = timed & np.isfinite(waits)
    if waited.any():
        share = waits[waited].sum() / seconds[waited].sum()
        figures["of the time it waited for data"] = f"{100 * share:.1f} %"
    return tiles(figures)


def _events(events: Lines) -> str:
    if not events:
        return section("Events", note("None: no step was skipped, no sample was damaged."))
    counts = Counter(str(event.get("kind")) for event in events)
    summary = ", ".join(f"{label(kind)} {count}" for kind, count in counts.most_common())
    shown = events[:MAX_EVENTS]
    rows = [
        [event.get("step"), label(str(event.get("kind"))), event.get("text")] for event in shown
    ]
    rest = len(events) - len(shown)
    return section(
        "Events",
        f"<p>{escaped(summary)}</p>",
        table(["step", "kind", "what"], rows),
        note(f"and {rest} more in events.jsonl") if rest else "",
    )


def _evaluation(folder: Path) -> str:
    report = _read_json(folder / EVALUATION_FILE)
    if not report:
        return ""
    found = report.get("detection") or {}
    layers = report.get("map_iou") or {}
    about = [f"{report.get('num_keyframes', '?')} keyframes"]
    about += [str(report[key]) for key in ("split", "log", "precision") if report.get(key)]
    figures = {
        "NDS": found.get("nds"),
        "mAP": found.get("mean_ap"),
        "map mIoU": report.get("map_mean_iou"),
    }
    return section(
        "Evaluation",
        note(", ".join(about)),
        tiles(figures | (found.get("true_positive_errors") or {})),
        subsection("Boxes by class", _class_table(found)),
        subsection("Map layers", table(["layer", "IoU"], list(layers.items())) if layers else ""),
        subsection("By distance", *_tables(report.get("distance_bands"))),
        subsection("By sensors", *_tables(_with_losses(report.get("sensor_subsets")))),
        subsection("Pictures", *_pictures(folder)),
        note(f"Command: {report['command']}") if report.get("command") else "",
    )


def _class_table(found: dict[str, Any]) -> str:
    columns = {"objects": "num_ground_truth", "AP": "ap", "AP at 4 m": "ap_4m"}
    known = {title: found[key] for title, key in columns.items() if found.get(key)}
    names = dict.fromkeys(name for figures in known.values() for name in figures)
    rows = [[name, *(figures.get(name) for figures in known.values())] for name in names]
    return table(["class", *known], rows) if rows else ""


def _tables(records: Lines | None) -> list[str]:
    """Named records: a table of their figures, and one of each field that is a table itself."""
    if not records:
        return []
    keys = list(dict.fromkeys(key for record in records for key in record))
    nested = [key for key in keys if any(isinstance(record.get(key), dict) for record in records)]
    single = [key for key in keys if key not in (*nested, "name", "near", "far")]
    rows = [[record.get("name"), *(record.get(key) for key in single)] for record in records]
    tables = [table(["", *single], rows)]
    for key in nested:
        columns = list(dict.fromkeys(name for record in records for name in record.get(key) or {}))
        rows = [
            [record.get("name"), *((record.get(key) or {}).get(column) for column in columns)]
            for record in records
        ]
        tables.append(table([label(key), *columns], rows))
    return tables


def _with_losses(subsets: Lines | None) -> Lines | None:
    """Add to each figure what it is less than with all sensors, which come first."""
    if not subsets:
        return None
    full = subsets[0]
    return [
        {"name": subset.get("name")}
        | {
            name: value
            for key in ("nds", "mean_ap", "map_mean_iou")
            for name, value in (
                (label(key), subset.get(key)),
                (f"{label(key)} loss", _difference(full.get(key), subset.get(key))),
            )
        }
        for subset in subsets
    ]


def _difference(full: float | None, value: float | None) -> float | None:
    return None if full is None or value is None else full - value


def _pictures(folder: Path) -> list[str]:
    paths = sorted(folder.glob("*.png"))
    shown = [
        note(path.stem) + picture(_jpeg(path), "jpeg", path.stem) for path in paths[:MAX_PICTURES]
    ]
    if len(paths) > MAX_PICTURES:
        shown.append(note(f"and {len(paths) - MAX_PICTURES} more in {folder.name}/"))
    return shown


def _jpeg(path: Path) -> bytes:
    """A picture for the page: a tenth of the size of its PNG."""
    bgr = cv2.imread(str(path))
    if bgr is None:
        raise InputError(f"{path} is no picture that can be read: run evaluate.py again.")
    height_px, width_px = bgr.shape[:2]
    if width_px > PICTURE_WIDTH_PX:
        size = (PICTURE_WIDTH_PX, round(height_px * PICTURE_WIDTH_PX / width_px))
        bgr = cv2.resize(bgr, size, interpolation=cv2.INTER_AREA)
    _done, content = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    return content.tobytes()


def _counted(environment: dict[str, Any]) -> dict[str, Any]:
    """Long lists, such as the keyframes' tokens, as their length."""
    return {
        key: f"{len(value)} entries" if isinstance(value, list) and len(value) > 20 else value
        for key, value in environment.items()
    }


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a file; empty where there is no file."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path} is no JSON ({error}): make the run again.") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} holds no JSON object: make the run again.")
    return value


def main() -> None:
    """Read the command line and write the page."""
    parser = argparse.ArgumentParser(prog="report.py", description=__doc__)
    parser.add_argument("run", type=Path, help="run folder made by train.py")
    sys.stdout.write(f"report: {write_report(parser.parse_args().run)}\n")


if __name__ == "__main__":
    run_command(main)
