"""The exported graph on ONNX Runtime, on the CPU or on an NVIDIA GPU."""

import types
from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np

from perception import native
from perception.bundle import Bundle
from perception.errors import InputError
from perception.model_card import Precision, TensorSpec
from perception.model_inputs import ModelInputs
from runtime.engines.base import OUTPUT_NAMES, EngineError, ModelOutputs, check_pool_table

_DTYPE_OF_ORT = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(uint8)": "uint8",
    "tensor(int8)": "int8",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(bool)": "bool",
}
"""ONNX Runtime's element types in numpy's names. Source: ONNX Runtime, `NodeArg.type`."""


BevPoolForm = Literal["auto", "native", "function"]
"""How the BEV pool is computed: by the compiled kernel ("native"), by the standard operators that
the model file carries ("function": slower, needs nothing), or natively where that can be had."""

Provider = Literal["cpu", "cuda"]
"""Where ONNX Runtime computes. On a GPU the compiled BEV pool stays on the CPU."""

_PROVIDERS: dict[Provider, str] = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}

COMPILED = "compiled"
"""How the description of the compiled pool begins."""


class OnnxEngine:
    """A bundle's graph in an ONNX Runtime session.

    The session's inputs and outputs are compared with the model card before the first frame, so
    that a model and a card that do not belong together never run.
    """

    def __init__(
        self,
        bundle: Bundle,
        num_threads: int = 0,
        bev_pool: BevPoolForm = "auto",
        provider: Provider = "cpu",
    ) -> None:
        """Open the model.

        Args:
            bundle: Model and card.
            num_threads: Threads of one operator; 0 for one per core.
            bev_pool: Which form of the BEV pool runs; `description` names the one that does.
            provider: Where it computes; there is no silent way back to the CPU.

        Raises:
            InputError: ONNX Runtime is not installed or lacks the provider, the file is no model or
                not the card's, the compiled kernel is asked for and cannot be had, or num_threads
                is below 0.
        """
        if num_threads < 0:
            raise InputError(f"num_threads is {num_threads}, expected 0 (one per core) or more.")
        ort = _import_onnxruntime()
        _require_provider(ort, provider)
        options = ort.SessionOptions()
        pool = _register_bev_pool(options, bev_pool)
        # the compiled kernel looks at the table itself
        self._is_table_unchecked = not pool.startswith(COMPILED)
        self._spec = bundle.card.inputs
        self.precision: Precision = bundle.card.precision
        self._input_specs = bundle.card.input_tensors
        self._buffers: dict[str, np.ndarray] = {}
        options.intra_op_num_threads = num_threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Sizes change from frame to frame (points, pillars): a memory plan per size is never used
        # again. Without plans a process with the tiny network needs 216 MiB instead of 333 MiB at
        # the same speed; without the arena too, it would be a fifth slower and need 255 MiB.
        options.enable_mem_pattern = False
        # After a run its threads would spin on the cores that prepare the next frame (measured on
        # two cores: 20 ms instead of 5 ms for the pool table).
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session: Any = _open_session(ort, bundle, options, provider)
        card, path = bundle.card, bundle.model_path
        _check_tensors(
            path, "input", self._session.get_inputs(), card.input_tensors, card.input_names
        )
        _check_tensors(
            path, "output", self._session.get_outputs(), card.output_tensors, OUTPUT_NAMES
        )
        self.description = (
            f"ONNX Runtime {ort.__version__}, {provider.upper()}, {num_threads or 'all'} threads, "
            f"BEV pool: {pool}"
        )

    def input_buffer(self, name: str) -> np.ndarray | None:
        """Memory of an input of fixed size, made once: ONNX Runtime reads where numpy wrote."""
        if self._session is None:
            return None
        if name not in self._buffers:
            spec = next((spec for spec in self._input_specs if spec.name == name), None)
            if spec is None or not all(size.isdigit() for size in spec.shape):
                return None
            self._buffers[name] = np.zeros([int(size) for size in spec.shape], spec.dtype)
        return self._buffers[name]

    def run(self, inputs: ModelInputs) -> ModelOutputs:
        """Compute one frame.

        Raises:
            EngineError: ONNX Runtime could not compute it, its pool table is damaged, or the engine
                is closed.
        """
        if self._session is None:
            raise EngineError("the engine is closed")
        if self._is_table_unchecked:
            check_pool_table(inputs, self._spec)
        try:
            values = self._session.run(OUTPUT_NAMES, inputs.tensors)
        except Exception as error:  # ONNX Runtime's own exceptions share no public base class
            raise EngineError(_first_line(error)) from error
        # ONNX Runtime's int64 is C's "long long", numpy's is "long": equal, but not the same type.
        arrays = (value.view(value.dtype.name) for value in values)
        return ModelOutputs(**dict(zip(OUTPUT_NAMES, arrays, strict=True)))

    def close(self) -> None:
        """Give the session and its memory back."""
        self._session = None
        self._buffers.clear()


def _import_onnxruntime() -> types.ModuleType:
    try:
        import onnxruntime
    except ImportError as error:
        raise InputError(
            f"ONNX Runtime cannot be imported ({error}): install it with "
            "'pip install onnxruntime' in the environment that runs this."
        ) from error
    return onnxruntime


def _open_session(ort: types.ModuleType, bundle: Bundle, options: Any, provider: Provider) -> Any:
    """A session that runs where it was asked to."""
    name = _PROVIDERS[provider]
    try:
        # nodes that a GPU has no kernel for, such as the pool, go to the CPU
        session = ort.InferenceSession(
            str(bundle.model_path),
            options,
            providers=list(dict.fromkeys([name, _PROVIDERS["cpu"]])),
        )
    except Exception as error:
        raise InputError(
            f"{bundle.model_path} cannot be opened by ONNX Runtime {ort.__version__} "
            f"({_first_line(error)}): export the bundle again."
        ) from error
    started = session.get_providers()
    if name not in started:  # ONNX Runtime itself only warns
        raise InputError(
            f"ONNX Runtime could not start its {name} (it runs on {', '.join(started)}): install "
            "the driver, CUDA and cuDNN that this version of onnxruntime-gpu wants, or run on the "
            "CPU."
        )
    return session


def _require_provider(ort: types.ModuleType, provider: Provider) -> None:
    if provider not in get_args(Provider):
        raise InputError(f"provider is {provider!r}, expected {' or '.join(get_args(Provider))}.")
    if _PROVIDERS[provider] not in ort.get_available_providers():
        raise InputError(
            f"ONNX Runtime {ort.__version__} has no {_PROVIDERS[provider]}: on a computer with an "
            "NVIDIA GPU, replace the package onnxruntime by onnxruntime-gpu, or run on the CPU."
        )


def _register_bev_pool(options: Any, form: BevPoolForm) -> str:
    """Give the session the compiled kernel, if that is wanted; say which form it has.

    Args:
        options: The session's options.
        form: What was asked for.
    """
    if form not in get_args(BevPoolForm):
        raise InputError(
            f"bev_pool is {form!r}, expected one of {', '.join(get_args(BevPoolForm))}."
        )
    if form == "function":
        return "function of the model file"
    library = native.library()
    reason = native.description()
    if library is not None:
        try:
            options.register_custom_ops_library(str(library.path))
        except Exception as error:  # ONNX Runtime's own exceptions share no public base class
            reason = _first_line(error)
        else:
            return f"{COMPILED}, {library.isa}"
    if form == "native":
        raise InputError(
            f"The compiled BEV pool cannot be had ({reason}): install with a C++ compiler present, "
            "or ask for bev_pool 'auto' or 'function'."
        )
    return f"function of the model file, {reason}"


def _check_tensors(
    path: Any,
    kind: str,
    nodes: Sequence[Any],
    specs: Sequence[TensorSpec],
    names: tuple[str, ...],
) -> None:
    """Refuse a graph whose tensors are not those of the card, or not those this runtime knows.

    Args:
        path: Model file, for the message.
        kind: "input" or "output".
        nodes: The session's tensors.
        specs: The card's tensors.
        names: The names this runtime feeds or reads.
    """
    got = {node.name: node for node in nodes}
    for source, found in (("graph", set(got)), ("model card", {spec.name for spec in specs})):
        if found != set(names):
            odd = sorted(found ^ set(names))
            raise InputError(
                f"{path}: the {kind}s of the {source} differ from this runtime's in "
                f"{', '.join(odd)}: export the bundle again with this version."
            )
    for spec in specs:
        node = got[spec.name]
        dtype = _DTYPE_OF_ORT.get(node.type, node.type)
        if dtype != spec.dtype or not _same_shape(node.shape, spec.shape):
            raise InputError(
                f"{path}: {kind} {spec.name} of the graph is {dtype} {_shape_text(node.shape)}, "
                f"the model card says {spec.dtype} {_shape_text(spec.shape)}: model and card do "
                "not belong together, export the bundle again."
            )


def _same_shape(graph: Sequence[int | str | None], card: Sequence[str]) -> bool:
    """Whether the ranks agree and each size that both state is the same."""
    if len(graph) != len(card):
        return False
    pairs = zip(graph, card, strict=True)
    return all(not isinstance(g, int) or not c.isdigit() or g == int(c) for g, c in pairs)


def _shape_text(shape: Sequence[int | str | None]) -> str:
    return "[" + " ".join("?" if size is None else str(size) for size in shape) + "]"


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
