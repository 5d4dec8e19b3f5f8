"""Sensor messages to the runtime's types and back: pure functions, no node.

A message that cannot be used raises `ConversionError`; the node drops it and counts its reason.
Decoding is the runtime's (`runtime/decoding/`) and knows nothing of ROS; encoding is here.
"""

from array import array

import numpy as np
from builtin_interfaces.msg import Time
from geometry_msgs.msg import Point, Pose, Quaternion
from nav_msgs.msg import Odometry
from sensor_msgs.msg import CameraInfo, Image, PointCloud2, PointField
from std_msgs.msg import Header

from runtime.api import (
    PIXEL_CENTER_SHIFT,
    POINT_FIELDS,
    CameraCalibration,
    CloudRules,
    ConversionError,
    compressed_to_rgb,
    quaternion_from_transform,
    to_frame_id,
    to_intrinsics,
    to_points_lidar,
    to_rgb,
    to_stamp_ns,
    to_T_global_ego,
    to_transforms,
)

__all__ = [
    "CloudRules",
    "ConversionError",
    "compressed_to_rgb",
    "make_header",
    "to_T_global_ego",
    "to_camera_info",
    "to_cloud",
    "to_frame_id",
    "to_image",
    "to_intrinsics",
    "to_odometry",
    "to_points_lidar",
    "to_pose",
    "to_rgb",
    "to_stamp_ns",
    "to_transforms",
]


def make_header(stamp_ns: int, frame_id: str) -> Header:
    """Header with a stamp [ns] and a frame."""
    sec, nanosec = divmod(stamp_ns, 1_000_000_000)
    return Header(stamp=Time(sec=sec, nanosec=nanosec), frame_id=frame_id)


def to_image(rgb: np.ndarray, header: Header) -> Image:
    """Image message (rgb8) of RGB uint8 [h, w, 3]."""
    height, width, _ = rgb.shape
    data = array("B")  # anything else is copied element by element: 250 ms for a camera image
    data.frombytes(np.ascontiguousarray(rgb).data)
    return Image(
        header=header, height=height, width=width, encoding="rgb8", step=3 * width, data=data
    )


def to_cloud(points_lidar: np.ndarray, header: Header) -> PointCloud2:
    """Cloud message with float32 x, y, z, intensity of points [4, n]."""
    num_points = points_lidar.shape[1]
    data = array("B")
    data.frombytes(points_lidar.T.astype("<f4").tobytes())
    fields = [
        PointField(name=name, offset=4 * index, datatype=PointField.FLOAT32, count=1)
        for index, name in enumerate(POINT_FIELDS)
    ]
    return PointCloud2(
        header=header, height=1, width=num_points, fields=fields, is_bigendian=False, point_step=16,
        row_step=16 * num_points, data=data, is_dense=True,
    )  # fmt: skip


def to_camera_info(calibration: CameraCalibration, header: Header) -> CameraInfo:
    """CameraInfo of a rectified camera; the inverse of `to_intrinsics`."""
    K_ros = np.array(calibration.K_cam)
    K_ros[:2, 2] -= PIXEL_CENTER_SHIFT
    return CameraInfo(
        header=header,
        width=calibration.width_px,
        height=calibration.height_px,
        distortion_model="plumb_bob",
        d=[0.0] * 5,
        k=K_ros.ravel().tolist(),
        r=np.eye(3).ravel().tolist(),
        p=np.hstack([K_ros, np.zeros((3, 1))]).ravel().tolist(),
    )


def to_odometry(T_global_ego: np.ndarray, header: Header, base_frame: str) -> Odometry:
    """Odometry message of a pose; the inverse of `to_T_global_ego`."""
    message = Odometry(header=header, child_frame_id=base_frame)
    message.pose.pose = to_pose(T_global_ego)
    return message


def to_pose(T: np.ndarray) -> Pose:
    """Pose message of a rigid transform 4x4."""
    w, x, y, z = quaternion_from_transform(T).tolist()
    position = Point(**dict(zip("xyz", T[:3, 3].tolist(), strict=True)))
    return Pose(position=position, orientation=Quaternion(x=x, y=y, z=z, w=w))
