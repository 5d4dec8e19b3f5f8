"""Build a TensorRT engine: `python export/to_trt.py RUN|BUNDLE --precision fp16 --plugin LIBRARY`.

An engine is tied to the GPU, so this runs on the computer that will use it. The engine,
`engine.json` (what it was built from and for) and the plugin library are added to the bundle and to
its manifest. Precision is the bundle's own, or fp16 where that is fp32; INT8 bundles are made by
`export/quantize.py`. A bundle needs no torch. Exit code 3: TensorRT, its CUDA bindings or a GPU is
missing.
"""

import argparse
import contextlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast, get_args

import onnx

from export import trt_check, trt_contract
from export.precision import to_half
from export.trt_build import BuildOptions, BuiltEngine, build_engine
from export.trt_graph import axis_sizes, for_tensorrt, input_shapes, size_text, varying_inputs
from perception import atomic_file, json_codec
from perception.bundle import Bundle, load_bundle, write_manifest
from perception.errors import InputError, run_command
from runtime.engines import engine_manifest, tensorrt_engine
from runtime.engines.engine_manifest import ENGINE_CARD_FILE, ENGINE_FILE, PLUGIN_FILE, Precision
from runtime.engines.onnx_engine import OnnxEngine

TIMING_CACHE_FILE = "tensorrt.timing_cache"
HALVED = ("fp32", "fp16")
"""The one change of precision that needs no data, so that it is made here."""
RUN_FILE = "checkpoint.safetensors"
MISSING_PART = 3
"""Exit code where the computer, not the input, lacks something."""
MAX_WORKSPACE_GIB = 1024
"""More than any GPU has. Source: ours."""
PLUGIN_VARIABLE = "BEV_TENSORRT_PLUGIN"
"""Environment variable that names the plugin library."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """The command line."""

    source: Path
    """Run folder or bundle."""
    precision: Precision | None
    """None for the bundle's own, or fp16 where that is fp32."""
    workspace_bytes: int
    """Scratch memory that a layer may use."""
    plugin: Path | None
    """Plugin library."""
    out: Path | None
    """Bundle to make; None adds to the one that is given."""
    overwrite: bool
    timing_cache: Path | None
    """File to read and write; None for one beside the bundle."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A graph that passed the contract, and where it came from."""

    bundle: Bundle
    precision: Precision
    model: onnx.ModelProto

    @property
    def needs_plugin(self) -> bool:
        """Whether a node of the graph is a plugin's."""
        return any(node.domain not in ("", "ai.onnx") for node in self.model.graph.node)


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line, build, try the engine on a frame, write the bundle."""
    options = parse(arguments)
    target = options.out or options.source
    try:
        with _opened(options) as bundle:
            source = prepare(bundle, options.precision)
            started = time.monotonic()
            manifest = build(source, options, target)
    except tensorrt_engine.MissingPartError as error:
        sys.stderr.write(f"error: {error}\n")
        return MISSING_PART
    size = size_text((target / ENGINE_FILE).stat().st_size)
    sys.stdout.write(
        f"engine: {target / ENGINE_FILE}, {manifest.precision}, {size}, "
        f"{time.monotonic() - started:.0f} s, TensorRT {manifest.platform.tensorrt} on "
        f"{manifest.platform.gpu_name}\n"
    )
    return 0


def parse(arguments: Sequence[str] | None = None) -> Options:
    """Read the command line.

    Raises:
        InputError: A value is of no use.
    """
    parser = argparse.ArgumentParser(prog="to_trt.py", description=__doc__)
    parser.add_argument("source", type=Path, help="bundle, or run folder (then --out is needed)")
    parser.add_argument("--precision", help="fp32, fp16 or int8 (default: see above)")
    parser.add_argument("--workspace", type=float, default=4.0, help="scratch memory [GiB] (4)")
    parser.add_argument("--plugin", type=Path, help=f"plugin library (default: ${PLUGIN_VARIABLE})")
    parser.add_argument("--out", type=Path, help="bundle to make (default: add to the given one)")
    parser.add_argument("--overwrite", action="store_true", help="replace --out if it exists")
    parser.add_argument("--timing-cache", type=Path, help="file (default: beside the bundle)")
    given = parser.parse_args(arguments)
    if given.precision not in (None, *get_args(Precision)):
        raise InputError(
            f"Precision is {given.precision!r}, expected one of {', '.join(get_args(Precision))}."
        )
    if not 0 < given.workspace <= MAX_WORKSPACE_GIB:
        raise InputError(
            f"Workspace is {given.workspace} GiB, expected more than 0 and at most "
            f"{MAX_WORKSPACE_GIB}."
        )
    named = os.environ.get(PLUGIN_VARIABLE)
    return Options(
        source=given.source,
        precision=cast(Precision | None, given.precision),
        workspace_bytes=int(given.workspace * 2**30),
        plugin=given.plugin or (Path(named) if named else None),
        out=given.out,
        overwrite=given.overwrite,
        timing_cache=given.timing_cache,
    )


def prepare(bundle: Bundle, wanted: Precision | None) -> Source:
    """Read the graph in a precision, in the form for TensorRT, and hold it against the contract.

    Raises:
        InputError: The bundle is of another precision, or TensorRT would not take its graph.
    """
    own = bundle.card.precision
    precision = wanted or ("fp16" if own == "fp32" else own)
    if precision not in get_args(Precision) or (own != precision and (own, precision) != HALVED):
        raise InputError(
            f"{bundle.path} is a bundle of precision {own}, an engine of {precision} cannot be "
            "made of it: make a bundle of that precision with 'python export/quantize.py'."
        )
    model = onnx.load(bundle.model_path)
    model = for_tensorrt(
        to_half(model) if own != precision else model, bundle.card.inputs.camera_grid.nx
    )
    faults = trt_contract.violations(model)
    if faults:
        raise InputError(
            f"{bundle.model_path} breaks {len(faults)} rules of TensorRT's parser, the first is "
            f"{faults[0]}: export the bundle again with this version."
        )
    return Source(bundle=bundle, precision=cast(Precision, precision), model=model)


def build(source: Source, options: Options, target: Path) -> engine_manifest.EngineManifest:
    """Build the engine, try it, and write the bundle `target` with it, whole or not at all.

    Raises:
        MissingPartError: TensorRT, its CUDA bindings or a GPU is missing.
        InputError: The plugin is missing, TensorRT fails, or the bundle cannot be written.
    """
    trt = tensorrt_engine.import_tensorrt()
    platform = tensorrt_engine.Cuda().platform(trt.__version__)
    plugin = _plugin(source, options)
    if plugin is not None:
        tensorrt_engine.load_plugin(trt, plugin)
    card = source.bundle.card
    shapes = input_shapes(card, axis_sizes(card))
    build_options = BuildOptions(
        workspace_bytes=options.workspace_bytes,
        allow_tf32=source.precision != "fp32",
        profile={name: shapes[name] for name in varying_inputs(card)},
    )
    cache = options.timing_cache or target.resolve().parent / TIMING_CACHE_FILE
    in_place = target.resolve() == source.bundle.path.resolve()
    with atomic_file.new_folder(target, in_place or options.overwrite) as folder:
        known = _read_cache(cache)
        built = build_engine(trt, source.model.SerializeToString(), build_options, known)
        manifest = engine_manifest.EngineManifest(
            format_version=engine_manifest.FORMAT_VERSION,
            precision=source.precision,
            onnx_sha256=engine_manifest.file_sha256(source.bundle.model_path),
            engine_sha256=engine_manifest.sha256(built.plan),
            plugin_sha256=engine_manifest.file_sha256(plugin) if plugin else None,
            platform=platform,
            flags=build_options.flags,
            workspace_bytes=options.workspace_bytes,
            axes=axis_sizes(card),
        )
        _fill(folder, target, source.bundle, built, manifest, plugin)
        sys.stdout.write(f"{try_engine(load_bundle(folder), source.precision)}\n")
    _write_cache(cache, built.timing_cache)
    return manifest


@contextlib.contextmanager
def _opened(options: Options) -> Iterator[Bundle]:
    """The bundle that is given, or one exported from the run that is given, for a while."""
    if not (options.source / RUN_FILE).is_file():
        yield load_bundle(options.source)
        return
    if options.out is None:
        raise InputError(f"{options.source} is a run: name the bundle to make with --out BUNDLE.")
    tensorrt_engine.import_tensorrt()  # before minutes of work
    tensorrt_engine.Cuda()
    if options.out.exists() and not options.overwrite:
        raise InputError(f"{options.out} exists already: choose another name or pass --overwrite.")
    from export.to_onnx import export_checkpoint
    from perception.checkpoint import load_checkpoint

    with tempfile.TemporaryDirectory() as folder:
        exported = Path(folder) / "bundle"
        export_checkpoint(load_checkpoint(options.source), exported, [])
        yield load_bundle(exported)


def _read_cache(path: Path) -> bytes:
    """Times of earlier builds, none at first; the file can be written when the build is done."""
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            return path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise InputError(
            f"The timing cache {path} cannot be written ({error.strerror}): name another file with "
            "--timing-cache."
        ) from error


def _write_cache(path: Path, content: bytes) -> None:
    """Keep the times, which are a help and no more: an engine is not lost over them."""
    try:
        if content:
            atomic_file.write_bytes(path, content)
    except InputError as error:
        sys.stderr.write(f"warning: {error}\n")


def _plugin(source: Source, options: Options) -> Path | None:
    if not source.needs_plugin:
        return None
    own = source.bundle.path / PLUGIN_FILE
    path = options.plugin or (own if own.is_file() else None)
    if path is None or not path.is_file():
        got = "is not named" if path is None else f"{path} is missing"
        raise InputError(
            f"The graph's BEV pool needs the plugin library, which {got}: build it from "
            f"export/plugins on this computer and pass --plugin LIBRARY."
        )
    return path


def _fill(
    folder: Path,
    target: Path,
    bundle: Bundle,
    built: BuiltEngine,
    manifest: engine_manifest.EngineManifest,
    plugin: Path | None,
) -> None:
    """Copy a bundle into a folder, which is to be `target`, and add the engine."""
    try:
        for path in sorted(bundle.path.iterdir()):
            if path.is_file() and path.name not in (ENGINE_FILE, ENGINE_CARD_FILE, PLUGIN_FILE):
                shutil.copyfile(path, folder / path.name)
        if plugin is not None:
            shutil.copyfile(plugin, folder / PLUGIN_FILE)
    except OSError as error:
        raise InputError(
            f"Cannot write {target}: {error.strerror}; check its rights and free space."
        ) from error
    atomic_file.write_bytes(folder / ENGINE_FILE, built.plan)
    atomic_file.write_text(folder / ENGINE_CARD_FILE, json_codec.to_json(manifest))
    write_manifest(folder)


def try_engine(bundle: Bundle, precision: Precision) -> str:
    """Hold a bundle's engine against ONNX Runtime on frames of noise and say how far they are.

    Raises:
        InputError: The engine fails, or is further from it than its precision explains.
    """
    reference = OnnxEngine(bundle)
    with contextlib.closing(tensorrt_engine.TensorrtEngine(bundle)) as engine:
        agreement = trt_check.compare(engine, reference, bundle.card, precision)
        return f"{engine.description}: against ONNX Runtime on noise, {agreement}"


if __name__ == "__main__":
    run_command(main)
