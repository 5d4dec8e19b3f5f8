"""CameraInfo, odometry and transforms: what is refused and what is only unusual."""

from collections.abc import Callable
from typing import Any

import numpy as np
from malformed_kinds import Kind, Made, broken
from message_stand_ins import (
    HEIGHT,
    WIDTH,
    Message,
    camera_info,
    header,
    odometry,
    rotation,
    transform,
    vector,
)

from perception.geometry.rigid import transform_from_quaternion

Random = np.random.Generator
NO_NUMBERS = (np.nan, np.inf, -np.inf)
BIG = 2**32 - 1


def info(**values: Any) -> Callable[[Random], Message]:
    return lambda random: camera_info().but(
        **{k: v(random) if callable(v) else v for k, v in values.items()}
    )


def matrix(*places: int, value: Callable[[Random], float]) -> Callable[[Random], Message]:
    """`k` with another number in one of these places."""

    def make(random: Random) -> Message:
        k = list(camera_info().k)
        k[int(random.choice(places))] = float(value(random))
        return camera_info().but(k=k)

    return make


def region(**values: int) -> Callable[[Random], Message]:
    return lambda _: camera_info().but(roi=camera_info().roi.but(**values))


def intrinsics(name: str, message: Message, expected: tuple, *notices: str) -> Kind:
    focal, cx, cy, width, height = expected
    K_cam = np.array([[focal, 0, cx], [0, focal, cy], [0, 0, 1.0]])

    def make(_: Random) -> Made:
        return message, (K_cam, width, height)

    return Kind(name=name, topic="info", make=make, notices=notices)


def p_of(focal: float, cx: float, shift: float = 0.0) -> list[float]:
    """`p` of a rectified camera; `shift` is that of a second camera."""
    return [focal, 0.0, cx, shift, 0.0, focal, HEIGHT / 2, 0.0, 0.0, 0.0, 1.0, 0.0]


def turned_by(angle: float) -> list[float]:
    """`r` of a turn about the camera's y axis [rad]."""
    cos, sin = float(np.cos(angle)), float(np.sin(angle))
    return [cos, 0.0, sin, 0.0, 1.0, 0.0, -sin, 0.0, cos]


PLAIN = (100.0, WIDTH / 2 + 0.5, HEIGHT / 2 + 0.5, WIDTH, HEIGHT)
MIRROR = [-1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]

INFOS = (
    *(
        broken("info", reason, name, make)
        for reason, name, make in (
            ("uncalibrated", "k of zeros", info(k=[0.0] * 9)),
            ("intrinsics", "k without a number", matrix(
                *range(9), value=lambda r: r.choice(NO_NUMBERS))),
            ("intrinsics", "k below the diagonal", matrix(
                3, 6, 7, 8, value=lambda r: r.uniform(2, 9))),
            ("focal_length", "focal length 0 or negative", matrix(
                0, 4, value=lambda r: -r.integers(0, 99))),
            ("principal_point", "principal point outside", matrix(
                2, 5, value=lambda r: r.choice([-1.0, 176.0, 1e9]))),
            ("size_zero", "size 0", info(width=0)),
            ("distortion_model", "unknown distortion model", info(distortion_model="x" * 999)),
            ("distortion_length", "wrong number of coefficients", info(
                d=lambda r: [0.0] * int(r.choice([1, 3, 6, 12, 100_000])))),
            ("focal_length", "focal length that no picture has", matrix(
                0, 4, value=lambda r: r.choice([1e-100, 1.75, 17_601.0, 1e200, 1e308]))),
            ("intrinsics", "skew of a tenth", matrix(1, value=lambda r: r.choice([-10.1, 1e300]))),
            ("intrinsics", "p that is no camera matrix", info(p=[1.0] * 12)),
            ("focal_length", "p without a focal length", info(
                p=lambda r: p_of(float(r.choice([0.0, -5.0, 1e-100])), 88.0))),
            ("principal_point", "p's principal point outside", info(
                p=lambda r: p_of(90.0, float(r.choice([-1.0, 176.0]))))),
            ("rectification_turns", "r of a stereo camera", info(r=lambda r: turned_by(
                float(r.choice([-3.1, -0.5, 0.0011, 0.02, 1.6, 3.1415]))))),
            ("rectification", "r that mirrors", info(r=MIRROR)),
            ("rectification", "r that is no rotation", info(
                r=lambda r: r.uniform(2, 3, 9).tolist())),
            ("rectification", "r without a number", info(r=[np.nan] * 9)),
            ("region", "region beyond the image", region(x_offset=8, width=WIDTH)),
            ("region", "huge region", region(width=BIG, height=BIG)),
            ("binning", "huge binning", info(binning_x=BIG)),
        )
    ),
    intrinsics("plain", camera_info(), PLAIN),
    intrinsics("r and p not filled in", camera_info().but(r=[0.0] * 9, p=[0.0] * 12), PLAIN),
    intrinsics("no coefficients", camera_info().but(distortion_model="", d=[]), PLAIN),
    # Rectified with another focal length and centre: p belongs to the pictures that come.
    intrinsics(
        "p is not k's", camera_info().but(p=p_of(90.0, 85.0)),
        (90.0, 85.5, HEIGHT / 2 + 0.5, WIDTH, HEIGHT), "p_differs",
    ),
    intrinsics(
        "p is not k's, with binning",
        camera_info().but(p=p_of(90.0, 85.0), binning_x=2, binning_y=2),
        (45.0, 42.75, 20.25, 88, 40), "p_differs",
    ),
    intrinsics("second camera of a pair", camera_info().but(p=p_of(100.0, 88.0, -12.0)), PLAIN),
    intrinsics("r in single precision", camera_info().but(r=turned_by(0.0009)), PLAIN),
    intrinsics("coefficients", camera_info().but(d=[0.1] * 5), PLAIN, "distortion"),
    # Pixel corners: 88.5 / 2 and 40.5 / 2.
    intrinsics(
        "binning", camera_info().but(binning_x=2, binning_y=2), (50.0, 44.25, 20.25, 88, 40)
    ),
    # The region begins at (8, 4): 88.5 - 8 and 40.5 - 4.
    intrinsics(
        "region",
        camera_info().but(roi=camera_info().roi.but(x_offset=8, y_offset=4, width=160, height=72)),
        (100.0, 80.5, 36.5, 160, 72),
    ),
)  # fmt: skip


def posed(**values: Any) -> Callable[[Random], Message]:
    """Odometry with another position or orientation."""

    def make(random: Random) -> Message:
        message = odometry(random)
        new = {k: v(random) for k, v in values.items()}
        return message.but(pose=Message(pose=message.pose.pose.but(**new)))

    return make


def bad_rotation(random: Random) -> Message:
    """Not of unit length, or not a number."""
    values = vars(rotation(random, float(random.choice([0.0, 0.5, 0.99, 1.01, 1e200]))))
    if random.random() < 0.5:
        values[str(random.choice(list(values)))] = float(random.choice(NO_NUMBERS))
    return Message(**values)


def bad_position(random: Random) -> Message:
    values = [1.0, 2.0, 3.0]
    values[random.integers(3)] = float(random.choice([*NO_NUMBERS, 1e30, -1e8]))
    return vector(*values)


def pose_of(position: Message, turn: Message) -> np.ndarray:
    wxyz = np.array([turn.w, turn.x, turn.y, turn.z])
    xyz = (position.x, position.y, position.z)
    return transform_from_quaternion(wxyz / np.linalg.norm(wxyz), xyz)


def good_odometry(change: Callable[[Random, Message], Message]) -> Callable[[Random], Made]:
    def make(random: Random) -> Made:
        message = change(random, odometry(random))
        return message, pose_of(message.pose.pose.position, message.pose.pose.orientation)

    return make


def nearly_unit(random: Random, message: Message) -> Message:
    turn = rotation(random, float(random.uniform(0.9991, 1.0009)))
    return message.but(pose=Message(pose=message.pose.pose.but(orientation=turn)))


ODOMETRIES = (
    broken("odometry", "child_frame", "pose of another frame",
           lambda r: odometry(r).but(child_frame_id="trailer" * int(r.integers(1, 999)))),
    broken("odometry", "quaternion", "no rotation", posed(orientation=bad_rotation)),
    broken("odometry", "position", "no position", posed(position=bad_position)),
    Kind(name="pose", topic="odometry", make=good_odometry(lambda _, m: m)),
    Kind(name="child_frame_id not filled in", topic="odometry",
         make=good_odometry(lambda _, m: m.but(child_frame_id=""))),
    Kind(name="quaternion that is nearly of unit length", topic="odometry",
         make=good_odometry(nearly_unit)),
)  # fmt: skip


def tf(change: Callable[[Random, Message], Message]) -> Callable[[Random], Message]:
    return lambda random: Message(transforms=[change(random, transform(random))])


def turned(random: Random, message: Message) -> Message:
    return message.but(transform=message.transform.but(rotation=bad_rotation(random)))


def moved(random: Random, message: Message) -> Message:
    return message.but(transform=message.transform.but(translation=bad_position(random)))


def good_tf(random: Random) -> Made:
    several = [transform(random, f"camera{i}") for i in range(int(random.integers(0, 9)))]
    expected = {
        one.child_frame_id: pose_of(one.transform.translation, one.transform.rotation)
        for one in several
    }
    return Message(transforms=several), expected


TRANSFORMS = (
    *(
        broken("tf", reason, name, make)
        for reason, name, make in (
            ("quaternion", "no rotation", tf(turned)),
            ("position", "no translation", tf(moved)),
            ("tf_loop", "a frame in itself", tf(lambda _, m: m.but(child_frame_id="base_link"))),
            ("frame_empty", "no child", tf(lambda _, m: m.but(child_frame_id=""))),
            ("frame_empty", "no parent", tf(lambda _, m: m.but(header=header(frame_id="")))),
            ("frame_slash", "child with a leading slash", tf(
                lambda _, m: m.but(child_frame_id="/camera"))),
            ("frame_long", "child of 10 kB", tf(lambda _, m: m.but(child_frame_id="c" * 10_000))),
            ("tf_long", "thousands of transforms", lambda r: Message(
                transforms=[transform(r)] * 1001)),
        )
    ),
    Kind(name="transforms", topic="tf", make=good_tf),
)  # fmt: skip
