"""Torch against the exported file, stage by stage: where a difference begins, not only that it is.

The file under test is the one that leaves the house; the values between its stages are found by
the modules that torch's exporter wrote into it, and become outputs of a copy.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import onnx
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from export.deploy_graph import DeployGraph
from export.graph_scopes import entering, leaving, with_outputs
from export.parity import run_torch
from perception.errors import InputError
from perception.model_inputs import ModelInputs
from perception.models.heads.query_box_head import QueryBoxHead

MAX_STAGE_ERROR = 1e-4
"""Largest difference allowed of a stage's value, of the value's largest magnitude. fp32 on both
sides gives 1e-6 to 1e-5 at the end of the network. Source: ours, measured on trained networks."""


_WORST, _NO_PAIR = 1e12, 1e15
"""Errors where values are paired: of what is no number, and of what cannot be a pair. Ours."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A place in the network where values are compared."""

    name: str
    module: str
    """Path in the `DeployGraph`."""
    side: Literal["input", "output"] = "output"
    """Whether what enters or what leaves the module is compared."""
    field: str | None = None
    """The one field of the module's output that the file has, too; None compares all."""


STAGES = (
    Stage(name="image encoder", module="detector.image_encoder"),
    Stage(name="depth and context", module="detector.view_transform.depth_and_context"),
    Stage(name="BEV pool", module="detector.view_transform.smooth", side="input"),
    # its depths are for training only, and are compared above
    Stage(name="view transform", module="detector.view_transform", field="bev"),
    Stage(name="point encoder", module="detector.point_encoder"),
    Stage(name="fusion", module="detector.fusion"),
    Stage(name="BEV encoder", module="detector.bev_encoder"),
    Stage(name="BEV encoder of the map", module="detector.map_bev_encoder"),
    Stage(name="box head", module="detector.box_head"),
    # logits of inner layers are for training only
    Stage(name="map head", module="detector.map_head", field="logits"),
)
"""In the order of computation; a network lacks some of them."""


@dataclass(frozen=True, kw_only=True)
class StageRow:
    """One stage over all frames."""

    stage: str
    num_values: int
    """Tensors of torch that the file has, too."""
    num_expected: int
    """Tensors of torch."""
    max_error: float
    """Largest difference, of the largest magnitude that the tensor has in torch."""
    bound: float

    @property
    def passed(self) -> bool:
        """Whether all was found in the file and agrees; NaN does not."""
        return 0 < self.num_values == self.num_expected and self.max_error <= self.bound


@dataclass(frozen=True, kw_only=True)
class StageReport:
    """The comparison."""

    rows: tuple[StageRow, ...]
    num_frames: int
    against: str
    """What ran the file."""

    @property
    def passed(self) -> bool:
        """Whether every stage agrees."""
        return all(row.passed for row in self.rows)

    @property
    def first_failed(self) -> str | None:
        """The first stage that differs, in the order of computation."""
        return next((row.stage for row in self.rows if not row.passed), None)

    def table(self) -> str:
        """Plain-text table."""
        lines = [f"{'stage':<24}{f'max |torch - {self.against}| / scale':>36}{'allowed':>12}"]
        for row in self.rows:
            error = f"{row.max_error:.2e}"
            if not 0 < row.num_values == row.num_expected:
                error = f"{row.num_values} of {row.num_expected} values found"
            verdict = "" if row.passed else "   FAILED"
            lines.append(f"{row.stage:<24}{error:>36}{row.bound:>12.0e}{verdict}")
        if not self.passed:
            lines.append(f"the first stage that differs: {self.first_failed}")
        return "\n".join(lines)


@runtime_checkable
class GraphRunner(Protocol):
    """Runs a file and gives some of its outputs, frame by frame."""

    @property
    def name(self) -> str:
        """What runs it, in a word or two."""
        ...

    def run(
        self, model: onnx.ModelProto, names: Sequence[str], frames: Iterable[ModelInputs]
    ) -> Iterator[Sequence[np.ndarray]]:
        """Give the outputs `names` of each frame."""
        ...


@dataclass(frozen=True, kw_only=True)
class OnnxRuntimeRunner:
    """ONNX Runtime on the CPU."""

    name: str = "onnx"
    num_threads: int = 0
    """Threads of one operator; 0 for one per core."""

    def run(
        self, model: onnx.ModelProto, names: Sequence[str], frames: Iterable[ModelInputs]
    ) -> Iterator[Sequence[np.ndarray]]:
        """Give the outputs `names` of each frame."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.num_threads
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        for frame in frames:
            yield session.run(list(names), frame.tensors)


def compare_stages(
    graph: DeployGraph,
    model: onnx.ModelProto,
    frames: Sequence[ModelInputs],
    *,
    bound: float = MAX_STAGE_ERROR,
    runner: GraphRunner = OnnxRuntimeRunner(),
) -> StageReport:
    """Run torch and the file on the same frames and compare the values between the stages.

    To each tensor of torch belongs one value of the file that has as many elements, such that all
    are nearest to each other: the exporter keeps neither names nor axes of length 1. Values of the
    file that are left over are the exporter's own, such as a mask that it has reshaped.

    Args:
        graph: The network in torch.
        model: The exported file, with the metadata of its nodes.
        frames: What both see.
        bound: Error that is allowed, see `StageRow.max_error`.
        runner: What runs the file.

    Raises:
        InputError: The file does not say which modules its nodes come from.
    """
    values = {stage: _values_at(model, stage) for stage in stages_of(graph)}
    if not any(values.values()):
        raise InputError(
            "The graph does not say which module its nodes come from, so its stages cannot be "
            "compared: export it again with to_onnx.py."
        )
    names = [name for found in values.values() for name in found]
    differences = {stage: _Differences() for stage in values}
    outputs = runner.run(with_outputs(model, names), names, frames)
    for frame, arrays in zip(frames, outputs, strict=True):
        got = dict(zip(names, arrays, strict=True))
        expected = torch_values(graph, values, frame)
        for stage, found in values.items():
            differences[stage].add(expected[stage], {name: got[name] for name in found})
    rows = []
    for stage, difference in differences.items():
        errors = difference.errors()
        rows.append(
            StageRow(
                stage=stage.name,
                num_values=len(errors),
                num_expected=difference.num_expected,
                max_error=float(np.max(errors, initial=0.0)),
                bound=bound,
            )
        )
    return StageReport(rows=tuple(rows), num_frames=len(frames), against=runner.name)


def stages_of(graph: DeployGraph) -> list[Stage]:
    """Stages that a network has, in the order of computation.

    Queries are chosen at peaks, so rounding may reorder all that they say: of a query head the
    heatmap is compared here, and the boxes one by one in `export.parity`.
    """
    modules = dict(graph.named_modules())
    stages = [stage for stage in STAGES if stage.module in modules]
    return [
        dataclasses.replace(stage, name="box heatmap", module=f"{stage.module}.heatmap")
        if isinstance(modules[stage.module], QueryBoxHead)
        else stage
        for stage in stages
    ]


def torch_values(
    graph: DeployGraph, stages: Iterable[Stage], frame: ModelInputs
) -> Mapping[Stage, Sequence[np.ndarray]]:
    """Tensors of torch at each stage, for one frame."""
    kept: dict[Stage, list[np.ndarray]] = {stage: [] for stage in stages}
    with _watched(graph, kept):
        run_torch(graph, frame)
    return kept


class _Differences:
    """Differences between the file's values and torch's tensors of one stage, over frames."""

    def __init__(self) -> None:
        self._largest: dict[tuple[int, str], float] = {}
        self._num_frames: Counter[tuple[int, str]] = Counter()
        self._scales: list[float] = []
        self._frames = 0

    @property
    def num_expected(self) -> int:
        """Tensors of torch."""
        return len(self._scales)

    def add(self, expected: Sequence[np.ndarray], got: Mapping[str, np.ndarray]) -> None:
        """Compare every value with every tensor of as many elements."""
        self._frames += 1
        self._scales = self._scales or [0.0] * len(expected)
        for index, tensor in enumerate(expected):
            self._scales[index] = _larger(self._scales[index], np.abs(tensor))
            for name, value in got.items():
                if value.size == tensor.size and value.dtype.kind == "f":
                    difference = np.abs(value.ravel().astype(np.float64) - tensor.ravel())
                    pair = (index, name)
                    self._largest[pair] = _larger(self._largest.get(pair, 0.0), difference)
                    self._num_frames[pair] += 1

    def errors(self) -> list[float]:
        """Error of each tensor of torch that has a value of its own in every frame."""
        names = sorted({name for _, name in self._largest})
        cost = np.full((self.num_expected, len(names)), _NO_PAIR)
        for (index, name), difference in self._largest.items():
            if self._num_frames[index, name] == self._frames:
                error = difference / (self._scales[index] or 1.0)
                cost[index, names.index(name)] = error if error < _WORST else _WORST
        pairs = zip(*linear_sum_assignment(cost), strict=True)
        errors = [float(cost[pair]) for pair in pairs if cost[pair] < _NO_PAIR]
        return [error if error < _WORST else float("inf") for error in errors]


def _larger(so_far: float, values: np.ndarray) -> float:
    return float(np.maximum(so_far, np.max(values, initial=0.0)))  # keeps NaN


def _values_at(model: onnx.ModelProto, stage: Stage) -> list[str]:
    return (entering if stage.side == "input" else leaving)(model, stage.module)


@contextmanager
def _watched(graph: DeployGraph, kept: dict[Stage, list[np.ndarray]]) -> Iterator[None]:
    """Within the block, what passes the stages is kept."""
    hooks = []
    for stage, arrays in kept.items():
        module = graph.get_submodule(stage.module)
        if stage.side == "input":
            hooks.append(module.register_forward_pre_hook(partial(_keep_input, arrays)))
        else:
            keep = partial(_keep_output, arrays, stage.field)
            hooks.append(module.register_forward_hook(keep))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _keep_input(arrays: list[np.ndarray], module: nn.Module, args: Any) -> None:
    arrays.extend(_float_arrays(args))


def _keep_output(
    arrays: list[np.ndarray], field: str | None, module: nn.Module, args: Any, output: Any
) -> None:
    arrays.extend(_float_arrays(output if field is None else getattr(output, field)))


def _float_arrays(value: Any) -> Iterator[np.ndarray]:
    """Floating-point tensors of a module's input or output, whatever holds them."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value.detach().double().numpy()
    elif dataclasses.is_dataclass(value):
        for part in dataclasses.fields(value):
            yield from _float_arrays(getattr(value, part.name))
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _float_arrays(part)
