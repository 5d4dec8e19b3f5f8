from array import array

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("rclpy", reason="rclpy is not installed: run make test in .venv-ros")
pytest.importorskip("perception_msgs", reason="the ROS workspace is not sourced")

import cv2
from geometry_msgs.msg import TransformStamped
from nav_msgs.msg import Odometry
from perception_ros import convert
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2, PointField
from std_msgs.msg import Header

from runtime.api import CameraCalibration

pytestmark = pytest.mark.ros

HEADER = convert.make_header(1_500_000_000_123_456_789, "somewhere")


def reason_of(call: object, *args: object) -> str:
    with pytest.raises(convert.ConversionError) as caught:
        call(*args)  # type: ignore[operator]
    return caught.value.reason


def image(encoding: str, width: int, height: int, step: int, data: bytes) -> Image:
    return Image(
        header=HEADER, encoding=encoding, width=width, height=height, step=step,
        data=array("B", data),
    )  # fmt: skip


@given(st.integers(1, 2**31 * 10**9 - 1))
def test_a_stamp_survives_the_header(stamp_ns: int) -> None:
    assert convert.to_stamp_ns(convert.make_header(stamp_ns, "")) == stamp_ns


def test_a_stamp_that_was_never_set_is_refused() -> None:
    assert reason_of(convert.to_stamp_ns, Header()) == "stamp_zero"


@pytest.mark.parametrize(
    ("encoding", "pixel"),
    [
        ("rgb8", [10, 20, 30]),
        ("bgr8", [30, 20, 10]),
        ("rgba8", [10, 20, 30, 99]),
        ("bgra8", [30, 20, 10, 99]),
        ("mono8", [10]),
    ],
)
def test_each_encoding_gives_rgb_and_row_padding_is_left_out(
    encoding: str, pixel: list[int]
) -> None:
    # Two rows of three pixels, each row followed by two bytes of padding (255).
    row = bytes([*pixel, *pixel, *pixel, 255, 255])
    message = image(encoding, 3, 2, len(row), row + row)
    rgb = convert.to_rgb(message)
    expected = [10, 10, 10] if encoding == "mono8" else [10, 20, 30]
    assert rgb.shape == (2, 3, 3)
    assert (rgb == expected).all()
    assert np.shares_memory(rgb, np.frombuffer(message.data, np.uint8))


def test_an_image_survives_the_message() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    message = convert.to_image(rgb[:, ::-1], HEADER)
    assert isinstance(message.data, array)
    np.testing.assert_array_equal(convert.to_rgb(message), rgb[:, ::-1])


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (image("nv21", 2, 1, 4, bytes(4)), "encoding_unsupported"),
        (image("rgb8", 0, 1, 0, bytes(1)), "size_zero"),
        (image("rgb8", 2, 0, 6, b""), "image_empty"),
        (image("rgb8", 2, 1, 5, bytes(5)), "step_short"),
        (image("rgb8", 2, 2, 6, bytes(11)), "data_short"),
    ],
)
def test_an_image_that_does_not_fit_is_refused_with_its_reason(message: Image, reason: str) -> None:
    assert reason_of(convert.to_rgb, message) == reason


@given(
    st.sampled_from(["rgb8", "mono8", "bgra8", ""]),
    st.integers(0, 5),
    st.integers(0, 5),
    st.one_of(st.integers(0, 30), st.just(2**32 - 1)),
    st.binary(max_size=120),
)
def test_no_image_raises_anything_but_a_conversion_error(
    encoding: str, width: int, height: int, step: int, data: bytes
) -> None:
    try:
        rgb = convert.to_rgb(image(encoding, width, height, step, data))
    except convert.ConversionError:
        return
    assert rgb.shape == (height, width, 3)


def test_a_compressed_image_is_unpacked() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    done, data = cv2.imencode(".png", np.ascontiguousarray(rgb[:, :, ::-1]))
    assert done
    message = CompressedImage(header=HEADER, format="png", data=array("B", data.tobytes()))
    np.testing.assert_array_equal(convert.compressed_to_rgb(message), rgb)


POINTS = np.array([[1.5, -2.0], [3.25, 4.0], [0.5, -1.0], [7.0, 255.0]], np.float32)


def cloud(
    layout: dict[str, str], order: str = "<", rows: int = 1, row_padding: int = 0
) -> PointCloud2:
    """`POINTS` with the fields of `layout` (name -> numpy type) in that order."""
    codes = {"f4": PointField.FLOAT32, "f8": PointField.FLOAT64, "u1": PointField.UINT8,
             "u2": PointField.UINT16}  # fmt: skip
    kind = np.dtype([(name, order + code) for name, code in layout.items()])
    table = np.zeros(POINTS.shape[1], kind)
    for name, values in zip(("x", "y", "z", "intensity"), POINTS, strict=True):
        if name in layout:
            table[name] = values
    width = POINTS.shape[1] // rows
    data = b"".join(row.tobytes() + b"\xff" * row_padding for row in table.reshape(rows, width))
    return PointCloud2(
        header=HEADER, height=rows, width=width, is_bigendian=order == ">",
        fields=[
            PointField(name=name, offset=kind.fields[name][1], datatype=codes[code], count=1)
            for name, code in layout.items()
        ],
        point_step=kind.itemsize, row_step=width * kind.itemsize + row_padding,
        data=array("B", data),
    )  # fmt: skip


PLAIN = {"x": "f4", "y": "f4", "z": "f4", "intensity": "f4"}


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    "layout",
    [
        PLAIN,
        {"ring": "u2", "intensity": "u1", "z": "f4", "time": "f8", "y": "f4", "x": "f4"},
        {"x": "f8", "y": "f8", "z": "f8", "intensity": "u1"},
    ],
)
def test_points_are_read_by_name_type_and_byte_order(layout: dict[str, str], order: str) -> None:
    points = convert.to_points_lidar(cloud(layout, order))
    assert points.dtype == np.float32
    np.testing.assert_array_equal(points, POINTS)


def test_an_organised_cloud_with_padded_rows_is_read() -> None:
    message = cloud(PLAIN, rows=2, row_padding=5)
    np.testing.assert_array_equal(convert.to_points_lidar(message), POINTS)


def test_a_cloud_survives_the_message() -> None:
    message = convert.to_cloud(POINTS, HEADER)
    assert isinstance(message.data, array)
    np.testing.assert_array_equal(convert.to_points_lidar(message), POINTS)
    nothing = convert.to_cloud(POINTS[:, :0], HEADER)
    assert reason_of(convert.to_points_lidar, nothing) == "no_points"


def test_points_that_are_not_finite_are_left_out() -> None:
    bad = np.repeat(POINTS[:, :1], 4, axis=1)
    bad[0, 1], bad[2, 2] = np.nan, np.inf
    points = convert.to_points_lidar(convert.to_cloud(bad, HEADER))
    np.testing.assert_array_equal(points, np.repeat(POINTS[:, :1], 2, axis=1))


def test_a_double_beyond_single_precision_is_left_out() -> None:
    message = cloud({"x": "f8", "y": "f4", "z": "f4", "intensity": "f4"})
    message.data[:8] = array("B", np.float64(1e300).tobytes())
    np.testing.assert_array_equal(convert.to_points_lidar(message), POINTS[:, 1:])


def changed(**values: object) -> PointCloud2:
    message = cloud(PLAIN)
    for name, value in values.items():
        setattr(message, name, value)
    return message


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (cloud({"x": "f4", "y": "f4", "z": "f4"}), "field_missing"),
        (cloud({"x": "f4", "y": "f4", "z": "u1", "intensity": "f4"}), "field_type"),
        (changed(point_step=15, row_step=32), "point_step_short"),
        (changed(row_step=31), "row_step_short"),
        (changed(height=2), "data_short"),
        (changed(data=array("B", bytes(31))), "data_short"),
        (changed(data=array("B", bytes(33))), "data_long"),
    ],
)
def test_a_cloud_that_does_not_fit_is_refused_with_its_reason(
    message: PointCloud2, reason: str
) -> None:
    assert reason_of(convert.to_points_lidar, message) == reason


@given(
    st.lists(
        st.builds(
            PointField,
            name=st.sampled_from(["x", "y", "z", "intensity"]),
            offset=st.one_of(st.integers(0, 40), st.just(2**32 - 1)),
            datatype=st.integers(0, 9),
            count=st.integers(0, 2),
        ),
        max_size=5,
    ),
    st.fixed_dictionaries({
        name: st.one_of(st.integers(0, 33), st.just(2**32 - 1))
        for name in ("height", "width", "point_step", "row_step")
    }),
    st.booleans(),
    st.binary(max_size=200),
)  # fmt: skip
def test_no_cloud_raises_anything_but_a_conversion_error(
    fields: list[PointField], sizes: dict[str, int], big: bool, data: bytes
) -> None:
    message = PointCloud2(fields=fields, is_bigendian=big, data=array("B", data), **sizes)
    try:
        points = convert.to_points_lidar(message)
    except convert.ConversionError:
        return
    assert points.shape[0] == 4
    assert np.isfinite(points).all()


CAMERA = CameraCalibration(
    K_cam=np.array([[1266.4, 0.0, 816.27], [0.0, 1266.4, 491.5], [0.0, 0.0, 1.0]]),
    T_ego_cam=np.eye(4),
    width_px=1600,
    height_px=900,
)


def test_intrinsics_survive_the_message_and_shift_by_half_a_pixel() -> None:
    message = convert.to_camera_info(CAMERA, HEADER)
    # OpenCV counts from the first pixel's centre, we from its corner: 816.27 - 0.5.
    assert message.k[2] == pytest.approx(815.77)
    assert message.p[6] == pytest.approx(491.0)
    K_cam, width_px, height_px = convert.to_intrinsics(message)
    np.testing.assert_allclose(K_cam, CAMERA.K_cam, rtol=0, atol=1e-9)
    assert (width_px, height_px) == (1600, 900)


def info(**values: object) -> CameraInfo:
    message = convert.to_camera_info(CAMERA, HEADER)
    for name, value in values.items():
        setattr(message, name, value)
    return message


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (info(k=[0.0] * 9), "uncalibrated"),
        (info(k=[-5.0, 0.0, 1.0, 0.0, 5.0, 1.0, 0.0, 0.0, 1.0]), "focal_length"),
        (info(k=[1e300, 0.0, 1.0, 0.0, 1e300, 1.0, 0.0, 0.0, 1.0]), "focal_length"),
        (info(k=[1e-310, 0.0, 1.0, 0.0, 5.0, 1.0, 0.0, 0.0, 1.0]), "focal_length"),
        (info(k=[5.0, 0.0, 1.0, 0.0, 1e-310, 1.0, 0.0, 0.0, 1.0]), "focal_length"),
        (info(k=[500.0, 1e308, 1.0, 0.0, 500.0, 1.0, 0.0, 0.0, 1.0]), "intrinsics"),
        (info(width=0), "size_zero"),
    ],
)
def test_a_camera_info_that_cannot_be_used_is_refused(message: CameraInfo, reason: str) -> None:
    assert reason_of(convert.to_intrinsics, message) == reason


def test_binning_and_a_region_change_the_intrinsics() -> None:
    message = info(binning_x=2, binning_y=3)
    message.roi.x_offset, message.roi.y_offset = 400, 300
    message.roi.width, message.roi.height = 1000, 450
    K_cam, width_px, height_px = convert.to_intrinsics(message)
    # From the corner: (816.27 - 400) / 2 and (491.5 - 300) / 3; 1266.4 / 2 and / 3.
    expected = [[633.2, 0, 208.135], [0, 1266.4 / 3, 191.5 / 3], [0, 0, 1]]
    np.testing.assert_allclose(K_cam, expected, rtol=0, atol=1e-9)
    assert (width_px, height_px) == (500, 150)


angles = st.floats(-np.pi, np.pi)
meters = st.floats(-1e4, 1e4)


@given(angles, angles, angles, meters, meters, meters)
def test_a_pose_survives_odometry(
    a: float, b: float, c: float, x: float, y: float, z: float
) -> None:
    def turn(angle: float, i: int, j: int) -> np.ndarray:
        R = np.eye(3)
        R[[i, j], [i, j]] = np.cos(angle)
        R[i, j], R[j, i] = -np.sin(angle), np.sin(angle)
        return R

    T_global_ego = np.eye(4)
    T_global_ego[:3, :3] = turn(a, 0, 1) @ turn(b, 2, 0) @ turn(c, 1, 2)
    T_global_ego[:3, 3] = x, y, z
    message = convert.to_odometry(T_global_ego, HEADER, "base_link")
    back = convert.to_T_global_ego(message, "base_link")
    np.testing.assert_allclose(back, T_global_ego, rtol=0, atol=1e-12)


def test_a_quarter_turn_to_the_left_is_positive_about_z() -> None:
    message = Odometry()
    message.pose.pose.orientation.z = message.pose.pose.orientation.w = np.sqrt(0.5)
    T_global_ego = convert.to_T_global_ego(message, "base_link")
    # The car's x axis (forward) points along global y.
    np.testing.assert_allclose(T_global_ego[:3, 0], [0, 1, 0], atol=1e-12)


def odometry(child: str = "base_link", w: float = 1.0, x: float = 0.0) -> Odometry:
    message = Odometry(header=HEADER, child_frame_id=child)
    message.pose.pose.orientation.w = w
    message.pose.pose.position.x = x
    return message


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (odometry(child="trailer"), "child_frame"),
        (odometry(w=0.0), "quaternion"),
        (odometry(x=float("inf")), "position"),
    ],
)
def test_an_odometry_that_is_no_pose_of_the_car_is_refused(message: Odometry, reason: str) -> None:
    assert reason_of(convert.to_T_global_ego, message, "base_link") == reason


def stamped(child: str, x: float) -> TransformStamped:
    message = TransformStamped(header=convert.make_header(0, "base_link"), child_frame_id=child)
    message.transform.translation.x = x
    message.transform.rotation.w = 1.0
    return message


class TfMessage:
    """What tf2_msgs/TFMessage has; its package is in no wheel."""

    transforms = (stamped("lidar", 1.5), stamped("camera", float("nan")), stamped("radar", 2.0))


def test_one_bad_transform_does_not_cost_the_others() -> None:
    errors: list[convert.ConversionError] = []
    transforms = convert.to_transforms(TfMessage(), errors.append)
    assert [error.reason for error in errors] == ["position"]
    assert {child: (parent, T[0, 3]) for child, (parent, T) in transforms.items()} == {
        "lidar": ("base_link", 1.5),
        "radar": ("base_link", 2.0),
    }
    assert reason_of(convert.to_transforms, TfMessage()) == "position"
