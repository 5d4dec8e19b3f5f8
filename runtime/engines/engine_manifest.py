"""`engine.json`: what a TensorRT engine was built from and for, so that no other one ever runs.

An engine belongs to one ONNX file, one plugin library, one TensorRT version, one GPU architecture
and one generation of drivers. TensorRT itself refuses some mismatches, crashes on others, and is
silent about the rest; here each has its own sentence.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from perception import json_codec
from perception.bundle import MANIFEST_FILE, MODEL_FILE, Bundle
from perception.errors import InputError

ENGINE_FILE = "engine.plan"
ENGINE_CARD_FILE = "engine.json"
PLUGIN_FILE = "libbev_plugins_trt.so"
"""The plugin library's name in a bundle."""

FORMAT_VERSION = 1
"""Raised when an older runtime could misread a newer engine.json."""

Precision = Literal["fp32", "fp16", "int8"]
"""Precision of a network between its first and its last convolution."""


@dataclass(frozen=True, kw_only=True)
class Platform:
    """What an engine is tied to."""

    tensorrt: str
    """Version of TensorRT, all parts of it."""
    gpu_name: str
    gpu_arch: str
    """Compute capability, such as "9.0"."""
    driver: str
    """Newest CUDA version that the driver supports, such as "13.0"."""


@dataclass(frozen=True, kw_only=True)
class EngineManifest:
    """What an engine was built from and for."""

    format_version: int
    precision: Precision
    onnx_sha256: str
    """Digest of the bundle's model file."""
    engine_sha256: str
    plugin_sha256: str | None
    """Digest of the plugin library; None for a network without such nodes."""
    platform: Platform
    """Where it was built."""
    flags: tuple[str, ...]
    """Switches of the builder, for the record."""
    workspace_bytes: int
    """Scratch memory that the builder was allowed."""
    axes: dict[str, int]
    """Largest size of each input axis that varies from frame to frame."""


@dataclass(frozen=True, kw_only=True)
class CheckedEngine:
    """An engine that belongs to its bundle and to this computer."""

    manifest: EngineManifest
    plan: bytes
    plugin: Path | None
    """The plugin library, with the digest that the manifest names."""


def load_engine(bundle: Bundle, here: Platform, plugin: Path | None = None) -> CheckedEngine:
    """Read a bundle's engine if it is listed, whole, of this bundle, and for this computer.

    Args:
        bundle: The bundle, whose files were checked against its manifest.
        here: TensorRT and GPU that are to run it.
        plugin: Plugin library in place of the bundle's own.

    Raises:
        InputError: There is none, or one that must not run; the sentence says which of them.
    """
    folder = bundle.path
    build = f"build it with 'python export/to_trt.py {folder}'"
    for name in (ENGINE_FILE, ENGINE_CARD_FILE):
        if name not in bundle.files:
            lies_there = "holds an unlisted" if (folder / name).exists() else "has no"
            raise InputError(f"{folder} {lies_there} {name} (see its {MANIFEST_FILE}): {build}.")
    text = (folder / ENGINE_CARD_FILE).read_text(errors="replace")
    try:
        manifest = json_codec.from_json(EngineManifest, text, str(folder / ENGINE_CARD_FILE))
    except InputError as error:
        raise InputError(f"{str(error).rstrip('.')}; {build} again.") from error
    plan = (folder / ENGINE_FILE).read_bytes()
    plugin = _plugin_path(bundle, manifest, plugin)
    fault = _fault_of_files(bundle, manifest, plan, plugin) or _fault_of_platform(
        manifest.platform, here
    )
    if fault is not None:
        raise InputError(f"{folder / ENGINE_FILE} {fault}: {build} again, on this computer.")
    return CheckedEngine(manifest=manifest, plan=plan, plugin=plugin)


def sha256(content: bytes) -> str:
    """Digest of bytes."""
    return hashlib.sha256(content).hexdigest()


def file_sha256(path: Path) -> str:
    """Digest of a file."""
    return sha256(path.read_bytes())


def _plugin_path(bundle: Bundle, manifest: EngineManifest, given: Path | None) -> Path | None:
    if manifest.plugin_sha256 is None:
        return None
    path = given or bundle.path / PLUGIN_FILE
    if not path.is_file():
        raise InputError(
            f"{path} is missing, which this engine's BEV pool needs: name the plugin library, or "
            f"build the engine again with 'python export/to_trt.py {bundle.path}'."
        )
    if given is None and PLUGIN_FILE not in bundle.files:
        raise InputError(
            f"{path} is not in the bundle's {MANIFEST_FILE}, so it is not loaded: build the engine "
            f"again with 'python export/to_trt.py {bundle.path}'."
        )
    return path


def _fault_of_files(
    bundle: Bundle, manifest: EngineManifest, plan: bytes, plugin: Path | None
) -> str | None:
    if manifest.format_version != FORMAT_VERSION:
        return (
            f"has an {ENGINE_CARD_FILE} of format {manifest.format_version}, this version reads "
            f"{FORMAT_VERSION}"
        )
    if sha256(plan) != manifest.engine_sha256:
        return f"is damaged: it has not the digest that {ENGINE_CARD_FILE} names"
    if file_sha256(bundle.model_path) != manifest.onnx_sha256:
        return f"was built from another {MODEL_FILE} than the bundle's"
    if plugin is not None and file_sha256(plugin) != manifest.plugin_sha256:
        return f"was built with another plugin library than {plugin}"
    return None


def _fault_of_platform(built: Platform, here: Platform) -> str | None:
    if built.tensorrt != here.tensorrt:
        return f"was built by TensorRT {built.tensorrt}, here is {here.tensorrt}"
    if built.gpu_arch != here.gpu_arch:
        return (
            f"was built for compute capability {built.gpu_arch} ({built.gpu_name}), here is "
            f"{here.gpu_arch} ({here.gpu_name})"
        )
    if built.driver.split(".")[0] != here.driver.split(".")[0]:
        return f"was built under a driver for CUDA {built.driver}, here is one for {here.driver}"
    return None
