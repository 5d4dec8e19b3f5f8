"""The exported graph on TensorRT: pinned buffers, one CUDA graph per frame, no torch.

    numpy --> pinned --> device --> [ the engine --> pinned outputs ] --> numpy
            rows in use           `-------- one CUDA graph -------'

Shapes are those of the profile's maximum and never change, so that one graph serves all frames. Of
inputs with a varying axis only the rows in use are copied; behind them lies what an earlier frame
left. That is legal by definition: no cell's list reaches the padding of `pool_runs`, nothing refers
to a pillar, or to a row of a sparse table, that the frame does not have, and rows do not see one
another but through such tables.
"""

import ctypes
import logging
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from perception.bundle import Bundle
from perception.errors import InputError
from perception.model_card import ModelCard, Precision
from perception.model_inputs import ModelInputs
from runtime.engines.base import OUTPUT_NAMES, EngineError, ModelOutputs, check_pool_table
from runtime.engines.engine_manifest import Platform, file_sha256, load_engine

PLUGIN = ("BevPool", "1", "perception")
"""Name, version and namespace of the pool's plugin."""

_LOG = logging.getLogger(__name__)

_LOADED: dict[tuple[str, str, str], str] = {}
"""Digest of the library that this process has loaded, by plugin: a process keeps its plugins."""


class MissingPartError(InputError):
    """TensorRT, its CUDA bindings or a GPU is not on this computer."""


class TensorrtEngine:
    """A bundle's engine, built by `export/to_trt.py` on this computer."""

    def __init__(self, bundle: Bundle, plugin: Path | None = None) -> None:
        """Load the engine, allocate its buffers and record the CUDA graph.

        Args:
            bundle: The bundle; only an engine that its manifest lists is loaded.
            plugin: Plugin library in place of the bundle's own; must be the same file.

        Raises:
            MissingPartError: TensorRT, cuda-python or a GPU is missing.
            InputError: There is no engine, it is damaged, stale or of another computer, or the GPU
                has no room for it.
        """
        trt = import_tensorrt()
        self._cuda = Cuda()
        here = self._cuda.platform(trt.__version__)
        checked = load_engine(bundle, here, plugin)
        self._logger = trt_logger(trt)
        if checked.plugin is not None:
            load_plugin(trt, checked.plugin)
        trt_runtime = trt.Runtime(self._logger)
        engine = trt_runtime.deserialize_cuda_engine(checked.plan)
        if engine is None:
            raise InputError(
                f"TensorRT {trt.__version__} cannot read the engine of {bundle.path}: build it "
                f"again with 'python export/to_trt.py {bundle.path}'."
            )
        self._spec = bundle.card.inputs
        self.precision: Precision = checked.manifest.precision
        self._runtime, self._engine = trt_runtime, engine  # the context needs both alive
        self._context: Any = None
        self._inputs: dict[str, _Buffer] = {}
        self._outputs: dict[str, _Buffer] = {}
        self._graph: Any = None
        try:
            self._set_up(trt, bundle.card)
        except EngineError as error:
            self.close()
            raise InputError(
                f"The engine of {bundle.path} cannot be set up on {here.gpu_name} ({error}): end "
                "what else uses the GPU's memory, or build the engine again."
            ) from error
        except BaseException:
            self.close()
            raise
        form = "CUDA graph" if self._graph is not None else "no CUDA graph"
        self.description = (
            f"TensorRT {here.tensorrt}, {checked.manifest.precision}, {here.gpu_name}, {form}"
        )

    def input_buffer(self, name: str) -> np.ndarray | None:
        """Pinned memory of an input of fixed size; None for another, and once it is closed."""
        buffer = self._inputs.get(name)
        return None if buffer is None or buffer.varies else buffer.host

    def run(self, inputs: ModelInputs) -> ModelOutputs:
        """Compute one frame.

        Raises:
            EngineError: A tensor is not of the engine's type or shape, the pool table points
                outside the feature maps, CUDA failed, or the engine is closed.
        """
        if self._context is None:
            raise EngineError("the engine is closed")
        check_pool_table(inputs, self._spec)
        tensors = inputs.tensors
        if not set(self._inputs) <= set(tensors):
            missing = sorted(set(self._inputs) - set(tensors))
            raise EngineError(f"the frame lacks the inputs {', '.join(missing)}")
        for buffer in self._inputs.values():
            self._upload(buffer, tensors[buffer.name])
        if self._graph is None:
            self._enqueue()
        else:
            self._cuda.call("cudaGraphLaunch", self._graph, self._stream)
        self._cuda.call("cudaStreamSynchronize", self._stream)
        return ModelOutputs(**{name: self._outputs[name].host.copy() for name in OUTPUT_NAMES})

    def close(self) -> None:
        """Give everything on the GPU and all pinned memory back."""
        self._cuda.release()
        self._inputs, self._outputs, self._graph = {}, {}, None
        self._context = self._engine = self._runtime = None

    def _set_up(self, trt: types.ModuleType, card: ModelCard) -> None:
        """Make the context, the buffers and the CUDA graph."""
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise EngineError("TensorRT could not make an execution context, see its log")
        self._stream = self._cuda.hold("cudaStreamDestroy", "cudaStreamCreate")
        self._inputs, self._outputs = _make_buffers(trt, self._engine, self._cuda, card)
        self._bind()
        self._enqueue()  # the first run allocates, which no graph may
        self._cuda.call("cudaStreamSynchronize", self._stream)
        try:
            self._graph = self._record()
        except EngineError as error:
            _LOG.warning("The engine runs without a CUDA graph: %s.", error)

    def _upload(self, buffer: "_Buffer", array: np.ndarray) -> None:
        fits = (
            array.dtype == buffer.host.dtype
            and array.ndim == buffer.host.ndim
            and array.shape[1:] == buffer.host.shape[1:]
            and len(array) <= len(buffer.host)
            and (buffer.varies or len(array) == len(buffer.host))
        )
        if not fits:
            raise EngineError(
                f"input {buffer.name} is {array.dtype} {list(array.shape)}, the engine takes "
                f"{buffer.host.dtype} {list(buffer.host.shape)}"
            )
        if array.ctypes.data != buffer.address:  # else it was written in place
            buffer.host[: len(array)] = array
        if array.nbytes:
            self._cuda.copy(buffer.device, buffer.address, array.nbytes, True, self._stream)

    def _bind(self) -> None:
        for buffer in (*self._inputs.values(), *self._outputs.values()):
            if buffer.varies and not self._context.set_input_shape(buffer.name, buffer.host.shape):
                raise InputError(f"TensorRT refuses shape {buffer.host.shape} of {buffer.name}.")
            self._context.set_tensor_address(buffer.name, buffer.device)

    def _enqueue(self) -> None:
        """Queue the engine and the copies of its outputs."""
        if not self._context.execute_async_v3(int(self._stream)):
            raise EngineError("TensorRT could not start the engine, see its log")
        for buffer in self._outputs.values():
            self._cuda.copy(buffer.address, buffer.device, buffer.host.nbytes, False, self._stream)

    def _record(self) -> Any:
        """The work of a frame as a CUDA graph.

        Raises:
            EngineError: The engine does not let itself record, or CUDA refuses the graph.
        """
        modes = self._cuda.runtime.cudaStreamCaptureMode
        self._cuda.call(
            "cudaStreamBeginCapture", self._stream, modes.cudaStreamCaptureModeThreadLocal
        )
        try:
            self._enqueue()
        finally:  # a stream that records does nothing else
            graph = self._cuda.hold("cudaGraphDestroy", "cudaStreamEndCapture", self._stream)
        return self._cuda.hold("cudaGraphExecDestroy", "cudaGraphInstantiate", graph, 0)


@dataclass(frozen=True, kw_only=True)
class _Buffer:
    """One tensor of the engine, in pinned memory and on the device."""

    name: str
    varies: bool
    """Whether its first axis changes from frame to frame."""
    host: np.ndarray
    address: int
    """Of the pinned memory."""
    device: int


class Cuda:
    """The few functions of the CUDA runtime that are used, with errors as exceptions."""

    def __init__(self) -> None:
        """Find a GPU.

        Raises:
            MissingPartError: There are no bindings, or no GPU with a driver.
        """
        try:
            from cuda.bindings import runtime
        except ImportError as error:
            raise MissingPartError(
                f"CUDA's Python bindings cannot be imported ({error}): install them with "
                "'pip install bev-perception[trt]'."
            ) from error
        self.runtime = runtime
        self._held: list[tuple[str, Any]] = []
        code, count = runtime.cudaGetDeviceCount()
        if code != runtime.cudaError_t.cudaSuccess or count == 0:
            raise MissingPartError(
                f"There is no usable GPU ({code.name}): TensorRT engines are built and run on the "
                "computer that has the GPU and its driver."
            )

    def call(self, name: str, *arguments: Any) -> Any:
        """Call a function of the runtime and return its result.

        Raises:
            EngineError: It failed.
        """
        error, *values = getattr(self.runtime, name)(*arguments)
        if error != self.runtime.cudaError_t.cudaSuccess:
            raise EngineError(f"{name}: {error.name}")
        return values[0] if values else None

    def hold(self, undo: str, name: str, *arguments: Any) -> Any:
        """Call, as `call`, what makes something that `release` gives back by `undo`."""
        made = self.call(name, *arguments)
        self._held.append((undo, made))
        return made

    def release(self) -> None:
        """Give back what is held, the newest first; what fails is logged."""
        while self._held:
            undo, made = self._held.pop()
            try:
                self.call(undo, made)
            except EngineError as error:
                _LOG.warning("CUDA could not give something back: %s.", error)

    def copy(self, to: int, source: int, num_bytes: int, to_device: bool, stream: Any) -> None:
        """Queue a copy between pinned memory and the device."""
        kinds = self.runtime.cudaMemcpyKind
        kind = kinds.cudaMemcpyHostToDevice if to_device else kinds.cudaMemcpyDeviceToHost
        self.call("cudaMemcpyAsync", to, source, num_bytes, kind, stream)

    def platform(self, tensorrt: str) -> Platform:
        """What engines are tied to, here.

        Raises:
            MissingPartError: The GPU does not answer.
        """
        try:
            properties = self.call("cudaGetDeviceProperties", self.call("cudaGetDevice"))
            driver = self.call("cudaDriverGetVersion")
        except EngineError as error:
            raise MissingPartError(
                f"The GPU does not answer ({error}): see with nvidia-smi whether it works."
            ) from error
        return Platform(
            tensorrt=tensorrt,
            gpu_name=properties.name.split(b"\0")[0].decode(),
            gpu_arch=f"{properties.major}.{properties.minor}",
            driver=f"{driver // 1000}.{driver % 1000 // 10}",
        )


def import_tensorrt() -> types.ModuleType:
    """TensorRT's Python module.

    Raises:
        MissingPartError: It is not installed, or not complete.
    """
    try:
        import tensorrt
    except ImportError as error:
        raise MissingPartError(
            f"TensorRT cannot be imported ({error}): install it on the computer with the GPU, with "
            "'pip install bev-perception[trt]' or from NVIDIA's JetPack."
        ) from error
    return tensorrt


def trt_logger(trt: types.ModuleType) -> Any:
    """A logger that hands TensorRT's messages to Python's logging."""
    levels = {
        trt.ILogger.INTERNAL_ERROR: logging.ERROR,
        trt.ILogger.ERROR: logging.ERROR,
        trt.ILogger.WARNING: logging.WARNING,
        trt.ILogger.INFO: logging.INFO,
    }

    class Logger(trt.ILogger):  # type: ignore[name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            _LOG.log(levels.get(severity, logging.DEBUG), "TensorRT: %s", message)

    return Logger()


def load_plugin(trt: types.ModuleType, library: Path) -> None:
    """Load a plugin library, unless the process has it, and look its creator up.

    Raises:
        InputError: The library cannot be loaded, or does not bring the pool's plugin; or the
            process has that plugin from elsewhere.
    """
    registry = trt.get_plugin_registry()
    name, version, namespace = PLUGIN
    digest = file_sha256(library)
    if registry.get_creator(*PLUGIN) is not None:
        if PLUGIN not in _LOADED:
            raise InputError(
                f"A plugin {namespace}::{name} that this runtime did not load is in the process "
                f"already: load {library} in a process of its own."
            )
        if _LOADED[PLUGIN] != digest:
            raise InputError(
                f"This process has loaded another plugin library than {library}: run engines of "
                "different plugin libraries in different processes."
            )
        return
    if registry.load_library(str(library.resolve())) is None:
        raise InputError(
            f"TensorRT cannot load the plugin library {library} (its log says why): build it for "
            "this computer, see export/plugins."
        )
    if registry.get_creator(*PLUGIN) is None:
        raise InputError(
            f"{library} brings no plugin {namespace}::{name} of version {version}: build the "
            "library of this version, see export/plugins."
        )
    _LOADED[PLUGIN] = digest


def _make_buffers(
    trt: types.ModuleType, engine: Any, cuda: Cuda, card: ModelCard
) -> tuple[dict[str, _Buffer], dict[str, _Buffer]]:
    """Allocate every tensor of an engine at its largest shape, inputs and outputs apart.

    Raises:
        InputError: The engine's tensors are not those of the model card.
    """
    specs = {tensor.name: tensor for tensor in (*card.input_tensors, *card.output_tensors)}
    inputs: dict[str, _Buffer] = {}
    outputs: dict[str, _Buffer] = {}
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        is_input = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
        if name not in (card.input_names if is_input else OUTPUT_NAMES) or name not in specs:
            raise InputError(f"The engine has a tensor {name!r}, which the model card has not.")
        shape = tuple(engine.get_tensor_shape(name))
        varies = is_input and -1 in shape
        if varies:
            shape = tuple(engine.get_tensor_profile_shape(name, 0)[2])
        dtype = np.dtype(trt.nptype(engine.get_tensor_dtype(name)))
        said = tuple(specs[name].shape)
        agrees = len(said) == len(shape) and all(
            not a.isdigit() or int(a) == b for a, b in zip(said, shape, strict=True)
        )
        if dtype.name != specs[name].dtype or not agrees:
            raise InputError(
                f"{name} of the engine is {dtype.name} {list(shape)}, the model card says "
                f"{specs[name].dtype} {list(said)}: build the engine again."
            )
        (inputs if is_input else outputs)[name] = _buffer(cuda, name, varies, shape, dtype)
    missing = sorted(set(OUTPUT_NAMES) - set(outputs))
    if missing:
        raise InputError(f"The engine has no output {', '.join(missing)}: build it again.")
    return inputs, outputs


def _buffer(
    cuda: Cuda, name: str, varies: bool, shape: tuple[int, ...], dtype: np.dtype
) -> _Buffer:
    count = int(np.prod(shape, dtype=np.int64))
    num_bytes = max(1, count * dtype.itemsize)  # TensorRT wants an address for nothing, too
    address = int(cuda.hold("cudaFreeHost", "cudaMallocHost", num_bytes))
    device = int(cuda.hold("cudaFree", "cudaMalloc", num_bytes))
    cuda.call("cudaMemset", device, 0, num_bytes)
    memory = memoryview((ctypes.c_uint8 * num_bytes).from_address(address)).cast("B")
    host = np.frombuffer(memory, dtype, count).reshape(shape)
    host[...] = 0
    return _Buffer(name=name, varies=varies, host=host, address=address, device=device)
