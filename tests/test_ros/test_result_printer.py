import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed: run make test in .venv-ros")
pytest.importorskip("perception_ros", reason="the ROS workspace is not sourced")

from array import array

from nav_msgs.msg import OccupancyGrid
from perception_msgs.msg import Box3D, Box3DArray, SensorFault
from perception_ros.convert import make_header
from perception_ros.result_printer import boxes_line, layer_line

pytestmark = pytest.mark.ros


def test_a_result_is_one_line() -> None:
    message = Box3DArray(
        header=make_header(1_500_000_000, "base_link"),
        boxes=[Box3D(class_name=name) for name in ("car", "pedestrian", "car")],
        sensors_used=["CAM_FRONT", "LIDAR_TOP"],
    )
    assert boxes_line(message) == "1500000000  2 car, 1 pedestrian  from CAM_FRONT LIDAR_TOP"


def test_what_is_missing_is_said_with_its_reason() -> None:
    message = Box3DArray(header=make_header(2_000_000_000, "base_link"), sensors_used=["CAM_FRONT"])
    message.sensors_missing = [SensorFault(sensor="LIDAR_TOP", reason="no data")]
    assert boxes_line(message) == "2000000000  no boxes  from CAM_FRONT  without LIDAR_TOP: no data"


def test_area_counts_the_cells_above_one_half() -> None:
    grid = OccupancyGrid(
        header=make_header(1, "base_link"), data=array("b", [0, 50, 51, 100, 60, 70, -1])
    )
    grid.info.resolution = 0.5
    # four cells of 0.25 m2
    assert layer_line(grid) == "1  drivable area 1 m2"


def test_a_stamp_that_cannot_be_right_is_printed_as_it_is() -> None:
    message = Box3DArray(header=make_header(-1_000_000_000, "base_link"))
    assert boxes_line(message).startswith("-1000000000  no boxes")
    assert layer_line(OccupancyGrid()) == "0  drivable area 0 m2"
