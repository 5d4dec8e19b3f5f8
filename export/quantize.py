"""A bundle of another precision: `python export/quantize.py BUNDLE --out BUNDLE --precision int8`.

fp16 is written into the graph as casts, INT8 as explicit rounding; both are files that ONNX Runtime
runs and TensorRT builds. INT8 needs a log: frames of its training split fix the ranges, others tell
what the rounding does to the network, part by part. Parts that bear it worst stay in fp32 until the
error is allowed. What was measured goes into the bundle as `precision.json` and `precision.md`.
"""

import argparse
import dataclasses
import hashlib
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnxruntime.capi import onnxruntime_pybind11_state as ort_state

from export.parity_frames import noise_frame, with_missing_sensors
from export.precision import to_half
from export.quantization import IntegerPrecision, Method, QuantizationOptions, Quantizer
from export.sensitivity import Reference, SensitivityReport, choose_layers
from export.stage_parity import OnnxRuntimeRunner
from export.to_onnx import export_checkpoint, with_sparse_tables
from perception import atomic_file, json_codec, provenance
from perception.bundle import (
    CARD_FILE,
    MANIFEST_FILE,
    MODEL_FILE,
    Bundle,
    load_bundle,
    write_manifest,
)
from perception.checkpoint import load_checkpoint
from perception.data.nuscenes_log import NuScenesLog
from perception.errors import InputError, positive_int, run_command
from perception.model_card import ModelCard, Precision
from perception.model_inputs import ModelInputs, prepare_frame
from runtime.engines.onnx_engine import OnnxEngine
from runtime.self_test import write_golden
from training.splits import split_tokens

REPORT_FILE, TABLE_FILE = "precision.json", "precision.md"
MAX_ERROR = 0.1
"""Error that is allowed, see `export.sensitivity.Reference.error`. Source: ours; errors of 0.14 to
0.18 of the heads alone, over all channels, cost a fusion network 0.006 to 0.016 NDS on 24 keyframes
of the synthetic world."""

_RUNTIME_ERRORS = (ort_state.Fail, ort_state.InvalidProtobuf, ort_state.NoSuchFile)
"""What ONNX Runtime raises of files that are not there, or not whole."""


@dataclass(frozen=True, kw_only=True)
class Frames:
    """What a graph is converted with."""

    calibration: tuple[ModelInputs, ...]
    """Fix the ranges; none for fp16."""
    check: tuple[ModelInputs, ...]
    """Tell the error; none of them is a calibration frame. Some lack sensors: a branch that the
    network looks at beside another may be all that it has."""
    source: str
    """Where they come from, in a few words."""


@dataclass(frozen=True, kw_only=True)
class PrecisionReport:
    """How a bundle of another precision was made, and how far it is from fp32."""

    precision: Precision
    error: float
    """Of branches and heads, see `export.sensitivity.Reference.error`."""
    max_error: float
    """Error that was allowed."""
    frames: str
    num_calibration_frames: int
    num_check_frames: int
    options: QuantizationOptions | None
    """None where nothing is rounded to integers."""
    sensitivity: SensitivityReport | None
    source_digest: str
    """Digest of the fp32 bundle."""
    source_model: str
    """sha256 of its graph: bundles that were exported twice of one run have the same."""
    environment: dict[str, object]

    def markdown(self) -> str:
        """What a person wants to read."""
        lines = [
            f"# {self.precision}",
            "",
            f"Error of branches and heads: {self.error:.4f}, allowed {self.max_error:g}; "
            f"{self.num_check_frames} frames to check, {self.num_calibration_frames} to calibrate "
            f"({self.frames}).",
        ]
        if self.sensitivity is not None:
            lines += ["", self.sensitivity.markdown()]
        return "\n".join(lines) + "\n"


def convert_bundle(
    source: Bundle,
    out: Path,
    frames: Frames,
    options: QuantizationOptions | None,
    *,
    max_error: float = MAX_ERROR,
    overwrite: bool = False,
) -> PrecisionReport:
    """Write a bundle of another precision.

    Args:
        source: A bundle in fp32.
        out: The bundle to make, a folder that appears when it is whole.
        frames: What the ranges are taken from and the error is measured on.
        options: How the graph is rounded to integers; None for fp16.
        max_error: Error that is allowed.
        overwrite: Replace an existing bundle.

    Raises:
        InputError: The source is not in fp32, the error is beyond what is allowed, the folder
            exists or cannot be made, or there is no room for what is written.
    """
    if source.card.precision != "fp32":
        raise InputError(
            f"{source.path} is in {source.card.precision}, expected fp32: give the bundle that "
            "to_onnx.py made."
        )
    precision: Precision = "fp16" if options is None else options.precision
    with _writing(out), atomic_file.new_folder(out, overwrite) as folder:
        model = onnx.load(source.model_path)
        reference = Reference(model, frames.check, OnnxRuntimeRunner())
        if options is None:
            result, sensitivity = to_half(model), None
            error = reference.error(result)
        else:
            with Quantizer(model, frames.calibration, options) as quantizer:
                result, sensitivity = choose_layers(model, quantizer, reference, max_error)
            error = sensitivity.error
        if not error <= max_error:
            raise InputError(
                f"{out} was not written: the network in {precision} is off by {error:.3g}, allowed "
                f"is {max_error:g}: pass another --max-error, or stay with fp32."
            )
        report = PrecisionReport(
            precision=precision,
            error=error,
            max_error=max_error,
            frames=frames.source,
            num_calibration_frames=len(frames.calibration),
            num_check_frames=len(frames.check),
            options=options,
            sensitivity=sensitivity,
            source_digest=source.digest,
            source_model=model_digest(source),
            environment=provenance.environment(),
        )
        _write(folder, source, result, report, frames.check[0])
    return report


def calibration_frames(
    log: NuScenesLog, card: ModelCard, split: str, *, number: int, num_check: int, seed: int
) -> Frames:
    """Draw frames of which every sensor is there; the first to check comes without them, too.

    Args:
        log: The log.
        card: What the network takes.
        split: Split of the log that the network was trained on.
        number: Frames to calibrate with, 0 where nothing is rounded to integers.
        num_check: Frames to measure the error on.
        seed: Of the draw.

    Raises:
        InputError: The split has too few such frames.
    """
    tokens = split_tokens(log, split, "all")
    found: list[ModelInputs] = []
    for index in np.random.default_rng(seed).permutation(len(tokens)):
        frame = log.keyframe(tokens[index], card.inputs.pillars.num_sweeps)
        prepared = prepare_frame(frame, card.inputs)
        if not prepared.sensors_missing:
            found.append(prepared.inputs)
        if len(found) == number + num_check:
            return Frames(
                calibration=_complete(card, found[:number]),
                check=_complete(card, [*found[number:], *with_missing_sensors(found[number])]),
                source=f"{log.root.name}, split {split}, seed {seed}",
            )
    raise InputError(
        f"{log.root} has {len(found)} frames with every sensor in the split {split!r}, expected "
        f"{number} to calibrate and {num_check} to check: ask for fewer or take another split."
    )


def noise_frames(card: ModelCard) -> Frames:
    """Make up frames to check with, where there is no log."""
    noise = noise_frame(card.inputs)
    check = _complete(card, [noise, *with_missing_sensors(noise)])
    return Frames(calibration=(), check=check, source="noise")


def model_digest(bundle: Bundle) -> str:
    """sha256 of a bundle's graph."""
    return hashlib.sha256(bundle.model_path.read_bytes()).hexdigest()


def _complete(card: ModelCard, frames: Sequence[ModelInputs]) -> tuple[ModelInputs, ...]:
    """Frames with the tables that a sparse encoder reads."""
    levels = card.sparse_levels
    return tuple(frame if levels is None else with_sparse_tables(frame, levels) for frame in frames)


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    """Say in one sentence what keeps files from being written, or from being whole."""
    try:
        yield
    except (OSError, DecodeError, *_RUNTIME_ERRORS) as error:
        what = " ".join(str(error).split())[:200]
        raise InputError(
            f"{out} was not written ({what}): check rights and free space of its folder and of "
            f"{tempfile.gettempdir()}."
        ) from error


def _write(
    folder: Path,
    source: Bundle,
    model: onnx.ModelProto,
    report: PrecisionReport,
    golden: ModelInputs,
) -> None:
    card = dataclasses.replace(source.card, precision=report.precision)
    atomic_file.write_bytes(folder / MODEL_FILE, model.SerializeToString())
    atomic_file.write_text(folder / CARD_FILE, json_codec.to_json(card))
    atomic_file.write_text(folder / REPORT_FILE, json_codec.to_json(report))
    atomic_file.write_text(folder / TABLE_FILE, report.markdown())
    write_manifest(folder)
    engine = OnnxEngine(load_bundle(folder))  # refuses a graph that is not the card's
    write_golden(folder, golden, engine.run(golden))
    write_manifest(folder)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="quantize.py", description=__doc__)
    parser.add_argument("source", type=Path, help="bundle in fp32, or run folder")
    parser.add_argument("--out", type=Path, required=True, help="bundle folder to make")
    parser.add_argument(
        "--precision",
        choices=[name for name in get_args(Precision) if name != "fp32"],
        default="int8",
        help="int8: symmetric, for TensorRT (default); uint8: for ONNX Runtime on a CPU, where "
        "it is the fast one; fp16",
    )
    parser.add_argument("--log", type=Path, help="root of a nuScenes log; fp16 may do without")
    parser.add_argument("--version", help="folder of the log's tables, such as v1.0-mini")
    parser.add_argument(
        "--split", default="mini_train", help="split of the training (default: mini_train)"
    )
    parser.add_argument("--frames", type=positive_int, default=8, help="to calibrate (default: 8)")
    parser.add_argument(
        "--check",
        type=positive_int,
        default=4,
        help="to check (default: 4), besides one of them with sensors missing",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the frames drawn (default: 0)")
    parser.add_argument(
        "--method", choices=get_args(Method), default="percentile", help="of choosing ranges"
    )
    parser.add_argument("--percentile", type=float, default=99.99, help="(default: 99.99)")
    parser.add_argument(
        "--max-error",
        type=float,
        default=MAX_ERROR,
        help=f"error that is allowed (default: {MAX_ERROR:g}); parts of the network "
        "stay in fp32 until it is met",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing bundle")
    return parser.parse_args()


def main() -> None:
    """Read the command line, convert, print what it does to the network."""
    arguments = _arguments()
    options = _options(arguments)
    if arguments.log is None and options is not None:
        raise InputError(
            f"{options.precision} needs frames to take its ranges from: pass --log ROOT."
        )
    with _writing(arguments.out), tempfile.TemporaryDirectory(prefix="quantize.") as folder:
        bundle = _fp32_bundle(arguments.source, Path(folder))
        if arguments.log is None:
            frames = noise_frames(bundle.card)
        else:
            frames = calibration_frames(
                NuScenesLog(arguments.log, arguments.version),
                bundle.card,
                arguments.split,
                number=0 if options is None else arguments.frames,
                num_check=arguments.check,
                seed=arguments.seed,
            )
        report = convert_bundle(
            bundle,
            arguments.out,
            frames,
            options,
            max_error=arguments.max_error,
            overwrite=arguments.overwrite,
        )
    sys.stdout.write(f"{report.markdown()}\nbundle: {arguments.out}\n")


def _options(arguments: argparse.Namespace) -> QuantizationOptions | None:
    if arguments.precision not in get_args(IntegerPrecision):
        return None
    try:
        return QuantizationOptions(
            precision=arguments.precision,
            method=arguments.method,
            percentile=arguments.percentile,
        )
    except ValueError as error:
        raise InputError(f"{error}.") from error


def _fp32_bundle(source: Path, folder: Path) -> Bundle:
    """The bundle that was given, or one made of the run that was given."""
    if not source.is_dir():
        raise InputError(f"{source} is no folder: give a bundle, or a run folder made by train.py.")
    if (source / MANIFEST_FILE).is_file():
        return load_bundle(source)
    export_checkpoint(load_checkpoint(source), folder / "bundle", [])
    return load_bundle(folder / "bundle")


if __name__ == "__main__":
    run_command(main)
