"""Topics out: what a result is published as. Nothing but boxes is made where nobody listens."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from nav_msgs.msg import OccupancyGrid
from perception_msgs.msg import Box3DArray
from rclpy.lifecycle import LifecycleNode
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import Image
from visualization_msgs.msg import MarkerArray

from perception_ros import result_messages
from perception_ros.convert import make_header
from runtime.api import PerceptionResult

try:
    from vision_msgs.msg import Detection3DArray, LabelInfo

    from perception_ros.vision_messages import to_detections, to_label_info
except ImportError:  # not among the wheels
    Detection3DArray = None


class Outputs:
    """Lifecycle publishers: silent while the node is not active.

    Only how the map mask is read is said before, once, and kept for who comes later.
    """

    def __init__(
        self,
        node: LifecycleNode,
        map_classes: tuple[str, ...],
        *,
        base_frame: str,
        map_threshold: float,
    ) -> None:
        """Make the publishers.

        Args:
            node: Whose topics they are.
            map_classes: One grid each.
            base_frame: Frame of the results.
            map_threshold: Probability from which a bit of the map mask is set, 0..1.
        """
        self._node, self._base_frame, self._map_threshold = node, base_frame, map_threshold
        self._publishers: list[Any] = []
        with ExitStack() as on_error:
            on_error.callback(self.close)
            self._make_all(map_classes)
            on_error.pop_all()

    def _make_all(self, map_classes: tuple[str, ...]) -> None:
        self._boxes = self._make(Box3DArray, "boxes", 5)
        self._markers = self._make(MarkerArray, "markers", 1)
        self._mask = self._make(Image, "map_mask", 1)
        self._layers = {name: self._make(OccupancyGrid, f"map/{name}", 1) for name in map_classes}
        self._detections = None
        if Detection3DArray is not None:
            self._detections = self._make(Detection3DArray, "detections", 5)
            self._say_labels(map_classes)

    def close(self) -> None:
        """Take the publishers back."""
        for publisher in self._publishers:
            self._node.destroy_lifecycle_publisher(publisher)
        self._publishers = []

    def publish(self, result: PerceptionResult) -> None:
        """Send a result on all topics."""
        boxes = result_messages.to_boxes(result, self._base_frame)
        self._boxes.publish(boxes)
        if self._detections is not None:
            _publish_if_heard(self._detections, lambda: to_detections(boxes))
        if any(layer.get_subscription_count() for layer in self._layers.values()):
            grids = result_messages.to_map_layers(result, self._base_frame)
            for name, publisher in self._layers.items():
                publisher.publish(grids[name])
        _publish_if_heard(
            self._mask,
            lambda: result_messages.to_map_mask(result, self._base_frame, self._map_threshold),
        )
        _publish_if_heard(self._markers, lambda: result_messages.to_markers(boxes))

    def _make(self, kind: Any, name: str, depth: int) -> Any:
        publisher = self._node.create_lifecycle_publisher(kind, f"~/output/{name}", depth)
        self._publishers.append(publisher)
        return publisher

    def _say_labels(self, map_classes: tuple[str, ...]) -> None:
        qos = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        publisher = self._node.create_publisher(LabelInfo, "~/output/map_mask/label_info", qos)
        self._publishers.append(publisher)
        header = make_header(self._node.get_clock().now().nanoseconds, self._base_frame)
        publisher.publish(to_label_info(map_classes, self._map_threshold, header))


def _publish_if_heard(publisher: Any, make: Callable[[], Any]) -> None:
    if publisher.get_subscription_count():
        publisher.publish(make())
