"""Which module of the network a node of the exported graph comes from.

torch's exporter writes the modules that a node was traced in into the node's metadata, from the
outermost to the innermost, and after them the name of the operation. Files that keep the metadata
can be read by module, whatever the exporter called its nodes.
"""

import ast
from collections.abc import Sequence

import onnx

SCOPES_KEY = "pkg.torch.onnx.name_scopes"
"""Source: torch 2.13, `torch.onnx`: metadata of nodes."""


def module_path(node: onnx.NodeProto) -> str:
    """Innermost module of a node, such as `detector.fusion.mix.1`; "" where it is not known."""
    scopes = module_scopes(node)
    return scopes[-1] if scopes else ""


def module_scopes(node: onnx.NodeProto) -> Sequence[str]:
    """Modules round a node, the outermost first; none where that is not known."""
    for entry in node.metadata_props:
        if entry.key == SCOPES_KEY:
            return [scope for scope in ast.literal_eval(entry.value)[:-1] if scope]
    return []


def is_within(node: onnx.NodeProto, module: str) -> bool:
    """Whether a node was traced in `module` or in a part of it."""
    path = module_path(node)
    return path == module or path.startswith(f"{module}.")


def leaving(model: onnx.ModelProto, module: str) -> list[str]:
    """Values that `module` makes and others use, in the graph's order."""
    inside = _values_of(model, module)
    used = {output.name for output in model.graph.output}
    used.update(
        name for node in model.graph.node if not is_within(node, module) for name in node.input
    )
    return [name for name in inside if name in used]


def entering(model: onnx.ModelProto, module: str) -> list[str]:
    """Values that other nodes make and `module` uses, in the graph's order."""
    inside = set(_values_of(model, module))
    used = {
        name for node in model.graph.node if is_within(node, module) for name in node.input
    } - inside
    made = [name for node in model.graph.node for name in node.output if name]
    return [name for name in made if name in used]


def with_outputs(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """Copy of a model that also gives these values, after its own outputs."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    own = {output.name for output in model.graph.output}
    # without a type: the file says half or float of its values by itself
    result.graph.output.extend(
        onnx.ValueInfoProto(name=name) for name in dict.fromkeys(names) if name not in own
    )
    return result


def _values_of(model: onnx.ModelProto, module: str) -> list[str]:
    return [
        name for node in model.graph.node if is_within(node, module) for name in node.output if name
    ]
