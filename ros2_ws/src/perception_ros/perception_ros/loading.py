"""What configure does: open the bundles, check them, allocate, compute their golden frames."""

from contextlib import ExitStack
from pathlib import Path

import numpy as np
from rcl_interfaces.msg import ParameterDescriptor
from rclpy.node import Node

from perception_ros.parameters import to_floats
from perception_ros.rig import Rig
from perception_ros.settings import NodeSettings
from runtime.api import (
    Bundle,
    InputError,
    Ladder,
    Pipeline,
    load_bundle,
    open_engine,
    read_calibration,
    self_test,
    transform_from_quaternion,
)


def open_bundles(settings: NodeSettings) -> tuple[Bundle, Bundle | None, Bundle | None]:
    """Bundles for everything, for cameras alone, for the LiDAR alone.

    Raises:
        InputError: One is damaged.
    """
    camera, lidar = (
        load_bundle(Path(path)) if path else None
        for path in (settings.camera_bundle, settings.lidar_bundle)
    )
    return load_bundle(Path(settings.bundle)), camera, lidar


def load_ladder(
    bundles: tuple[Bundle, Bundle | None, Bundle | None], settings: NodeSettings
) -> Ladder:
    """Open the engines of all rungs, warm them up and test them.

    Raises:
        InputError: A bundle does not fit the others, or answers other than it should.
    """
    fusion, camera, lidar = bundles
    with ExitStack() as on_error:

        def opened(bundle: Bundle) -> Pipeline:
            pipeline = _open(bundle, settings)
            on_error.callback(pipeline.close)
            return pipeline

        ladder = Ladder(
            opened(fusion),
            None if camera is None else opened(camera),
            None if lidar is None else opened(lidar),
        )
        ladder.warm_up()
        if settings.self_test:
            for pipeline in ladder.pipelines:
                self_test(pipeline)
        on_error.pop_all()
    return ladder


def load_rig(node: Node, settings: NodeSettings, sensors: tuple[str, ...]) -> Rig:
    """The calibration file, and per sensor the parameter `extrinsics.SENSOR`.

    Raises:
        InputError: The file or a parameter is wrong.
    """
    file = read_calibration(Path(settings.calibration)) if settings.calibration else None
    fixed = {}
    for sensor in sensors:
        T_ego_sensor = _fixed_extrinsics(node, sensor)
        if T_ego_sensor is not None:
            fixed[sensor] = T_ego_sensor
    rig = Rig(file, fixed)
    unknown = [sensor for sensor in sensors if not rig.knows_place_of(sensor)]
    if unknown:
        node.get_logger().warning(
            f"extrinsics of {', '.join(unknown)} are not known yet: not used until /tf gives them"
        )
    return rig


def prepare_rig(ladder: Ladder, rig: Rig, settings: NodeSettings) -> None:
    """Make what the first frames need of the rig.

    Raises:
        InputError: Images of the calibration file's size do not fit the network.
    """
    try:
        ladder.prepare_calibration(rig.calibration())
    except ValueError as error:
        raise InputError(
            f"Calibration {settings.calibration} does not fit bundle {settings.bundle}: {error}."
        ) from error


def _open(bundle: Bundle, settings: NodeSettings) -> Pipeline:
    engine = open_engine(bundle, settings.engine, settings.num_threads, settings.bev_pool)
    return Pipeline(
        bundle,
        engine=engine,
        score_threshold=settings.score_threshold,
        compensate_ego_motion=settings.compensate_ego_motion,
    )


def _fixed_extrinsics(node: Node, sensor: str) -> np.ndarray | None:
    name = f"extrinsics.{sensor}"
    if not node.has_parameter(name):  # the sensors are known since the bundle is
        meaning = "x y z [m], qx qy qz qw of the sensor in the base frame; empty: not fixed"
        descriptor = ParameterDescriptor(description=meaning, dynamic_typing=True)
        node.declare_parameter(name, [], descriptor)
    value = node.get_parameter(name).value
    numbers = to_floats(value)
    if numbers == ():
        return None
    try:
        if numbers is None or len(numbers) != 7:
            raise ValueError("expected 7 numbers: x y z [m], qx qy qz qw")
        x, y, z, qx, qy, qz, qw = numbers
        return transform_from_quaternion((qw, qx, qy, qz), (x, y, z))
    except ValueError as error:
        raise InputError(f"Parameter {name} is {value}: {error}.") from error
