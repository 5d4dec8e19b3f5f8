"""Prints a line per result: to see what the node says where there is no viewer."""

import sys
import threading
from collections import Counter

import numpy as np
from nav_msgs.msg import OccupancyGrid
from perception_msgs.msg import Box3DArray
from rclpy.node import Node
from std_msgs.msg import Header

from perception_ros.process import run_node
from runtime.api import run_command

COVERED_PERCENT = 50
"""Probability [%] above which a cell of a map layer counts as covered. Source: ours."""


class ResultPrinter(Node):
    """Listens to boxes and to the map layer `drivable_area` of the node `bev` in its namespace."""

    def __init__(self) -> None:
        """Connect the topics."""
        super().__init__("result_printer")
        self.finished = threading.Event()
        layer = "bev/output/map/drivable_area"
        self.create_subscription(Box3DArray, "bev/output/boxes", _print_boxes, 20)
        self.create_subscription(OccupancyGrid, layer, _print_layer, 20)

    def close(self) -> None:
        """There are no threads to stop."""


def boxes_line(message: Box3DArray) -> str:
    """Stamp, boxes per class, sensors used, and sensors missing with the reason."""
    classes = Counter(box.class_name for box in message.boxes)
    found = ", ".join(f"{count} {name}" for name, count in classes.most_common()) or "no boxes"
    line = f"{_shown_ns(message.header)}  {found}  from {' '.join(message.sensors_used)}"
    missing = [f"{fault.sensor}: {fault.reason}" for fault in message.sensors_missing]
    return line + f"  without {'; '.join(missing)}" * bool(missing)


def layer_line(grid: OccupancyGrid) -> str:
    """Stamp and covered area."""
    covered = int((np.array(grid.data, np.int8) > COVERED_PERCENT).sum())
    area_m2 = covered * grid.info.resolution**2
    return f"{_shown_ns(grid.header)}  drivable area {area_m2:.0f} m2"


def _shown_ns(header: Header) -> int:
    """The stamp as it is [ns]: what is printed is not judged."""
    return int(header.stamp.sec) * 1_000_000_000 + int(header.stamp.nanosec)


def _print_boxes(message: Box3DArray) -> None:
    sys.stdout.write(boxes_line(message) + "\n")
    sys.stdout.flush()


def _print_layer(grid: OccupancyGrid) -> None:
    sys.stdout.write(layer_line(grid) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Run the printer until a signal comes."""
    run_command(lambda: run_node(ResultPrinter))


if __name__ == "__main__":
    main()
