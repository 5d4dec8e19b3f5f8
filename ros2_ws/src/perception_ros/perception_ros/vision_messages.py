"""Boxes as vision_msgs, for a computer on which that package is installed."""

from geometry_msgs.msg import PoseWithCovariance
from perception_msgs.msg import Box3D, Box3DArray
from vision_msgs.msg import (
    BoundingBox3D,
    Detection3D,
    Detection3DArray,
    ObjectHypothesis,
    ObjectHypothesisWithPose,
)


def to_detections(boxes: Box3DArray) -> Detection3DArray:
    """The same boxes without what vision_msgs has no field for: velocity, sensors, mode.

    The size is along the box's own axes: x is its length.
    """
    return Detection3DArray(
        header=boxes.header, detections=[_detection(boxes, box) for box in boxes.boxes]
    )


def _detection(boxes: Box3DArray, box: Box3D) -> Detection3D:
    hypothesis = ObjectHypothesisWithPose(
        hypothesis=ObjectHypothesis(class_id=box.class_name, score=float(box.score)),
        pose=PoseWithCovariance(pose=box.pose),
    )
    return Detection3D(
        header=boxes.header,
        results=[hypothesis],
        bbox=BoundingBox3D(center=box.pose, size=box.size),
    )
