"""A replay's report for people: plain text, Markdown, and a picture of the latencies."""

import importlib.util
import io
import resource
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from perception import atomic_file
from perception.errors import InputError
from perception.taxonomy import LIDAR

HISTOGRAM_BINS = 40
STATISTICS = ("mean_ms", "p50_ms", "p95_ms", "p99_ms", "max_ms")

Report = Mapping[str, Any]


def text(report: Report, table: str) -> str:
    """The report for a terminal.

    Args:
        report: What `Replay.report` gives.
        table: The recorder's.
    """
    lines = [
        *(f"{name:<18}{value}" for name, value in _head(report)),
        "",
        *_sensor_rows(report, "{:<18}{:>9}{:>9}{:>9}{:>9}"),
        "",
        table.rstrip(),
        report["latency_meaning"],
        f"clock held back for decoding: {report['clock_held_back_s']:.3f} s",
        f"peak memory: {report['peak_memory_mib']:.0f} MiB",
    ]
    return "\n".join(lines) + "\n"


def markdown(report: Report, command: str, verdicts: Sequence[str], picture: str | None) -> str:
    """The report as a page.

    Args:
        report: What `Replay.report` gives.
        command: How to get it again.
        verdicts: Texts of the golden comparison and the budget, where there were any.
        picture: File of the latency histogram beside the page, if there is one.
    """
    machine = report["environment"]
    rows = [
        f"| {stage} | {times['count']} | "
        + " | ".join(f"{times[name]:.2f}" for name in STATISTICS)
        + " |"
        for stage, times in report["latency"].items()
    ]
    return "\n".join(
        [
            "# Replay",
            "",
            f"`{command}`",
            "",
            f"{machine['cpu_count']} x {machine['processor']}, commit {machine['commit']}, "
            f"{machine['date_utc']}",
            "",
            "| what | |",
            "|---|---|",
            *(f"| {name} | {value} |" for name, value in _head(report)),
            "",
            "## Sensors: stamp minus frame's stamp [ms], rate [Hz]",
            "",
            *_sensor_rows(report, "| {} | {} | {} | {} | {} |", "|---|---:|---:|---:|---:|"),
            "",
            "## Latency [ms]",
            "",
            "| stage | n | " + " | ".join(name[:-3] for name in STATISTICS) + " |",
            "|---|" + "---:|" * (len(STATISTICS) + 1),
            *rows,
            "",
            f"{report['latency_meaning']}. Clock held back for decoding: "
            f"{report['clock_held_back_s']:.3f} s.",
            "",
            *([f"![latency]({picture})", ""] if picture else []),
            *(line for verdict in verdicts for line in ("```text", verdict.rstrip(), "```", "")),
        ]
    )


def make_folder(path: Path) -> None:
    """Make the folder of a report, where there is none yet.

    Raises:
        InputError: It cannot be made, or there is nothing to draw the report's picture with.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError(
            "The picture of the latencies needs matplotlib: pip install 'bev-perception[viewer]'."
        )
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"Cannot make {path}: {error.strerror}; check its parent.") from error


def save_histogram(path: Path, samples: Mapping[str, Sequence[float]], title: str) -> None:
    """Draw how often each stage took how long, one panel per stage with p50 and p99 [ms].

    Args:
        path: PNG file.
        samples: Stage -> times [ms].
        title: Line on top.

    Raises:
        InputError: The file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # only reports need it
    from matplotlib.figure import Figure

    columns = 3
    rows = max(1, -(-len(samples) // columns))
    figure = Figure(figsize=(4.2 * columns, 2.1 * rows + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=10)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, (stage, times_ms) in zip(axes, samples.items(), strict=False):
        axis.hist(times_ms, bins=HISTOGRAM_BINS, color="#4878a8")
        ordered = sorted(times_ms)
        for part, style in ((50, "-"), (99, "--")):
            value = ordered[max(0, -(-len(ordered) * part // 100) - 1)]
            axis.axvline(value, color="#c44e52", linestyle=style, label=f"p{part} {value:.1f}")
        axis.set_title(f"{stage} (n = {len(ordered)})", fontsize=9)
        axis.set_xlabel("ms", fontsize=8)
        axis.tick_params(labelsize=7)
        axis.legend(fontsize=7, frameon=False)
    for axis in axes[len(samples) :]:
        axis.set_axis_off()
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=100)
    atomic_file.write_bytes(path, content.getvalue())


def sensors_text(used: Sequence[str]) -> str:
    """A few words for a set of sensors."""
    num_cameras = sum(name != LIDAR for name in used)
    plural = "s" * (num_cameras != 1)
    parts = [f"{num_cameras} camera{plural}"] * (num_cameras > 0) + ["LiDAR"] * (LIDAR in used)
    return " + ".join(parts) or "no sensor"


def peak_memory_mib() -> float:
    """Most memory that the process ever had [MiB]."""
    unit = 1 if sys.platform == "darwin" else 1024  # macOS gives bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def _head(report: Report) -> list[tuple[str, str]]:
    dropped = _counts(report["frames_dropped"])
    bundles = [
        f"{bundle['name']} ({bundle['recipe']}, {bundle['sha256'][:12]}) {bundle['frames']}"
        for bundle in report["bundles"]
    ]
    return [
        ("frames by bundle", ", ".join(bundles)),
        ("engine", f"{report['engine']}, warm-up {report['warm_up_ms']:.1f} ms"),
        ("log", f"{report['log']}: {', '.join(report['scenes'])}"),
        *(("ended early", why) for why in report["ended_early"]),
        ("clock", f"{report['clock']}, a frame every {report['period_ms']:g} ms"),
        ("messages", _counts(report["messages"])),
        ("missing files", _counts(report["missing_files"])),
        ("faults", _counts(report["faults"])),
        (
            "frames",
            f"{report['frames_in']} in, {report['frames_out']} out, dropped: {dropped}; "
            f"{report['frames_incomplete']} incomplete",
        ),
        ("sensors", _counts(report["frames_by_sensors_used"])),
        ("modes", f"{_counts(report['frames_by_mode'])}; {report['mode_switches']} switches"),
        ("without", _counts(report["frames_without"])),
        ("dropped messages", _counts(report["synchronizer"])),
        ("pipeline", _counts(report["pipeline"])),
    ]


def _sensor_rows(report: Report, row: str, rule: str | None = None) -> list[str]:
    """Head and one line per sensor, and what stands between."""
    head = row.format("sensor [ms]", "min", "median", "max", "Hz")
    return [
        head,
        *([] if rule is None else [rule]),
        *(
            row.format(name, *("-" if n is None else f"{n:.1f}" for n in times.values()))
            for name, times in report["sensors"].items()
        ),
    ]


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items()) or "none"
