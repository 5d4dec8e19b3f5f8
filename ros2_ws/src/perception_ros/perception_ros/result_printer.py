"""Prints a line per result: to see what the node says where there is no viewer."""

import sys
import threading
from collections import Counter

from nav_msgs.msg import OccupancyGrid
from perception_msgs.msg import Box3DArray
from rclpy.node import Node

from perception_ros.convert import to_stamp_ns
from perception_ros.process import run_node
from runtime.api import run_command

COVERED_PERCENT = 50
"""Probability [%] above which a cell of a map layer counts as covered. Source: ours."""


class ResultPrinter(Node):
    """Listens to boxes and to the map layer `drivable_area` in the node's namespace."""

    def __init__(self, _stop: threading.Event) -> None:
        """Connect the topics."""
        super().__init__("result_printer")
        self.finished = threading.Event()
        self.create_subscription(Box3DArray, "bev/output/boxes", self._on_boxes, 20)
        layer = "bev/output/map/drivable_area"
        self.create_subscription(OccupancyGrid, layer, self._on_layer, 20)

    def close(self) -> None:
        """There are no threads to stop."""

    def _on_boxes(self, message: Box3DArray) -> None:
        classes = Counter(box.class_name for box in message.boxes)
        found = ", ".join(f"{count} {name}" for name, count in classes.most_common()) or "no boxes"
        missing = "; ".join(f"{fault.sensor}: {fault.reason}" for fault in message.sensors_missing)
        sys.stdout.write(
            f"{to_stamp_ns(message.header)}  {found}  from {' '.join(message.sensors_used)}"
            f"{f'  without {missing}' if missing else ''}\n"
        )
        sys.stdout.flush()

    def _on_layer(self, grid: OccupancyGrid) -> None:
        covered = sum(value > COVERED_PERCENT for value in grid.data)
        area_m2 = covered * grid.info.resolution**2
        sys.stdout.write(f"{to_stamp_ns(grid.header)}  drivable area {area_m2:.0f} m2\n")
        sys.stdout.flush()


def main() -> None:
    """Run the printer until a signal comes."""
    run_command(lambda: run_node(ResultPrinter))


if __name__ == "__main__":
    main()
