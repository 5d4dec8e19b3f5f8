"""The exported graph in the form that TensorRT's parser takes, and how large its inputs may be.

The file is the portable one; what TensorRT wants otherwise is changed in memory, without a change
of any number: the body of a node that a plugin computes goes, other bodies take their node's place;
pictures are cast to float
before they are moved about, because uint8 may only be a network's input; two logical values are
compared by Xor, because Equal takes numbers.
"""

import math
from collections.abc import Mapping

import onnx
import onnx.inliner
from onnx import TensorProto, helper

from export.precision import element_types
from export.trt_contract import PLUGINS
from perception.errors import InputError
from perception.model_card import ModelCard

_MOVES = frozenset(
    {"Unsqueeze", "Squeeze", "Reshape", "Transpose", "Flatten", "Identity", "Slice", "Gather"}
)
"""Operators that move values and compute nothing, so that a cast may come before them."""


def for_tensorrt(model: onnx.ModelProto, grid_width: int = 0) -> onnx.ModelProto:
    """Return a copy for the parser; it computes the same.

    Args:
        model: The portable graph; left as it is.
        grid_width: Cells in a row of the camera's BEV grid, for the pool's plugin: its blocks take
            squares of cells. 0 lets it guess. It changes the speed alone.
    """
    others = [(f.domain, f.name) for f in model.functions if (f.domain, f.name) not in PLUGINS]
    result = onnx.ModelProto()
    result.CopyFrom(onnx.inliner.inline_selected_functions(model, others) if others else model)
    types = element_types(result)
    del result.functions[:]
    for node in result.graph.node:
        if (node.domain, node.op_type) in PLUGINS and grid_width > 0:
            node.attribute.append(helper.make_attribute("grid_width", grid_width))
    _cast_pictures_first(result.graph, types)
    _compare_bools_by_xor(result.graph, types)
    return result


def axis_sizes(card: ModelCard) -> dict[str, int]:
    """The largest size of each axis that varies from frame to frame, by its name in the card.

    A table row is 12 bytes, and only rows in use are copied, so there is room for every frustum
    point to be a run of its own: no rig and no calibration overflows it.

    Raises:
        InputError: The card names an axis that this version does not know.
    """
    spec = card.inputs
    points = (
        len(spec.cameras) * spec.frustum.num_depths * spec.feature_height * spec.feature_width
        if spec.cameras
        else 1
    )
    known = {"runs": max(1, points), "pillars": spec.pillars.max_pillars}
    if card.sparse_levels is not None:
        known |= card.sparse_levels.axis_sizes
    words = {size for t in card.input_tensors for size in t.shape if not size.isdigit()}
    unknown = sorted(words - set(known))
    if unknown:
        raise InputError(
            f"The model card has input axes of no known limit ({', '.join(unknown)}), expected "
            f"{', '.join(known)}: export the bundle again with this version."
        )
    return {name: size for name, size in known.items() if name in words}


def input_shapes(card: ModelCard, sizes: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """Full shape of every input tensor, varying axes at their largest."""
    return {
        tensor.name: tuple(int(size) if size.isdigit() else sizes[size] for size in tensor.shape)
        for tensor in card.input_tensors
    }


def varying_inputs(card: ModelCard) -> tuple[str, ...]:
    """Names of the inputs that have an axis of varying size."""
    return tuple(t.name for t in card.input_tensors if not all(s.isdigit() for s in t.shape))


def _cast_pictures_first(graph: onnx.GraphProto, types: Mapping[str, int]) -> None:
    """Put a cast to float directly behind each uint8 input that is only moved before one."""
    moved: dict[str, str] = {}
    casts = []
    for tensor in graph.input:
        if types[tensor.name] == TensorProto.UINT8:
            moved[tensor.name] = f"{tensor.name}_float"
            casts.append(
                helper.make_node(
                    "Cast",
                    [tensor.name],
                    [moved[tensor.name]],
                    f"cast_{tensor.name}",
                    to=TensorProto.FLOAT,
                )
            )
    changed = {tensor.name for tensor in graph.input if tensor.name in moved}
    for node in graph.node:
        if not changed.intersection(node.input[:1]):
            continue
        node.input[0] = moved.get(node.input[0], node.input[0])
        if node.op_type in _MOVES:
            changed.update(node.output)
    for info in graph.value_info:
        if info.name in changed:
            info.type.tensor_type.elem_type = TensorProto.FLOAT
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def _compare_bools_by_xor(graph: onnx.GraphProto, types: Mapping[str, int]) -> None:
    nodes = []
    for node in graph.node:
        if node.op_type == "Equal" and types.get(node.input[0]) == TensorProto.BOOL:
            differs = f"{node.output[0]}_differs"
            nodes.append(helper.make_node("Xor", node.input, [differs], f"{node.name}_xor"))
            nodes.append(helper.make_node("Not", [differs], node.output, node.name))
        else:
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)


def size_text(num_bytes: int) -> str:
    """A size for people."""
    power = min(3, int(math.log(max(1, num_bytes), 1024)))
    return f"{num_bytes / 1024**power:.1f} {('B', 'KiB', 'MiB', 'GiB')[power]}"
