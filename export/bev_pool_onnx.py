"""The BEV pool in ONNX: one node `perception::BevPool` that stock ONNX Runtime can run.

The model carries a function body for the node, made of standard operators only. A native kernel
that is registered for the node takes precedence; without one the body is inlined.

The body sums each cell's points as a binary tree: points side by side in a cell are added in pairs
until one is left. Only Gather and Add touch the values, so that the result does not depend on the
number of threads. (Measured elsewhere: ScatterND with add gives different sums from run to run,
ScatterElements with add is several times slower.)
"""

import onnx
import onnxscript
from onnx.defs import OpSchema
from onnxscript import opset20 as op

DOMAIN = "perception"
NAME = "BevPool"
OPSET = 20
"""Version of the standard operators in the graph and in the body; they must agree."""

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
        doc="Sum of depth probability times image feature over the points of each BEV cell.",
        inputs=[
            parameter("depth", "T", "[cam, d, h, w], probability per depth bin"),
            parameter("feat", "T", "[cam, h, w, c]"),
            parameter("point_depth", "I", "[p], index into the flattened depth"),
            parameter("point_feat", "I", "[p], index into the flattened pixels"),
            parameter("cell_start", "I", "[g + 1], the points of cell g start here"),
        ],
        outputs=[parameter("bev", "T", "[g, c]")],
        type_constraints=[
            ("T", ["tensor(float)", "tensor(float16)"], "Element type of maps."),
            ("I", ["tensor(int32)"], "Element type of lists."),
        ],
    )
    schema.set_type_and_shape_inference_function(_infer_shape)
    onnx.defs.register_schema(schema)


def bev_pool_node(depth, feat, point_depth, point_feat, cell_start):
    """Translate `torch.ops.perception.bev_pool` for `torch.onnx.export`."""
    return perception.BevPool(depth, feat, point_depth, point_feat, cell_start)


@onnxscript.script(perception, default_opset=op)
def BevPool(depth, feat, point_depth, point_feat, cell_start):  # noqa: N802, D103
    zero = op.Constant(value_ints=[0])
    one = op.Constant(value_ints=[1])
    rest = op.Constant(value_ints=[-1])
    start = op.Cast(cell_start, to=7)
    num_cells = op.Sub(op.Shape(start), one)
    num_points = op.Shape(point_depth)
    channels = op.Shape(feat, start=-1)

    # products, sorted by cell, and a row of zeros behind them for cells without points
    weight = op.Cast(op.Gather(op.Reshape(depth, rest), point_depth), to=1)
    pixels = op.Reshape(feat, op.Concat(rest, channels, axis=0))
    product = op.Mul(op.Cast(op.Gather(pixels, point_feat), to=1), op.Unsqueeze(weight, one))
    nothing = op.Expand(op.Constant(value_float=0.0), op.Concat(one, channels, axis=0))
    value = op.Concat(product, nothing, axis=0)

    # rank of each point in its cell; entries behind the last cell's are padding
    ends = op.Slice(start, one, op.Shape(start))
    marks = op.ScatterElements(
        op.Expand(zero, num_points + one),
        ends,
        op.Expand(one, num_cells),
        axis=0,
        reduction="add",
    )
    cell = op.Slice(op.CumSum(marks, op.Constant(value_int=0)), zero, num_points)
    place = op.Squeeze(op.NonZero(op.Expand(one, num_points)), zero)
    rank = op.Concat(op.Sub(place, op.Gather(start, cell)), zero, axis=0)

    # add neighbours in pairs until every cell has one row left
    two = op.Constant(value_int=2)
    go_on = op.Greater(op.ReduceMax(rank, keepdims=0), op.Constant(value_int=0))
    while go_on:
        last = op.Sub(op.Size(rank), op.Constant(value_int=1))
        even = op.Equal(op.Mod(rank, two), op.Constant(value_int=0))
        left = op.Squeeze(op.NonZero(even), op.Constant(value_ints=[0]))
        right = op.Min(op.Add(left, op.Constant(value_int=1)), last)
        rank_left = op.Gather(rank, left)
        paired = op.Greater(op.Gather(rank, right), rank_left)
        # a row without a partner takes the row of zeros, which stays the last one
        value = op.Add(op.Gather(value, left), op.Gather(value, op.Where(paired, right, last)))
        rank = op.Div(rank_left, two)
        go_on = op.Greater(op.ReduceMax(rank, keepdims=0), op.Constant(value_int=0))

    # the rows that are left belong to the cells with points, in order; the last row is the zeros
    has_points = op.Greater(ends, op.Slice(start, zero, num_cells))
    row = op.Sub(op.CumSum(op.Cast(has_points, to=7), op.Constant(value_int=0)), one)
    empty_row = op.Sub(op.Shape(value, start=0, end=1), one)
    return op.CastLike(op.Gather(value, op.Where(has_points, row, empty_row)), feat)


def attach_body(model: onnx.ModelProto) -> None:
    """Add the function body to a model that uses the node."""
    function = BevPool.to_function_proto()
    del function.opset_import[:]
    function.opset_import.append(onnx.helper.make_opsetid("", OPSET))
    model.functions.append(function)


def _infer_shape(context: onnx.shape_inference.InferenceContext) -> None:
    output = onnx.TypeProto()
    output.CopyFrom(context.get_input_type(1))
    feat = context.get_input_type(1).tensor_type.shape.dim
    start = context.get_input_type(4).tensor_type.shape.dim
    shape = output.tensor_type.shape
    del shape.dim[:]
    cells = shape.dim.add()
    if len(start) == 1 and start[0].HasField("dim_value"):
        cells.dim_value = start[0].dim_value - 1
    channels = shape.dim.add()
    if len(feat) == 4:
        channels.CopyFrom(feat[3])
    context.set_output_type(0, output)
