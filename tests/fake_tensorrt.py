"""A stand-in for TensorRT: our side of it runs without a GPU. CUDA's is in `fake_cuda.py`.

The builder keeps the ONNX graph as its "engine", and the execution context runs it on ONNX Runtime,
at the shapes that were set and on the addresses that were bound. Only names of the real
modules are used; `check_tensorrt_api.py` looks them up.
"""

import base64
import enum
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
from fake_cuda import FakeCuda
from onnx import helper
from toy_bundle import toy_model, write_toy_bundle

from export.bev_pool_onnx import attach_body
from perception.model_card import ModelCard


class FakeTensorrt(ModuleType):
    """A module `tensorrt` that records what it is asked."""

    def __init__(self, version: str, cuda: FakeCuda) -> None:
        super().__init__("tensorrt")
        self.__version__ = version
        self.cuda = cuda
        self.calls: list[tuple[str, tuple]] = []
        self.fails: set[str] = set()
        """What is to go wrong: parse, build, deserialize, load_library, creator, capture, run."""
        self.twist: Any = None
        """Changes the outputs by name before they are written, as a wrong kernel would."""
        self.libraries: list[str] = []
        self.ILogger = Logger
        self.MemoryPoolType = enum.Enum("MemoryPoolType", ["WORKSPACE"])
        self.TensorIOMode = enum.Enum("TensorIOMode", ["INPUT", "OUTPUT"])
        self.BuilderFlag = enum.Enum("BuilderFlag", ["TF32"])
        self.NetworkDefinitionCreationFlag = enum.IntEnum(
            "NetworkDefinitionCreationFlag", {"STRONGLY_TYPED": 1}
        )
        for cls in (Builder, OnnxParser, Runtime):
            setattr(self, cls.__name__, self._bound(cls))
        self.registry = IPluginRegistry(self)

    def _bound(self, cls: type) -> Any:
        return lambda *arguments: cls(self, *arguments)

    def get_plugin_registry(self) -> "IPluginRegistry":
        return self.registry

    def nptype(self, kind: Any) -> Any:
        return kind

    def record(self, name: str, *arguments: Any) -> None:
        self.calls.append((name, arguments))


class Logger:
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    def log(self, severity: int, message: str) -> None:
        raise NotImplementedError


class IPluginRegistry:
    def __init__(self, trt: FakeTensorrt) -> None:
        self.trt = trt

    def load_library(self, plugin_path: str) -> object | None:
        self.trt.record("load_library", plugin_path)
        if "load_library" in self.trt.fails:
            return None
        self.trt.libraries.append(plugin_path)
        return object()

    def get_creator(self, kind: str, version: str, plugin_namespace: str) -> object | None:
        known = self.trt.libraries and "creator" not in self.trt.fails
        return object() if known and plugin_namespace == "perception" else None


class Builder:
    def __init__(self, trt: FakeTensorrt, logger: Any) -> None:
        assert isinstance(logger, Logger)
        logger.log(Logger.WARNING, "a message of the builder")
        self.trt = trt

    def create_network(self, flags: int) -> SimpleNamespace:
        self.trt.record("create_network", flags)
        return SimpleNamespace(model=None)

    def create_builder_config(self) -> "IBuilderConfig":
        return IBuilderConfig(self.trt)

    def create_optimization_profile(self) -> "IOptimizationProfile":
        return IOptimizationProfile()

    def build_serialized_network(self, network: Any, config: "IBuilderConfig") -> bytes | None:
        if "build" in self.trt.fails:
            return None
        self.trt.record("build_serialized_network", network.model)
        content = {
            "profile": config.profile.shapes if config.profile else {},
            "onnx": base64.b64encode(network.model.SerializeToString()).decode(),
        }
        return json.dumps(content).encode()


class IBuilderConfig:
    def __init__(self, trt: FakeTensorrt) -> None:
        self.trt = trt
        self.profile: IOptimizationProfile | None = None
        self.cache: ITimingCache | None = None

    def set_memory_pool_limit(self, pool: Any, size: int) -> None:
        self.trt.record("set_memory_pool_limit", pool.name, size)

    def set_flag(self, flag: Any) -> None:
        self.trt.record("set_flag", flag.name)

    def clear_flag(self, flag: Any) -> None:
        self.trt.record("clear_flag", flag.name)

    def add_optimization_profile(self, profile: "IOptimizationProfile") -> int:
        self.profile = profile
        return -1 if "profile" in self.trt.fails else 0

    def create_timing_cache(self, content: bytes) -> "ITimingCache":
        return ITimingCache(content)

    def set_timing_cache(self, cache: "ITimingCache", ignore_mismatch: bool) -> bool:
        self.trt.record("set_timing_cache", cache.content, ignore_mismatch)
        if cache.content.startswith(b"foreign"):
            return False
        self.cache = cache
        return True

    def get_timing_cache(self) -> "ITimingCache | None":
        return self.cache


class ITimingCache:
    def __init__(self, content: bytes) -> None:
        self.content = content

    def serialize(self) -> bytes:
        return self.content + b"timed;"


class IOptimizationProfile:
    def __init__(self) -> None:
        self.shapes: dict[str, list[tuple[int, ...]]] = {}

    def set_shape(self, name: str, low: tuple, usual: tuple, high: tuple) -> None:
        self.shapes[name] = [low, usual, high]


class ParserError:
    def desc(self) -> str:
        return "no importer for this node\nsecond line"


class OnnxParser:
    def __init__(self, trt: FakeTensorrt, network: Any, logger: Any) -> None:
        self.trt, self.network = trt, network
        self.num_errors = 0

    def parse(self, model: bytes) -> bool:
        if "parse" in self.trt.fails:
            self.num_errors = 2
            return False
        self.network.model = onnx.load_from_string(model)
        return True

    def get_error(self, index: int) -> ParserError:
        return ParserError()


class Runtime:
    def __init__(self, trt: FakeTensorrt, logger: Any) -> None:
        self.trt = trt

    def deserialize_cuda_engine(self, plan: bytes) -> "ICudaEngine | None":
        return None if "deserialize" in self.trt.fails else ICudaEngine(self.trt, json.loads(plan))


class ICudaEngine:
    def __init__(self, trt: FakeTensorrt, content: dict) -> None:
        self.trt, self.profile = trt, content["profile"]
        self.model = onnx.load_from_string(base64.b64decode(content["onnx"]))
        graph = self.model.graph
        self.tensors = {tensor.name: tensor for tensor in (*graph.input, *graph.output)}
        self.inputs = [tensor.name for tensor in graph.input]

    @property
    def num_io_tensors(self) -> int:
        return len(self.tensors)

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_mode(self, name: str) -> Any:
        modes = self.trt.TensorIOMode
        return modes.INPUT if name in self.inputs else modes.OUTPUT

    def get_tensor_shape(self, name: str) -> list[int]:
        dims = self.tensors[name].type.tensor_type.shape.dim
        return [dim.dim_value if dim.HasField("dim_value") else -1 for dim in dims]

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        assert profile_index == 0
        return self.profile[name]

    def get_tensor_dtype(self, name: str) -> Any:
        kind = self.tensors[name].type.tensor_type.elem_type
        return helper.tensor_dtype_to_np_dtype(kind)

    def create_execution_context(self) -> "IExecutionContext":
        return IExecutionContext(self)


class IExecutionContext:
    def __init__(self, engine: ICudaEngine) -> None:
        self.engine = engine
        model = onnx.ModelProto()
        model.CopyFrom(engine.model)
        if any(node.op_type == "BevPool" for node in model.graph.node):
            attach_body(model)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(model.SerializeToString(), options)
        self.addresses: dict[str, int] = {}
        self.shapes = {name: tuple(engine.get_tensor_shape(name)) for name in engine.tensors}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        low, _, high = self.engine.profile[name]
        self.shapes[name] = tuple(shape)
        return all(a <= s <= b for a, s, b in zip(low, shape, high, strict=True))

    def set_tensor_address(self, name: str, memory: int) -> bool:
        assert memory
        self.addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        cuda = self.engine.trt.cuda
        stream = cuda.streams[stream_handle]
        fails = self.engine.trt.fails
        if "run" in fails or ("capture" in fails and stream.recorded is not None):
            return False
        stream.do(self._run)
        return True

    def _run(self) -> None:
        inputs = [tensor.name for tensor in self.session.get_inputs()]
        feed = {name: self._tensor(name).copy() for name in inputs}
        names = [tensor.name for tensor in self.session.get_outputs()]
        values = dict(zip(names, self.session.run(names, feed), strict=True))
        if self.engine.trt.twist is not None:
            self.engine.trt.twist(values)
        for name, value in values.items():
            self._tensor(name)[...] = value

    def _tensor(self, name: str) -> np.ndarray:
        dtype, shape = np.dtype(self.engine.get_tensor_dtype(name)), self.shapes[name]
        size = int(np.prod(shape)) * dtype.itemsize
        memory = self.engine.trt.cuda.memory(self.addresses[name], max(1, size))
        return np.frombuffer(memory, dtype, int(np.prod(shape))).reshape(shape)


def write_countable_toy(
    folder: Path, card: ModelCard | None = None, model: onnx.ModelProto | None = None
) -> Path:
    """The toy bundle, its pillars counted by the cells that have one: an engine's arrays are as
    long as they may ever be, so their length says nothing of the frame."""
    model = model or toy_model()
    nodes = model.graph.node
    at = [node.op_type for node in nodes].index("Shape")
    make = helper.make_node
    cells = [
        make("Cast", ["cell_pillar"], ["is_filled"], to=onnx.TensorProto.BOOL),
        make("Cast", ["is_filled"], ["has_pillar"], to=onnx.TensorProto.FLOAT),
        make("ReduceSum", ["has_pillar"], ["num_pillars"], keepdims=1),
    ]
    kept = [n for n in nodes if "num_pillars_int" not in (*n.input, *n.output)]
    del nodes[:]
    nodes.extend([*kept[:at], *cells, *kept[at:]])
    return write_toy_bundle(folder, card, model)


_CLASSES = (
    IPluginRegistry, Builder, IBuilderConfig, ITimingCache, IOptimizationProfile, ParserError,
    OnnxParser, Runtime, ICudaEngine, IExecutionContext,
)  # fmt: skip


def tensorrt_names() -> set[tuple[str, ...]]:
    """Names of TensorRT that the stand-in has, as paths below the module."""
    names = {
        (cls.__name__, name)
        for cls in _CLASSES
        for name, value in vars(cls).items()
        if not name.startswith("_") and (callable(value) or isinstance(value, property))
    }
    logger = {("ILogger", name) for name in vars(Logger) if not name.startswith("_")}
    enums = {
        ("MemoryPoolType", "WORKSPACE"), ("TensorIOMode", "INPUT"), ("TensorIOMode", "OUTPUT"),
        ("BuilderFlag", "TF32"), ("NetworkDefinitionCreationFlag", "STRONGLY_TYPED"),
    }  # fmt: skip
    return names | logger | enums | {("OnnxParser", "num_errors"), ("nptype",)}


def install(monkeypatch: Any, version: str = "11.4.0.106", **gpu: Any) -> FakeTensorrt:
    """Put both stand-ins where `import` finds them."""
    cuda = FakeCuda(**gpu)
    trt = FakeTensorrt(version, cuda)
    bindings = ModuleType("cuda.bindings")
    bindings.runtime = cuda  # type: ignore[attr-defined]
    for name, module in (
        ("tensorrt", trt),
        ("cuda", ModuleType("cuda")),
        ("cuda.bindings", bindings),
        ("cuda.bindings.runtime", cuda),
    ):
        monkeypatch.setitem(sys.modules, name, module)
    return trt
