"""Writes a bundle with a tiny graph whose answer shows what went in, so that tests need no network.

Seven boxes, one per camera and one for the LiDAR. Of box i:
    x = i                      y = mean of camera i's pixels / 255 (0 for the LiDAR)
    vx = frustum points        vy = pillars
    score = 0.5 + 0.05 i where the sensor's mask is 1, else 0;    label = i
Each map channel is 0.1 (number of cameras) + 0.3 (LiDAR mask) everywhere.

The camera-only and the LiDAR-only graph are the same without the other sensors' boxes or masks.
"""

import dataclasses
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from perception import bundle, json_codec
from perception.geometry.frustum import Frustum
from perception.geometry.grid import BevGrid
from perception.geometry.image_crop import ImageCrop
from perception.geometry.pillars import POINT_COLUMNS, PillarConfig
from perception.input_spec import InputSpec
from perception.model_card import BOX_COLUMNS, FORMAT_VERSION, ModelCard, TensorSpec
from perception.taxonomy import CAMERAS, DETECTION_CLASSES, MAP_CLASSES

NUM_BOXES = len(CAMERAS) + 1
MAP_SIZE = 40

SPEC = InputSpec(
    cameras=CAMERAS,
    image=ImageCrop(height_px=32, width_px=88),
    frustum=Frustum(stride=8, depth_min=1.0, depth_max=41.0, depth_step=4.0, z_min=-5.0, z_max=3.0),
    bev=BevGrid(x_min=-20.0, x_max=20.0, y_min=-20.0, y_max=20.0, cell=2.0),
    camera_grid=BevGrid(x_min=-20.0, x_max=20.0, y_min=-20.0, y_max=20.0, cell=2.0),
    pillars=PillarConfig(
        grid=BevGrid(x_min=-20.0, x_max=20.0, y_min=-20.0, y_max=20.0, cell=1.0),
        z_min=-5.0,
        z_max=3.0,
        max_points=8,
        max_pillars=1600,
        num_sweeps=3,
    ),
)

INPUTS = (
    ("images", "uint8", ("6", "32", "88", "3")),
    ("camera_mask", "float32", ("6",)),
    ("pool_runs", "int32", ("runs", "3")),
    ("cell_start", "int32", ("401",)),
    ("depth_img", "float32", ("6", "0", "0")),
    ("pillar_points", "float32", ("pillars", "8", "5")),
    ("pillar_num_points", "int32", ("pillars",)),
    ("pillar_cell", "int32", ("pillars",)),
    ("cell_pillar", "int32", ("1600",)),
    ("lidar_mask", "float32", ("1",)),
)
OUTPUTS = (
    ("boxes_ego", "float32", ("7", "9")),
    ("scores", "float32", ("7",)),
    ("labels", "int64", ("7",)),
    ("map_prob", "float32", ("6", "40", "40")),
)


def _tensors(num_cameras: int) -> tuple[tuple, tuple]:
    """Inputs and outputs of the tiny graph."""
    per_camera = ("images", "camera_mask", "depth_img")
    inputs = tuple(
        (name, dtype, (str(num_cameras), *shape[1:]) if name in per_camera else shape)
        for name, dtype, shape in INPUTS
    )
    num_boxes = str(num_cameras + 1)
    outputs = tuple(
        (name, dtype, (num_boxes, *shape[1:]) if shape[0] == str(NUM_BOXES) else shape)
        for name, dtype, shape in OUTPUTS
    )
    return inputs, outputs


def toy_card(
    recipe: str = "toy", cameras: tuple[str, ...] = CAMERAS, use_lidar: bool = True
) -> ModelCard:
    """The card of the tiny graph for all cameras or none."""

    def specs(tensors: tuple) -> tuple[TensorSpec, ...]:
        return tuple(
            TensorSpec(name=name, dtype=dtype, shape=shape, meaning="toy")
            for name, dtype, shape in tensors
        )

    inputs, outputs = _tensors(len(cameras))

    return ModelCard(
        format_version=FORMAT_VERSION,
        recipe=recipe,
        commit="none",
        inputs=dataclasses.replace(SPEC, cameras=cameras, use_lidar=use_lidar),
        point_columns=POINT_COLUMNS,
        box_columns=BOX_COLUMNS,
        detection_classes=DETECTION_CLASSES,
        map_classes=MAP_CLASSES,
        map_grid=BevGrid(x_min=-20.0, x_max=20.0, y_min=-20.0, y_max=20.0, cell=1.0),
        num_boxes=len(cameras) + 1,
        input_tensors=specs(inputs),
        output_tensors=specs(outputs),
    )


def toy_model(num_cameras: int = len(CAMERAS)) -> onnx.ModelProto:
    """The tiny graph for all cameras or none."""
    inputs, outputs = _tensors(num_cameras)
    labels = np.arange(NUM_BOXES)[len(CAMERAS) - num_cameras :]
    slot, num_boxes = labels.astype(np.float32), len(labels)
    size = np.tile(np.array([0, 1, 1, 1, 0], np.float32), (num_boxes, 1))  # z, l, w, h, yaw
    constants = {
        "slot": slot,
        "slot_column": slot[:, None],
        "top_score": np.float32(0.5) + np.float32(0.05) * slot,
        "size_columns": size,
        "labels_constant": labels,
        "white": np.float32(255),
        "no_pixels": np.zeros(1, np.float32),
        "column": np.array([num_boxes, 1]),
        "last": np.array([400]),
        "per_camera": np.float32(0.1),
        "for_lidar": np.float32(0.3),
        "map_shape": np.array([len(MAP_CLASSES), MAP_SIZE, MAP_SIZE]),
        "one": np.array([1]),
    }
    node = helper.make_node
    nodes = [
        node("Cast", ["images"], ["pixels"], to=TensorProto.FLOAT),
        node("ReduceMean", ["pixels"], ["mean"], axes=[1, 2, 3], keepdims=0),
        node("Div", ["mean", "white"], ["brightness"]),
        node("Concat", ["brightness", "no_pixels"], ["y"], axis=0),
        node("Reshape", ["y", "column"], ["y_column"]),
        node("Gather", ["cell_start", "last"], ["num_points_int"]),
        node("Cast", ["num_points_int"], ["num_points"], to=TensorProto.FLOAT),
        node("Shape", ["pillar_cell"], ["num_pillars_int"]),
        node("Cast", ["num_pillars_int"], ["num_pillars"], to=TensorProto.FLOAT),
        node("Expand", ["num_points", "column"], ["vx_column"]),
        node("Expand", ["num_pillars", "column"], ["vy_column"]),
        node(
            "Concat",
            ["slot_column", "y_column", "size_columns", "vx_column", "vy_column"],
            ["boxes_ego"],
            axis=1,
        ),
        node("Concat", ["camera_mask", "lidar_mask"], ["mask"], axis=0),
        node("Mul", ["mask", "top_score"], ["scores"]),
        node("Identity", ["labels_constant"], ["labels"]),
        node("ReduceSum", ["camera_mask"], ["num_cameras"], keepdims=1),
        node("Mul", ["num_cameras", "per_camera"], ["camera_part"]),
        node("Mul", ["lidar_mask", "for_lidar"], ["lidar_part"]),
        node("Add", ["camera_part", "lidar_part"], ["prob"]),
        node("Expand", ["prob", "map_shape"], ["map_prob"]),
    ]

    def infos(tensors: tuple) -> list[onnx.ValueInfoProto]:
        return [
            helper.make_tensor_value_info(
                name,
                helper.np_dtype_to_tensor_dtype(np.dtype(dtype)),
                [int(size) if size.isdigit() else size for size in shape],
            )
            for name, dtype, shape in tensors
        ]

    initializers = [
        numpy_helper.from_array(np.ascontiguousarray(value), name)
        for name, value in constants.items()
    ]
    graph = helper.make_graph(nodes, "toy", infos(inputs), infos(outputs), initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def write_toy_bundle(
    folder: Path, card: ModelCard | None = None, model: onnx.ModelProto | None = None
) -> Path:
    """Write a bundle that `perception.bundle.load_bundle` accepts."""
    folder.mkdir(parents=True)
    card = card or toy_card()
    model = model or toy_model(len(card.inputs.cameras))
    (folder / bundle.MODEL_FILE).write_bytes(model.SerializeToString())
    (folder / bundle.CARD_FILE).write_text(json_codec.to_json(card))
    bundle.write_manifest(folder)
    return folder
