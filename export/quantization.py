"""INT8 in the file: pairs of QuantizeLinear and DequantizeLinear round what enters a layer.

Only layers with weights are rounded (convolutions, matrix products). Norms, softmax, the BEV pool,
sigmoid, exp and decoding stay as they are, and so do the first layers, which read pixels and
metres, and the last, which feed a softmax, the pool or the decoding.

The quantiser is ONNX Runtime's. It is given the file as it was exported: its own preprocessing
would inline the body of the BEV pool.
"""

import contextlib
import io
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantType,
    create_calibrator,
    quantize_static,
    save_tensors_data,
)

from export.graph_scopes import module_scopes
from perception.model_inputs import ModelInputs

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators that are rounded where their second input is a weight."""

BARRIERS = ("BevPool", "Softmax")
"""What feeds these is a last layer: their inputs are never rounded. Source: design notes on INT8
BEV networks; a depth distribution has its mass in few of many bins."""

NUM_BINS = {"percentile": 2048, "entropy": 1024}
"""Bins of a tensor's histogram. With ONNX Runtime's default of 128 the entropy method has only one
range to choose. Source: 2048 is NVIDIA's; half as many take a quarter of the time (measured)."""

IntegerPrecision = Literal["int8", "uint8"]
Method = Literal["percentile", "entropy"]


@dataclass(frozen=True, kw_only=True)
class QuantizationOptions:
    """How a graph is quantised."""

    precision: IntegerPrecision = "int8"
    """Of what enters a layer. int8: symmetric, which TensorRT asks for. uint8: with a zero point,
    which ONNX Runtime's CPU kernels are written for. Weights are int8 per channel in both."""
    method: Method = "percentile"
    """How a tensor's range is chosen. The full range is no choice: single cells of a BEV map are
    far above all others."""
    percentile: float = 99.99
    """Share of a tensor's values that its range holds [%]; for the method of that name."""

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        if not 50.0 < self.percentile <= 100.0:
            raise ValueError(
                f"percentile is {self.percentile}, expected more than 50 and up to 100"
            )


class Quantizer:
    """Ranges of a graph's tensors, measured once, and quantised copies for any choice of layers.

    Use it in a `with` block: the ranges lie in a temporary file, as ONNX Runtime wants them.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        frames: Sequence[ModelInputs],
        options: QuantizationOptions = QuantizationOptions(),
    ) -> None:
        """Measure the ranges.

        Args:
            model: The exported graph, in fp32.
            frames: What the network will see, at least one; tens are enough.
            options: How it is quantised.
        """
        self._options = options
        self._folder = tempfile.TemporaryDirectory(prefix="quantize.")
        self._model_path = Path(self._folder.name) / "model.onnx"
        try:
            onnx.save(model, self._model_path)
            with _quiet():
                self._calibrate(frames)
        except BaseException:  # nobody can enter it, so nobody would leave it
            self._folder.cleanup()
            raise

    def __enter__(self) -> "Quantizer":
        """Give the quantiser."""
        return self

    def __exit__(self, *error: object) -> None:
        """Remove the ranges."""
        self._folder.cleanup()

    def quantize(self, layers: Sequence[str]) -> onnx.ModelProto:
        """Copy of the graph in which these layers, by node name, are rounded."""
        path = Path(self._folder.name) / "quantized.onnx"
        with _quiet():
            quantize_static(
                self._model_path,
                path,
                calibration_cache_path=self._ranges_path,
                calibrate_method=self._method,
                per_channel=True,
                activation_type=QuantType.QInt8 if self._is_symmetric else QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                op_types_to_quantize=list(WEIGHTED),
                nodes_to_quantize=list(layers),
                extra_options=self._extra_options(),
            )
        return onnx.load(path)

    @property
    def _is_symmetric(self) -> bool:
        return self._options.precision == "int8"

    @property
    def _method(self) -> CalibrationMethod:
        is_entropy = self._options.method == "entropy"
        return CalibrationMethod.Entropy if is_entropy else CalibrationMethod.Percentile

    @property
    def _ranges_path(self) -> Path:
        return Path(self._folder.name) / "ranges.json"

    def _extra_options(self) -> dict[str, Any]:
        """Biases stay in fp32, as TensorRT wants them.

        Symmetric: what leaves a layer is not rounded, only what enters the next. So a ReLU between
        two layers comes before the rounding, and TensorRT fuses it into the first. With a zero
        point ONNX Runtime drops the ReLU: the range's low end is 0.
        """
        if not self._is_symmetric:
            return {"QuantizeBias": False}
        return {
            "QuantizeBias": False,
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "OpTypesToExcludeOutputQuantization": list(WEIGHTED),
        }

    def _calibrate(self, frames: Sequence[ModelInputs]) -> None:
        calibrator = create_calibrator(
            self._model_path,
            list(WEIGHTED),
            augmented_model_path=str(Path(self._folder.name) / "augmented.onnx"),
            calibrate_method=self._method,
            extra_options={
                "num_bins": NUM_BINS[self._options.method],
                "percentile": self._options.percentile,
            },
        )
        # one by one: the number of pillars differs, and one frame's tensors fill enough memory
        for frame in frames:
            calibrator.collect_data(_OneFrame(frame))
        save_tensors_data(calibrator.compute_data(), self._ranges_path)


class _OneFrame(CalibrationDataReader):
    """What ONNX Runtime reads a single frame from."""

    def __init__(self, frame: ModelInputs) -> None:
        self._feeds: Iterator[dict[str, Any]] = iter([frame.tensors])

    def get_next(self) -> dict[str, Any] | None:
        return next(self._feeds, None)


def inner_layers(model: onnx.ModelProto, measured: Sequence[str]) -> tuple[str, ...]:
    """Layers that may be rounded, by node name, in the graph's order.

    Args:
        model: The exported graph.
        measured: Values in which the harm of rounding is seen. Layers that none of them depends on
            are left alone: nobody could tell what rounding does to them.
    """
    nodes = model.graph.node
    weights = {weight.name for weight in model.graph.initializer}
    weighted = [n for n in nodes if n.op_type in WEIGHTED and n.input[1] in weights]
    names = {node.name for node in weighted}
    after_layer: set[str] = set()  # values that some layer has made
    for node in nodes:
        if node.name in names or any(value in after_layer for value in node.input):
            after_layer.update(node.output)
    before_layer: set[str] = set()  # values that some layer reads without a barrier between
    seen = set(measured)  # values that a measured one depends on
    for node in reversed(nodes):
        if any(value in seen for value in node.output):
            seen.update(node.input)
        is_passed = any(value in before_layer for value in node.output)
        if node.name in names or (is_passed and node.op_type not in BARRIERS):
            before_layer.update(node.input)
    return tuple(
        node.name
        for node in weighted
        if node.input[0] in after_layer and node.output[0] in before_layer & seen
    )


def layer_groups(model: onnx.ModelProto, layers: Sequence[str]) -> Mapping[str, tuple[str, ...]]:
    """Layers by the part of the network they are in: a stage of a backbone, a part of a module."""
    groups: dict[str, list[str]] = {}
    wanted = set(layers)
    for node in model.graph.node:
        if node.name in wanted:
            groups.setdefault(_group(node), []).append(node.name)
    return {group: tuple(names) for group, names in groups.items()}


def _group(node: onnx.NodeProto) -> str:
    """Such as `view_transform.smooth`, or `image_encoder.backbone.net.encoder.stages.2`."""
    scopes = [scope.removeprefix("detector.") for scope in module_scopes(node)]
    inner = [scope for scope in scopes if scope.count(".") >= 1]
    if not inner:
        return scopes[-1] if scopes else "unknown"
    if not inner[0].endswith(".backbone"):
        return inner[0]
    stages = [scope for scope in inner if scope.split(".")[-2] in ("stages", "layers")]
    return stages[0] if stages else f"{inner[0]} (stem)"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """ONNX Runtime's quantiser prints its progress, and warns that it was not preprocessed."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        root.setLevel(level)
