"""Look up every TensorRT and CUDA name that our code uses in NVIDIA's own Python bindings.

python tests/check_tensorrt_api.py --wheels FOLDER

TensorRT's library comes from NVIDIA's index and needs no part in this: its Python bindings
(tensorrt-cu12-bindings or tensorrt-cu13-bindings of any version, from PyPI) know every class, enum
and method. They link against three libraries, in whose place empty ones are made on the fly.
Nothing of the wheels is kept. With wheels of cuda-bindings and cuda-pathfinder the CUDA names are
looked up, too. The names of the stand-in that the tests use are held against the same bindings.
"""

import argparse
import ast
import ctypes
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from types import ModuleType

import fake_tensorrt
import numpy as np

from runtime.engines.tensorrt_engine import trt_logger

REPOSITORY = Path(__file__).resolve().parents[1]
SOURCES = (
    REPOSITORY / "export" / "trt_build.py",
    REPOSITORY / "export" / "to_trt.py",
    REPOSITORY / "runtime" / "engines" / "tensorrt_engine.py",
)
CLASS_OF = {
    "builder": "Builder",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "config": "IBuilderConfig",
    "profile": "IOptimizationProfile",
    "registry": "IPluginRegistry",
    "trt_runtime": "Runtime",
    "engine": "ICudaEngine",
    "_context": "IExecutionContext",
    "timing": "ITimingCache",
}
"""TensorRT's class behind a variable of this name in `SOURCES`."""
RESULT_CLASS = {"get_error": "ParserError"}
"""Class of what a method returns, where its own method is called at once."""
NOT_TENSORRT = {
    ("to_trt.py", "engine"),
    ("to_trt.py", "parser"),
}
"""Variables of those names that hold something else: our engine, argparse's parser."""
ENTRY_POINTS = (
    "createInferBuilder_INTERNAL", "createInferRefitter_INTERNAL", "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL", "createNvOnnxParser_INTERNAL",
    "getBuilderPluginRegistry", "getNvOnnxParserVersion", "getPluginRegistry",
    "initLibNvInferPlugins",
)  # fmt: skip
"""Functions that the bindings want from TensorRT's libraries. Source: `nm -D --undefined-only`."""


def used_tensorrt_names() -> set[tuple[str, ...]]:
    """Paths of names below the module `tensorrt` that our code uses, from its syntax trees."""
    names: set[tuple[str, ...]] = set()
    for source in SOURCES:
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.Attribute):
                names |= _names(source.name, node)
    return {name for name in names if not any(part.startswith("__init") for part in name)}


def used_cuda_names() -> set[str]:
    """Names of `cuda.bindings.runtime` that our code uses: attributes and arguments of `call`."""
    tree = ast.parse(SOURCES[-1].read_text())
    words = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    words |= {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant)} & _strings(tree)
    return {word for word in words if word.startswith("cuda") and word != "cuda"}


def missing_names(module: ModuleType) -> list[str]:
    """Names that our code or its stand-in uses and a module has not."""
    names = used_tensorrt_names() | fake_tensorrt.tensorrt_names()
    return sorted(".".join(name) for name in names if not _has(module, name))


def exercise(module: ModuleType) -> None:
    """Do what needs no library: a logger, element types, flags."""
    trt_logger(module).log(module.ILogger.WARNING, "only a test")
    for name, kind in (("FLOAT", "float32"), ("INT32", "int32"), ("INT64", "int64")):
        if np.dtype(module.nptype(getattr(module.DataType, name))).name != kind:
            raise RuntimeError(f"nptype of {name} is not {kind}")
    if 1 << int(module.NetworkDefinitionCreationFlag.STRONGLY_TYPED) < 1:
        raise RuntimeError("STRONGLY_TYPED is no flag")


def import_bindings(wheel: Path, folder: Path) -> ModuleType:
    """Import the bindings of a wheel that is unpacked into `folder`, with empty libraries."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    major = wheel.name.split("-")[1].split(".")[0]
    functions = "".join(f"void* {name}(void) {{ return 0; }}\n" for name in ENTRY_POINTS)
    for name in ("nvinfer", "nvinfer_plugin", "nvonnxparser"):
        library = folder / f"lib{name}.so.{major}"
        command = ["gcc", "-shared", "-fPIC", "-x", "c", "-", f"-Wl,-soname,{library.name}"]
        subprocess.run(
            [*command, "-o", str(library)],
            input=functions if name == "nvinfer" else "",
            text=True,
            check=True,
        )
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    sys.path.insert(0, str(folder))
    import tensorrt_bindings

    return tensorrt_bindings


def check_wheel(wheel: Path) -> dict[str, list[str] | str]:
    """Check one version in a process of its own: two cannot be imported into one."""
    done = subprocess.run(
        [sys.executable, __file__, "--one", str(wheel)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        return {"version": wheel.name, "missing": [f"import failed: {done.stderr.strip()[-400:]}"]}
    return json.loads(done.stdout)


def check_cuda(wheels: list[Path]) -> list[str]:
    """CUDA names that our code uses and the bindings have not."""
    with tempfile.TemporaryDirectory() as name:
        for wheel in wheels:
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(name)
        sys.path.insert(0, name)
        from cuda.bindings import runtime

        spaces = (
            runtime,
            runtime.cudaMemcpyKind,
            runtime.cudaStreamCaptureMode,
            runtime.cudaError_t,
        )
        names = sorted(used_cuda_names())
        return [n for n in names if not any(hasattr(space, n) for space in spaces)]


def main() -> int:
    """Check every wheel of a folder; non-zero where a name is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wheels", type=Path, help="folder of wheels")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        with tempfile.TemporaryDirectory() as name:
            module = import_bindings(arguments.one, Path(name))
            result = {"version": module.__version__, "missing": missing_names(module)}
            exercise(module)
        sys.stdout.write(json.dumps(result))
        return 0
    wheels = sorted(arguments.wheels.glob("tensorrt_cu1*_bindings-*.whl"))
    if not wheels:
        sys.stderr.write(f"error: {arguments.wheels} holds no tensorrt-cu1x-bindings wheel.\n")
        return 2
    failed = False
    for result in map(check_wheel, wheels):
        missing = result["missing"]
        verdict = f"MISSING {', '.join(missing)}" if missing else "has them all"
        sys.stdout.write(
            f"TensorRT {result['version']}: {len(used_tensorrt_names())} names used, {verdict}\n"
        )
        failed |= bool(missing)
    cuda = [
        p
        for w in ("cuda_bindings-*.whl", "cuda_pathfinder-*.whl")
        for p in arguments.wheels.glob(w)
    ]
    if len(cuda) == 2:
        missing = check_cuda(cuda)
        verdict = f"MISSING {', '.join(missing)}" if missing else "has them all"
        sys.stdout.write(f"{cuda[0].name}: {len(used_cuda_names())} names used, {verdict}\n")
        failed |= bool(missing)
    return int(failed)


def _names(file: str, node: ast.Attribute) -> set[tuple[str, ...]]:
    chain = [node.attr]
    value = node.value
    while isinstance(value, ast.Attribute):
        chain.insert(0, value.attr)
        value = value.value
    if isinstance(value, ast.Name) and value.id == "trt":
        return {tuple(chain)}
    owner = chain[-2] if len(chain) > 1 else value.id if isinstance(value, ast.Name) else None
    if owner in CLASS_OF and (file, owner) not in NOT_TENSORRT:
        return {(CLASS_OF[owner], chain[-1])}
    called = (
        value.func.attr
        if isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute)
        else None
    )
    if called in RESULT_CLASS:
        return {(RESULT_CLASS[called], chain[-1])}
    return set()


def _has(module: ModuleType, path: tuple[str, ...]) -> bool:
    at: object = module
    for name in path:
        if not hasattr(at, name):
            return False
        at = getattr(at, name)
    return True


def _strings(tree: ast.AST) -> set[str]:
    constants = (n.value for n in ast.walk(tree) if isinstance(n, ast.Constant))
    return {value for value in constants if isinstance(value, str) and value.isidentifier()}


if __name__ == "__main__":
    sys.exit(main())
