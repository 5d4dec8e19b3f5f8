"""Good messages as plain objects with the attributes of ROS messages; ROS is not needed."""

from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np

WIDTH, HEIGHT = 176, 80
"""Size of the pictures [px]: small, and tall enough for the crop of `toy_bundle`."""

CODES = {"i1": 1, "u1": 2, "i2": 3, "u2": 4, "i4": 5, "u4": 6, "f4": 7, "f8": 8}
PLAIN = {"x": "f4", "y": "f4", "z": "f4", "intensity": "f4"}
CHANNELS = {"rgb8": (0, 1, 2), "bgr8": (2, 1, 0), "rgba8": (0, 1, 2, 0), "bgra8": (2, 1, 0, 0),
            "mono8": (0,)}  # fmt: skip


class Message(SimpleNamespace):
    """A message; `but` gives a copy with other values."""

    def but(self, **values: Any) -> "Message":
        return Message(**{**vars(self), **values})


def header(stamp_ns: int = 1_000_000_000, frame_id: str = "sensor") -> Message:
    stamp = Message(sec=stamp_ns // 10**9, nanosec=stamp_ns % 10**9)
    return Message(stamp=stamp, frame_id=frame_id)


def field(name: str, offset: int, code: str) -> Message:
    return Message(name=name, offset=offset, datatype=CODES[code], count=1)


def points(random: np.random.Generator, num: int) -> np.ndarray:
    """Points within the toy's range, float32 [4, num]; intensities are whole numbers."""
    xyz = random.uniform(-15, 15, (3, num))
    xyz[2] /= 5
    return np.vstack([xyz, random.integers(0, 101, num)]).astype(np.float32)


def cloud(
    values: np.ndarray,
    layout: dict[str, str] | None = None,
    *,
    order: str = "<",
    rows: int = 1,
    row_padding: int = 0,
    point_padding: int = 0,
    **extra: Any,
) -> Message:
    """PointCloud2 of points [4, n]; `extra` fills fields of other names."""
    layout = layout or PLAIN
    sizes = [int(code[1:]) for code in layout.values()]
    offsets = np.cumsum([0, *sizes]).tolist()
    kind = np.dtype({
        "names": list(layout), "formats": [order + code for code in layout.values()],
        "offsets": offsets[:-1], "itemsize": offsets[-1] + point_padding,
    })  # fmt: skip
    table = np.zeros(values.shape[1], kind)
    with np.errstate(all="ignore"):
        for name in layout:
            known = dict(zip(PLAIN, values, strict=True)) | extra
            table[name] = known.get(name, 0)
    width = values.shape[1] // rows
    lines = [row.tobytes() + b"\xff" * row_padding for row in table.reshape(rows, width)]
    return Message(
        header=header(),
        height=rows,
        width=width,
        fields=[
            field(name, offset, code)
            for (name, code), offset in zip(layout.items(), offsets[:-1], strict=True)
        ],
        is_bigendian=order == ">",
        point_step=kind.itemsize,
        row_step=width * kind.itemsize + row_padding,
        data=b"".join(lines),
        is_dense=True,
    )


def picture(random: np.random.Generator, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """Pixels that compress well: two flat halves."""
    rgb = np.empty((height, width, 3), np.uint8)
    rgb[:, : width // 2], rgb[:, width // 2 :] = random.integers(0, 256, (2, 3))
    return rgb


def image(rgb: np.ndarray, encoding: str = "rgb8", padding: int = 0) -> Message:
    pixels = np.ascontiguousarray(rgb[:, :, CHANNELS[encoding]])
    height, width, channels = pixels.shape
    rows = np.pad(pixels.reshape(height, -1), ((0, 0), (0, padding)), constant_values=255)
    return Message(
        header=header(),
        height=height,
        width=width,
        encoding=encoding,
        is_bigendian=0,
        step=width * channels + padding,
        data=rows.tobytes(),
    )


def compressed(rgb: np.ndarray, extension: str = ".png", kind: str | None = None) -> Message:
    done, data = cv2.imencode(extension, np.ascontiguousarray(rgb[:, :, ::-1]))
    assert done
    return Message(header=header(), format=kind or extension[1:], data=data.tobytes())


def camera_info(focal: float = 100.0) -> Message:
    k = [focal, 0.0, WIDTH / 2, 0.0, focal, HEIGHT / 2, 0.0, 0.0, 1.0]
    return Message(
        header=header(),
        width=WIDTH,
        height=HEIGHT,
        distortion_model="plumb_bob",
        d=[0.0] * 5,
        k=k,
        r=np.eye(3).ravel().tolist(),
        p=[*k[:3], 0.0, *k[3:6], 0.0, *k[6:], 0.0],
        binning_x=0,
        binning_y=0,
        roi=Message(x_offset=0, y_offset=0, width=0, height=0, do_rectify=False),
    )


def vector(x: float, y: float, z: float) -> Message:
    return Message(x=x, y=y, z=z)


def rotation(random: np.random.Generator, length: float = 1.0) -> Message:
    wxyz = random.normal(size=4)
    w, x, y, z = (wxyz / np.linalg.norm(wxyz) * length).tolist()
    return Message(w=w, x=x, y=y, z=z)


def transform(random: np.random.Generator, child: str = "sensor") -> Message:
    return Message(
        header=header(frame_id="base_link"),
        child_frame_id=child,
        transform=Message(
            translation=vector(*random.uniform(-3, 3, 3).tolist()), rotation=rotation(random)
        ),
    )


def odometry(random: np.random.Generator) -> Message:
    pose = Message(
        position=vector(*random.uniform(-1e3, 1e3, 3).tolist()), orientation=rotation(random)
    )
    return Message(
        header=header(frame_id="odom"), child_frame_id="base_link", pose=Message(pose=pose)
    )
