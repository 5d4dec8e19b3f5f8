"""Results as vision_msgs, for a computer on which that package is installed."""

from geometry_msgs.msg import PoseWithCovariance
from perception_msgs.msg import Box3D, Box3DArray
from std_msgs.msg import Header
from vision_msgs.msg import (
    BoundingBox3D,
    Detection3D,
    Detection3DArray,
    LabelInfo,
    ObjectHypothesis,
    ObjectHypothesisWithPose,
    VisionClass,
)

from perception_ros.result_messages import MAX_MASK_CLASSES


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


def to_label_info(map_classes: tuple[str, ...], threshold: float, header: Header) -> LabelInfo:
    """How the map mask is read: a class is in a cell where `cell & class_id` is not 0.

    Layers overlap, so a `class_id` is the value of the layer's bit (1, 2, 4, ...), not a cell's.

    Args:
        map_classes: Layers of the bundle; those for which the mask has no bit are left out.
        threshold: Probability from which a bit is set, 0..1.
        header: When it was said, and the frame of the masks.
    """
    return LabelInfo(
        header=header,
        class_map=[
            VisionClass(class_id=1 << index, class_name=name)
            for index, name in enumerate(map_classes[:MAX_MASK_CLASSES])
        ],
        threshold=float(threshold),
    )
