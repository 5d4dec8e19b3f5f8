"""What an exported model takes, gives and assumes: `model_card.json`, all the car reads."""

from dataclasses import dataclass
from typing import Literal

from perception.geometry.grid import BevGrid
from perception.geometry.sparse_tables import SparseLevels
from perception.input_spec import InputSpec
from perception.model_inputs import TENSOR_NAMES

FORMAT_VERSION = 3
"""Raised when an older runtime could misread a newer card."""

BOX_COLUMNS = ("x", "y", "z", "length", "width", "height", "yaw", "vx", "vy")

Precision = Literal["fp32", "fp16", "int8", "uint8"]
"""What the layers with weights compute in. int8: symmetric, TensorRT and ONNX Runtime; uint8: with
zero points, ONNX Runtime on a CPU only. Inputs and outputs of the graph keep their types."""


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """One input or output of the graph."""

    name: str
    dtype: str
    """numpy's name of the element type."""
    shape: tuple[str, ...]
    """Size of each axis; a word for a size that varies from frame to frame."""
    meaning: str
    """Content, unit and frame in one line."""


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """The contract between a model file and whoever runs it."""

    format_version: int
    recipe: str
    """Name of the recipe that trained the model."""
    commit: str
    """Commit of the code that exported it."""
    precision: Precision = "fp32"
    inputs: InputSpec
    """How the inputs are made from sensor data."""
    point_columns: tuple[str, ...]
    box_columns: tuple[str, ...]
    detection_classes: tuple[str, ...]
    map_classes: tuple[str, ...]
    """Channels of map_prob: the layers that any training frame knew."""
    map_grid: BevGrid
    """Where the map raster lies in the ego frame."""
    num_boxes: int
    """Boxes per frame before any threshold."""
    input_tensors: tuple[TensorSpec, ...]
    output_tensors: tuple[TensorSpec, ...]
    sparse_levels: SparseLevels | None = None
    """What the tables of a sparse encoder are made by; None for a network of pillars."""

    def __post_init__(self) -> None:
        """Refuse a card of another format."""
        if self.format_version != FORMAT_VERSION:
            raise ValueError(
                f"model card has format {self.format_version}, this version reads "
                f"{FORMAT_VERSION}: export the model again"
            )

    @property
    def input_names(self) -> tuple[str, ...]:
        """Tensors that this graph takes."""
        tables = self.sparse_levels.table_axes if self.sparse_levels else ()
        return (*TENSOR_NAMES, *tables)
