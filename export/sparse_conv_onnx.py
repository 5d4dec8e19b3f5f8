"""Sparse 3D convolution in ONNX: one node `perception::SparseConv` over a neighbour table.

The model carries a function body for the node, made of Gather and MatMul, which every inference
engine has; a native kernel may be registered for the node and takes precedence. Tables:
`perception.geometry.sparse_tables`.
"""

# mypy: ignore-errors
# an onnxscript function is ONNX in the clothes of Python

import onnx
import onnx.inliner
import onnxscript
from onnx.defs import OpSchema
from onnxscript import opset20 as op

from export.bev_pool_onnx import DOMAIN, OPSET

NAME = "SparseConv"

perception = onnxscript.values.Opset(DOMAIN, 1)


def register_schema() -> None:
    """Tell the exporter what the node looks like; harmless when called again."""
    if onnx.defs.has(NAME, domain=DOMAIN):
        return
    parameter = OpSchema.FormalParameter
    schema = OpSchema(
        NAME,
        DOMAIN,
        1,
        doc="Sum over the kernel's offsets k of x[table[:, k] - 1] @ weight[k], plus the bias.",
        inputs=[
            parameter("x", "T", "[n_in, c_in], features of the input's rows"),
            parameter("table", "I", "[n_out, k], row of x counted from 1; 0 where nothing is"),
            parameter("weight", "T", "[k, c_in, c_out]"),
            parameter("bias", "T", "[c_out]"),
        ],
        outputs=[parameter("y", "T", "[n_out, c_out]")],
        type_constraints=[
            ("T", ["tensor(float)", "tensor(float16)"], "Element type of features and weights."),
            ("I", ["tensor(int32)"], "Element type of tables."),
        ],
    )
    schema.set_type_and_shape_inference_function(_infer_shape)
    onnx.defs.register_schema(schema)


def sparse_conv_node(x, table, weight, bias):
    """Translate `torch.ops.perception.sparse_conv` for `torch.onnx.export`."""
    return perception.SparseConv(x, table, weight, bias)


@onnxscript.script(perception, default_opset=op)
def SparseConv(x, table, weight, bias):  # noqa: N802, D103
    one = op.Constant(value_ints=[1])
    channels_in = op.Shape(x, start=1)
    num_offsets = op.Shape(weight, start=0, end=1)
    width = op.Mul(num_offsets, channels_in)
    zero = op.CastLike(op.Constant(value_float=0.0), x)
    nothing = op.Expand(zero, op.Concat(one, channels_in, axis=0))
    seen = op.Gather(op.Concat(nothing, x, axis=0), table, axis=0)
    columns = op.Reshape(seen, op.Concat(op.Shape(table, end=1), width, axis=0), allowzero=1)
    matrix = op.Reshape(weight, op.Concat(width, op.Shape(bias), axis=0))
    return op.Add(op.MatMul(columns, matrix), bias)


def attach_body(model: onnx.ModelProto) -> None:
    """Add the function body to a model that uses the node."""
    function = SparseConv.to_function_proto()
    del function.opset_import[:]
    function.opset_import.append(onnx.helper.make_opsetid("", OPSET))
    model.functions.append(function)


def inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with the body in the node's place, for engines that know no functions."""
    return onnx.inliner.inline_selected_functions(model, [(DOMAIN, NAME)])


def _infer_shape(context: onnx.shape_inference.InferenceContext) -> None:
    output = onnx.TypeProto()
    output.CopyFrom(context.get_input_type(0))
    shape = output.tensor_type.shape
    del shape.dim[:]
    for source, axis in ((1, 0), (3, 0)):
        dims = context.get_input_type(source).tensor_type.shape.dim
        size = shape.dim.add()
        if len(dims) > axis:
            size.CopyFrom(dims[axis])
    context.set_output_type(0, output)
