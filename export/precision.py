"""A graph in half precision: float16 from the first convolution to the last, float32 around it.

    pixels, metres --> float32 --> [Conv ... BevPool ... MatMul ... Conv] --> float32 --> boxes
                     (reading)                  float16                      (decoding)

Precision is written into the file as casts, because TensorRT 11 has no other way to ask for it
(networks are strongly typed) and TensorRT 10 builds the same file.
"""

from collections.abc import Iterable

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from perception.errors import InputError

HEAVY = frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm"})
"""Where time goes. Nodes of other domains (the BEV pool, sparse convolutions) count as well: they
take half and add up in float32."""

FLOAT32_OPERATORS = frozenset(
    {
        "Softmax", "LogSoftmax", "LayerNormalization", "InstanceNormalization",
        "GroupNormalization", "RMSNormalization", "LpNormalization", "ReduceMean", "ReduceL2",
        "ReduceSumSquare", "ReduceLogSumExp", "CumSum", "Exp", "Log", "Pow", "Sqrt", "Reciprocal",
        "Sigmoid", "Softplus", "Atan", "Sin", "Cos", "TopK", "GridSample", "Range", "OneHot",
        "QuantizeLinear", "DequantizeLinear",
    }
)  # fmt: skip
"""Stay in float32 wherever they are: sums of many terms, large factors, choices, coordinates.
Source: ours; half norms and softmax are known to overflow in engines without a word (CUDA-BEVFusion
issue 240, TensorRT issue 4837)."""

FLOAT32_INPUTS = {"Resize": (1, 2)}
"""Inputs that are float32 by definition. Source: ONNX, Resize: scales are tensor(float)."""

EXACT_IN_HALF = frozenset({"camera_mask", "lidar_mask"})
"""Graph inputs that hold only 0 and 1; all others hold metres, which half rounds to centimetres."""

HALF_MAX = float(np.finfo(np.float16).max)
INTEGERS = frozenset(
    {TensorProto.INT8, TensorProto.INT16, TensorProto.INT32, TensorProto.INT64, TensorProto.UINT8}
)


def to_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy that computes in float16 between the first and the last heavy operator.

    Inputs and outputs of the graph keep their types. What reads metres or pixels before a heavy
    operator, what decodes after the last one, and `FLOAT32_OPERATORS` stay in float32. Nodes come
    out in a valid order.

    Raises:
        InputError: The graph has a node with a body of its own (If, Loop, Scan).
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    _lift_constants(result.graph)
    writer = _HalfWriter(result)
    writer.write()
    onnx.checker.check_model(result, full_check=True)
    return result


class _HalfWriter:
    """Rewrites one graph; a tensor `t` that is needed as half has a second name `t_half`."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.graph = model.graph
        self.types = element_types(model)
        self.weights = {weight.name: weight for weight in self.graph.initializer}
        self.exact: set[str] = set()
        """Float tensors that hold coordinates or times and have met no heavy operator yet."""
        self.is_half: set[str] = set()
        """Tensors that only exist as half, under their second name."""
        self.cast: set[str] = set()
        """Names that a cast has made already."""
        self.nodes: list[onnx.NodeProto] = []

    def write(self) -> None:
        outputs = {output.name for output in self.graph.output}
        feeds_heavy = _feeding_heavy(self.graph.node)
        inputs = {tensor.name for tensor in self.graph.input} - EXACT_IN_HALF
        self.exact = {name for name in inputs if self._is_float(name)}
        for node in self.graph.node:
            if any(a.type == onnx.AttributeProto.GRAPH for a in node.attribute):
                raise InputError(
                    f"Node {node.name!r} ({node.op_type}) has a body, which has no half form: "
                    "export the network without it, or build with --precision fp32."
                )
            if self._wants_half(node, feeds_heavy):
                self._write_half(node)
            else:
                self._write_float(node)
        for name in sorted(outputs & self.is_half):
            self._as_float(name)
        del self.graph.node[:]
        self.graph.node.extend(self.nodes)
        self._write_types()
        self._drop_unused_weights()

    def _wants_half(self, node: onnx.NodeProto, feeds_heavy: set[str]) -> bool:
        """Decide for one node, and pass on whether its outputs are exact."""
        floats = [name for name in node.input if self._is_float(name)]
        if _is_heavy(node):
            return all(self._fits(name) for name in floats)
        from_integers = node.op_type == "Cast" and self.types.get(node.input[0]) in INTEGERS
        if from_integers or any(name in self.exact for name in node.input):
            self.exact.update(name for name in node.output if self._is_float(name))
            return False
        return (
            node.op_type not in FLOAT32_OPERATORS
            and any(self._is_float(name) for name in (*node.input, *node.output))
            and node.output[0] in feeds_heavy
            and (bool(floats) or node.op_type == "Cast")
            and all(self._fits(name) for name in floats)
        )

    def _is_float(self, name: str) -> bool:
        return self.types.get(name) == TensorProto.FLOAT

    def _fits(self, name: str) -> bool:
        """Whether half can hold a weight; activations are taken to."""
        if name not in self.weights:
            return True
        values = numpy_helper.to_array(self.weights[name])
        return not np.any(np.isfinite(values) & (np.abs(values) > HALF_MAX))

    def _write_half(self, node: onnx.NodeProto) -> None:
        kept = FLOAT32_INPUTS.get(node.op_type, ())
        new = onnx.NodeProto()
        new.CopyFrom(node)
        for index, name in enumerate(node.input):
            if self._is_float(name):
                new.input[index] = self._as_float(name) if index in kept else self._as_half(name)
        for index, name in enumerate(node.output):
            if self._is_float(name):
                new.output[index] = f"{name}_half"
                self.is_half.add(name)
        for attribute in new.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == 1:
                attribute.i = TensorProto.FLOAT16
        self.nodes.append(new)

    def _write_float(self, node: onnx.NodeProto) -> None:
        for name in node.input:
            if name in self.is_half:
                self._as_float(name)
        self.nodes.append(node)

    def _as_half(self, name: str) -> str:
        half = f"{name}_half"
        if name not in self.is_half and half not in self.cast:
            self.cast.add(half)
            if name in self.weights:
                values = numpy_helper.to_array(self.weights[name]).astype(np.float16)
                self.graph.initializer.append(numpy_helper.from_array(values, half))
            else:
                self._cast(name, half, TensorProto.FLOAT16)
        return half

    def _as_float(self, name: str) -> str:
        if name in self.is_half and name not in self.cast:
            self.cast.add(name)
            self._cast(f"{name}_half", name, TensorProto.FLOAT)
        return name

    def _cast(self, source: str, target: str, to: int) -> None:
        self.nodes.append(helper.make_node("Cast", [source], [target], f"cast_{target}", to=to))

    def _write_types(self) -> None:
        """Types of the tensors that are half now; what was known of their shapes stays known."""
        known = {info.name: info for info in self.graph.value_info}
        for name in sorted(self.is_half & set(known)):
            half = self.graph.value_info.add()
            half.CopyFrom(known[name])
            half.name = f"{name}_half"
            half.type.tensor_type.elem_type = TensorProto.FLOAT16
        made = {name for node in self.nodes for name in node.output}
        kept = [info for info in self.graph.value_info if info.name in made]
        del self.graph.value_info[:]
        self.graph.value_info.extend(kept)

    def _drop_unused_weights(self) -> None:
        used = {name for node in self.nodes for name in node.input}
        used |= {output.name for output in self.graph.output}
        kept = [weight for weight in self.graph.initializer if weight.name in used]
        del self.graph.initializer[:]
        self.graph.initializer.extend(kept)


def element_types(model: onnx.ModelProto) -> dict[str, int]:
    """Element type of every tensor of the graph, as far as ONNX can tell."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    infos = (*graph.input, *graph.output, *graph.value_info)
    types = {info.name: info.type.tensor_type.elem_type for info in infos}
    return types | {weight.name: weight.data_type for weight in graph.initializer}


def _is_heavy(node: onnx.NodeProto) -> bool:
    return node.op_type in HEAVY or node.domain not in ("", "ai.onnx")


def _feeding_heavy(nodes: Iterable[onnx.NodeProto]) -> set[str]:
    """Tensors that a heavy operator sees, at once or through others."""
    seen: set[str] = set()
    for node in reversed(list(nodes)):
        if _is_heavy(node) or any(name in seen for name in node.output):
            seen.update(name for name in node.input if name)
    return seen


def _lift_constants(graph: onnx.GraphProto) -> None:
    """Turn Constant nodes into weights: they are then converted once, not at every run."""
    kept = []
    for node in graph.node:
        attribute = node.attribute[0] if node.op_type == "Constant" else None
        if attribute is None or attribute.name not in ("value", "value_float", "value_floats"):
            kept.append(node)
            continue
        value = helper.get_attribute_value(attribute)
        array = (
            numpy_helper.to_array(value)
            if attribute.name == "value"
            else np.asarray(value, np.float32)
        )
        graph.initializer.append(numpy_helper.from_array(array, node.output[0]))
    del graph.node[:]
    graph.node.extend(kept)
