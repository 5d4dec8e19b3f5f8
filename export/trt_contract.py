"""What TensorRT's ONNX parser documents to take: operators, their types and limits.

Checked before TensorRT sees the graph, and in the tests, where there is no TensorRT: a node that
breaks a rule is named in one line, instead of by a parser on a car's computer.

Source: onnx-tensorrt, docs/operators.md of release 10.1 (commit 96e78110): the oldest line that is
supported; later ones only add. Shape and index inputs may be int64 everywhere.
"""

from collections.abc import Callable, Iterator, Mapping

import onnx
from onnx import TensorProto, helper, numpy_helper

from export.precision import element_types

OPSETS = range(9, 21)
"""Versions of the standard operators that the parser knows. Source: same."""
MAX_TOP_K = 3840
"""The `k` of TopK must be below. Source: same."""
PLUGINS = frozenset({("perception", "BevPool")})
"""Nodes that a plugin of ours computes, as (domain, name)."""

_FLOAT = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16})
_NUMBER = _FLOAT | {TensorProto.INT32, TensorProto.INT64}
_ANY = _NUMBER | {TensorProto.BOOL}
PLUGIN_TYPES = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT32})
"""What our plugins take. TensorRT's plugins may have neither bool nor uint8 tensors."""

_OPERATORS = {
    _FLOAT: """Acos Acosh Asin Asinh Atan Atanh AveragePool BatchNormalization Ceil Celu Clip Conv
        ConvTranspose Cos Cosh CumSum Einsum Elu Erf Exp Floor Gemm GlobalAveragePool GlobalLpPool
        GlobalMaxPool GroupNormalization HardSigmoid HardSwish InstanceNormalization IsInf
        LayerNormalization LeakyRelu Log LogSoftmax MatMul MaxPool Pow PRelu Reciprocal ReduceL1
        ReduceL2 ReduceLogSum ReduceLogSumExp ReduceSumSquare Resize Round Selu Sigmoid Sin Sinh
        Softmax Softplus Softsign Sqrt Tan Tanh ThresholdedRelu QuantizeLinear""",
    _FLOAT - {TensorProto.BFLOAT16}: "GridSample Mish NonZero",
    _NUMBER: """Abs Add ArgMax ArgMin DepthToSpace Div Equal Gelu Greater GreaterOrEqual IsNaN
        Less LessOrEqual Max Min Mod Mul Neg Pad Range ReduceMax ReduceMean ReduceMin ReduceProd
        ReduceSum Relu ScatterElements ScatterND Sign SpaceToDepth Sub Sum TopK""",
    _ANY: """Concat Constant ConstantOfShape Expand EyeLike Flatten Gather
        GatherElements GatherND Identity OneHot Reshape Shape Size Slice Split Squeeze
        Tile Transpose Trilu Unsqueeze Where""",
    _ANY | {TensorProto.UINT8}: "Cast CastLike",
    frozenset({TensorProto.BOOL}): "And Not Or Xor",
    frozenset({TensorProto.INT8}): "DequantizeLinear",
}
OPERATOR_TYPES: Mapping[str, frozenset[int]] = {
    name: types for types, names in _OPERATORS.items() for name in names.split()
}
"""Types of each operator's data that the parser documents. Source: same."""

_DATA_INPUT = {"Where": 1}
"""Which input carries the data, where it is not the first."""
_RESIZE_MODES = frozenset(
    {"half_pixel", "pytorch_half_pixel", "tf_half_pixel_for_nn", "asymmetric", "align_corners"}
)
_INITIALIZER_INPUTS = {
    "CumSum": (1,), "Pad": (3,), "ReduceMax": (1,), "ReduceMean": (1,), "ReduceMin": (1,),
    "ReduceProd": (1,), "ReduceSum": (1,), "Slice": (3,), "Squeeze": (1,), "TopK": (1,),
    "Unsqueeze": (1,),
}  # fmt: skip
"""Inputs that must be known when the engine is built: axes, and k. Source: same."""


def violations(model: onnx.ModelProto) -> list[str]:
    """Name every rule that the graph breaks, one line each; none for a graph that may be built.

    Args:
        model: The graph as the parser will get it: without function bodies.
    """
    return list(_Checker(model).check())


class _Checker:
    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.types = element_types(model)
        self.constants = {w.name: w for w in model.graph.initializer}
        for node in model.graph.node:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                self.constants[node.output[0]] = node.attribute[0].t
        inferred = onnx.shape_inference.infer_shapes(model).graph
        infos = (*inferred.input, *inferred.output, *inferred.value_info)
        self.ranks = {
            info.name: len(info.type.tensor_type.shape.dim)
            for info in infos
            if info.type.tensor_type.HasField("shape")
        }

    def check(self) -> Iterator[str]:
        for opset in self.model.opset_import:
            if opset.domain in ("", "ai.onnx") and opset.version not in OPSETS:
                yield (
                    f"opset {opset.version} of the standard operators, the parser knows "
                    f"{OPSETS.start} to {OPSETS.stop - 1}"
                )
        if self.model.functions:
            yield f"function bodies ({', '.join(f.name for f in self.model.functions)}) are left"
        for node in self.model.graph.node:
            for fault in self._node(node):
                yield f"{node.op_type} {node.name or node.output[0]!r}: {fault}"

    def _node(self, node: onnx.NodeProto) -> Iterator[str]:
        if node.domain not in ("", "ai.onnx"):
            yield from self._plugin(node)
            return
        if any(a.type == onnx.AttributeProto.GRAPH for a in node.attribute):
            yield "nodes with a body of their own are not used here"
        allowed = OPERATOR_TYPES.get(node.op_type)
        if allowed is None:
            yield "operator is not in the parser's list"
            return
        at = _DATA_INPUT.get(node.op_type, 0)
        tensors = [*node.input[at : at + 1], *node.output[:1]]
        if node.op_type in ("Shape", "Size"):
            tensors = tensors[:1]
        for name in _data_tensors(node, tensors):
            kind = self.types.get(name)
            if kind is not None and kind not in allowed:
                yield f"{name!r} is {_type_name(kind)}, which the parser's list does not have"
        for index in _INITIALIZER_INPUTS.get(node.op_type, ()):
            if len(node.input) > index and node.input[index]:
                if node.input[index] not in self.constants:
                    yield f"input {index} ({node.input[index]!r}) must be a constant"
        limit = _LIMITS.get(node.op_type)
        if limit is not None:
            yield from limit(self, node)

    def _plugin(self, node: onnx.NodeProto) -> Iterator[str]:
        if (node.domain, node.op_type) not in PLUGINS:
            yield f"domain {node.domain!r} has no plugin of that name"
            return
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        for name, expected in (("plugin_version", b"1"), ("plugin_namespace", b"perception")):
            if attributes.get(name) != expected:
                yield f"attribute {name} is {attributes.get(name)}, expected {expected.decode()}"
        for name in (*node.input, *node.output):
            kind = self.types.get(name)
            if kind is None:
                yield f"type of {name!r} is not known"
            elif kind not in PLUGIN_TYPES:
                yield f"{name!r} is {_type_name(kind)}, plugins take float, float16 and int32"

    def attribute(self, node: onnx.NodeProto, name: str, default: object) -> object:
        """Value of an attribute, or its default."""
        for attribute in node.attribute:
            if attribute.name == name:
                value = helper.get_attribute_value(attribute)
                return value.decode() if isinstance(value, bytes) else value
        return default

    def top_k(self, node: onnx.NodeProto) -> Iterator[str]:
        """`sorted` must be 1, k below a limit."""
        if self.attribute(node, "sorted", 1) != 1:
            yield "sorted is 0, expected 1"
        k = self.constants.get(node.input[1])
        if k is not None and int(numpy_helper.to_array(k).max()) >= MAX_TOP_K:
            yield f"k is {int(numpy_helper.to_array(k).max())}, expected less than {MAX_TOP_K}"

    def grid_sample(self, node: onnx.NodeProto) -> Iterator[str]:
        """Images only."""
        if self.ranks.get(node.input[0]) != 4:
            yield f"input has {self.ranks.get(node.input[0])} axes, expected 4"

    def pool(self, node: onnx.NodeProto) -> Iterator[str]:
        """2D or 3D, without indices and dilations."""
        if self.ranks.get(node.input[0]) not in (4, 5):
            yield f"input has {self.ranks.get(node.input[0])} axes, expected 4 or 5"
        if len(node.output) > 1:
            yield "the output of indices is not supported"
        dilations = self.attribute(node, "dilations", [])
        if isinstance(dilations, list) and set(dilations) - {1}:
            yield f"dilations are {dilations}, expected ones"

    def resize(self, node: onnx.NodeProto) -> Iterator[str]:
        """Nearest or linear, the usual coordinates, no antialiasing."""
        mode = self.attribute(node, "mode", "nearest")
        where = self.attribute(node, "coordinate_transformation_mode", "half_pixel")
        policy = self.attribute(node, "keep_aspect_ratio_policy", "stretch")
        if mode not in ("nearest", "linear"):
            yield f"mode is {mode}, expected nearest or linear"
        if where not in _RESIZE_MODES or policy != "stretch":
            yield f"coordinates are {where} with policy {policy}"
        if self.attribute(node, "antialias", 0):
            yield "antialiasing is not supported"

    def scatter(self, node: onnx.NodeProto) -> Iterator[str]:
        """No sums."""
        if self.attribute(node, "reduction", "none") != "none":
            yield "reduction is not supported"

    def zero_point(self, node: onnx.NodeProto) -> Iterator[str]:
        """INT8 is symmetric, and its scale a constant."""
        if node.input[1] not in self.constants:
            yield "the scale must be a constant"
        if len(node.input) > 2 and node.input[2]:
            zero = self.constants.get(node.input[2])
            if zero is None or numpy_helper.to_array(zero).any():
                yield "the zero point must be the constant 0"
            elif zero.data_type != TensorProto.INT8:
                yield f"quantised to {_type_name(zero.data_type)}, expected int8"
        else:
            yield "has no zero point, which means uint8, expected int8"


_LIMITS: Mapping[str, Callable[[_Checker, onnx.NodeProto], Iterator[str]]] = {
    "TopK": _Checker.top_k,
    "GridSample": _Checker.grid_sample,
    "MaxPool": _Checker.pool,
    "AveragePool": _Checker.pool,
    "Resize": _Checker.resize,
    "ScatterND": _Checker.scatter,
    "ScatterElements": _Checker.scatter,
    "QuantizeLinear": _Checker.zero_point,
    "DequantizeLinear": _Checker.zero_point,
}


def _data_tensors(node: onnx.NodeProto, tensors: list[str]) -> list[str]:
    """Inputs and outputs that the list's types are about; comparisons give bool by definition."""
    gives_bool = node.op_type in (
        "Equal", "Greater", "GreaterOrEqual", "IsInf", "IsNaN", "Less", "LessOrEqual",
    )  # fmt: skip
    other = gives_bool or node.op_type in (
        "ArgMax", "ArgMin", "NonZero", "QuantizeLinear", "DequantizeLinear", "ConstantOfShape",
    )  # fmt: skip
    return [name for name in (tensors[:1] if other else tensors) if name]


def _type_name(kind: int) -> str:
    return str(TensorProto.DataType.Name(kind)).lower()
