"""TensorRT's builder: an ONNX graph in, a serialised engine out. TensorRT 10 and 11.

Networks are strongly typed: the graph says what is float16 or INT8, the builder has no say. That is
the only way in TensorRT 11, which dropped the flags FP16 and INT8, and works the same in 10.
"""

import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from perception.errors import InputError
from runtime.engines.tensorrt_engine import trt_logger


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """What the builder is told besides the graph."""

    workspace_bytes: int
    """Scratch memory that a layer may use."""
    allow_tf32: bool
    """Whether float32 products may be rounded to TF32's ten bits of fraction."""
    profile: Mapping[str, tuple[int, ...]]
    """Shape of each input with an axis that varies; the engine always runs at it."""

    @property
    def flags(self) -> tuple[str, ...]:
        """Switches in words, for the record."""
        return ("STRONGLY_TYPED", *(("TF32",) if self.allow_tf32 else ()))


@dataclass(frozen=True, kw_only=True)
class BuiltEngine:
    """What the builder made."""

    plan: bytes
    """The serialised engine."""
    timing_cache: bytes
    """Times of the kernels that were tried: makes the next build short and alike."""


def build_engine(
    trt: types.ModuleType, model: bytes, options: BuildOptions, timing_cache: bytes = b""
) -> BuiltEngine:
    """Build an engine.

    Args:
        trt: TensorRT's Python module.
        model: The ONNX graph without function bodies, serialised; plugins are loaded.
        options: What the builder is told.
        timing_cache: Of an earlier build; one of another GPU or TensorRT is left aside.

    Raises:
        InputError: TensorRT cannot parse the graph or build the engine.
    """
    logger = trt_logger(trt)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model):
        errors = [parser.get_error(index).desc() for index in range(parser.num_errors)]
        raise InputError(
            f"TensorRT {trt.__version__} cannot parse the graph "
            f"({_first_line(errors)}; {len(errors)} errors): export the bundle again, or report it."
        )
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    if options.allow_tf32:
        config.set_flag(trt.BuilderFlag.TF32)
    else:
        config.clear_flag(trt.BuilderFlag.TF32)
    _add_profile(builder, config, options.profile)
    _set_timing_cache(config, timing_cache)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise InputError(
            f"TensorRT {trt.__version__} could not build the engine (its log says why): try more "
            "--workspace, or report it with the log."
        )
    timing = config.get_timing_cache()
    return BuiltEngine(plan=bytes(plan), timing_cache=bytes(timing.serialize()) if timing else b"")


def _add_profile(builder: Any, config: Any, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """One profile whose smallest, usual and largest shapes are one."""
    if not shapes:
        return
    profile = builder.create_optimization_profile()
    for name, shape in shapes.items():
        profile.set_shape(name, shape, shape, shape)
    if config.add_optimization_profile(profile) < 0:
        raise InputError(
            f"TensorRT refuses the shapes of {', '.join(sorted(shapes))} that the model card "
            "gives: export the bundle again with this version."
        )


def _set_timing_cache(config: Any, content: bytes) -> None:
    cache = config.create_timing_cache(content)
    if cache is None or not config.set_timing_cache(cache, False):
        config.set_timing_cache(config.create_timing_cache(b""), False)


def _first_line(errors: list[str]) -> str:
    return errors[0].strip().splitlines()[0] if errors and errors[0].strip() else "no reason given"
