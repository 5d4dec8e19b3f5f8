"""Which engine runs a bundle."""

from typing import Literal, get_args

from perception.bundle import Bundle
from perception.errors import InputError
from runtime.engines.base import Engine
from runtime.engines.onnx_engine import BevPoolForm, OnnxEngine

EngineKind = Literal["onnx", "onnx_cuda", "tensorrt"]
"""ONNX Runtime on the CPU, ONNX Runtime on an NVIDIA GPU, TensorRT."""


def open_engine(
    bundle: Bundle,
    kind: EngineKind = "onnx",
    num_threads: int = 0,
    bev_pool: BevPoolForm = "auto",
) -> Engine:
    """Open a bundle with ONNX Runtime or with the TensorRT engine that was built into it.

    Args:
        bundle: Model and card.
        kind: The library.
        num_threads: Threads of ONNX Runtime; 0 for one per core.
        bev_pool: Form of the BEV pool in ONNX Runtime; TensorRT has its plugin.

    Raises:
        InputError: There is no such engine, it has no such setting, or it refuses the bundle.
    """
    if kind not in get_args(EngineKind):
        raise InputError(f"Engine is {kind!r}, expected one of {', '.join(get_args(EngineKind))}.")
    if kind != "tensorrt":
        return OnnxEngine(bundle, num_threads, bev_pool, "cuda" if kind == "onnx_cuda" else "cpu")
    for name, got, default in (("threads", num_threads, 0), ("bev_pool", bev_pool, "auto")):
        if got != default:
            raise InputError(
                f"{name} is {got!r}, which is a setting of ONNX Runtime: leave it at {default!r} "
                "for TensorRT."
            )
    from runtime.engines.tensorrt_engine import TensorrtEngine

    return TensorrtEngine(bundle)
