"""Image and CompressedImage: what is refused and what is only unusual."""

import struct
import zlib
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import simplejpeg
from malformed_kinds import Kind, Made, broken
from message_stand_ins import CHANNELS, HEIGHT, WIDTH, Message, compressed, image, picture

Random = np.random.Generator
BIG = 2**32 - 1
UNSUPPORTED = ("bayer_rggb16", "nv21", "nv24", "8UC3", "16UC1", "32FC1")
BAYER = {"bayer_rggb8": "RGGB", "bayer_bggr8": "BGGR", "bayer_gbrg8": "GBRG", "bayer_grbg8": "GRBG"}
YUV = {"yuv422": "UYVY", "uyvy": "UYVY", "yuv422_yuy2": "YUYV", "yuyv": "YUYV", "nv12": ""}
RED_YUV = {"Y": 81, "U": 90, "V": 240}
"""Red in BT.601. Source: Y = 16 + 65.5 R, U = 128 - 37.8 R, V = 128 + 112 R with R = 1."""


def good(random: Random) -> Message:
    return image(picture(random), str(random.choice(list(CHANNELS))))


def changed(**values: Any) -> Callable[[Random], Message]:
    return lambda random: good(random).but(
        **{k: v(random) if callable(v) else v for k, v in values.items()}
    )


def relabelled(sent: str, said: str) -> Callable[[Random], Message]:
    """Pixels of one encoding under the name of another."""
    # Wide, so that the surplus of a row is more than a filling would be.
    return lambda random: image(picture(random, 1200, 2), sent).but(encoding=said)


def data_by(change: Callable[[Random, bytes], bytes]) -> Callable[[Random], Message]:
    def make(random: Random) -> Message:
        message = good(random)
        return message.but(data=change(random, message.data))

    return make


def recolored(encoding: str, padding: int = 0) -> Kind:
    def make(random: Random) -> Made:
        rgb = picture(random)
        if encoding == "mono8":
            rgb = np.repeat(rgb[:, :, :1], 3, axis=2)
        return image(rgb, encoding, int(random.integers(1, 65)) if padding else 0), rgb

    name = f"{encoding} with filled rows" if padding else encoding
    return Kind(name=name, topic="image", make=make)


def big_endian(random: Random) -> Made:
    rgb = picture(random)
    return image(rgb).but(is_bigendian=1), rgb


def mosaic(encoding: str, color: tuple[int, int, int]) -> Message:
    """A picture of one colour behind a Bayer filter."""
    square = [color["RGB".index(name)] for name in BAYER[encoding]]
    data = np.tile(np.array(square, np.uint8).reshape(2, 2), (HEIGHT // 2, WIDTH // 2))
    grey = image(np.zeros((HEIGHT, WIDTH, 3), np.uint8), "mono8")
    return grey.but(encoding=encoding, data=data.tobytes())


def bayer(encoding: str) -> Callable[[Random], Made]:
    def make(random: Random) -> Made:
        color = tuple(random.integers(0, 256, 3).tolist())
        return mosaic(encoding, color), np.full((HEIGHT, WIDTH, 3), color, np.uint8)

    return make


def red(encoding: str) -> Callable[[Random], Made]:
    order, num_pixels = YUV[encoding], WIDTH * HEIGHT
    if order:
        data = bytes(RED_YUV[name] for name in order) * (num_pixels // 2)
    else:  # all of Y, then U and V of each four pixels
        data = bytes([81] * num_pixels + [90, 240] * (num_pixels // 4))
    rgb = np.full((HEIGHT, WIDTH, 3), (254, 0, 0), np.uint8)
    step = 2 * WIDTH if order else WIDTH
    return lambda _: (image(rgb, "mono8").but(encoding=encoding, step=step, data=data), rgb)


def deep(encoding: str, order: str) -> Callable[[Random], Made]:
    def make(random: Random) -> Made:
        rgb = picture(random)
        if encoding == "mono":
            rgb = np.repeat(rgb[:, :, :1], 3, axis=2)
        plain = image(rgb, f"{encoding}8")
        values = np.frombuffer(plain.data, np.uint8).astype(f"{order}u2") * 256
        values += random.integers(0, 256, values.shape, dtype=np.uint8)  # the lower byte is left
        return plain.but(
            encoding=f"{encoding}16",
            step=2 * plain.step,
            is_bigendian=order == ">",
            data=values.astype(f"{order}u2").tobytes(),
        ), rgb

    return make


IMAGES = (
    *(
        broken("image", reason, name, make)
        for reason, name, make in (
            ("image_empty", "no data", changed(data=b"")),
            ("data_short", "data cut off", data_by(lambda r, d: d[: r.integers(1, len(d))])),
            ("data_long", "data too long", data_by(lambda r, d: d + bytes(int(r.integers(1, 99))))),
            ("step_short", "step 0", changed(step=0)),
            ("step_short", "step below a row", changed(step=lambda r: r.integers(1, WIDTH))),
            ("step_long", "huge step", changed(step=BIG)),
            ("size_zero", "width 0", changed(width=0)),
            ("size_zero", "height 0", changed(height=0)),
            ("size_huge", "huge size", changed(width=BIG, height=BIG)),
            ("size_huge", "size that is 0 in 32 bits", changed(width=2**16, height=2**16)),
            ("size_calibration", "another size than the calibration's",
             lambda r: image(picture(r, WIDTH - 2 * int(r.integers(1, 9)), HEIGHT))),
            ("encoding_unknown", "unknown encoding",
             changed(encoding=lambda r: "".join(map(chr, r.integers(33, 1000, 6))))),
            ("encoding_unknown", "no encoding", changed(encoding="")),
            ("encoding_unknown", "encoding of 10 kB", changed(encoding="q" * 10_000)),
            ("data_short", "nv12 without its colours",
             lambda _: mosaic("bayer_rggb8", (1, 2, 3)).but(encoding="nv12")),
            ("encoding_unsupported", "numbers without a meaning, rare orders",
             changed(encoding=lambda r: str(r.choice(UNSUPPORTED)))),
        )
    ),
    broken("image", "step_short", "grey pixels called rgb8",
           lambda r: image(picture(r), "mono8").but(encoding="rgb8")),
    broken("image", "size_calibration", "width and height exchanged",
           lambda r: image(picture(r, HEIGHT, WIDTH))),
    *(recolored(encoding) for encoding in CHANNELS),
    *(Kind(name=encoding, topic="image", make=bayer(encoding)) for encoding in BAYER),
    *(Kind(name=encoding, topic="image", make=red(encoding)) for encoding in YUV),
    *(Kind(name=f"{encoding}16{order}", topic="image", make=deep(encoding, order))
      for encoding in ("rgb", "bgr", "rgba", "bgra", "mono") for order in "<>"),
    recolored("rgb8", padding=1),
    recolored("bgra8", padding=1),
    recolored("mono8", padding=1),
    Kind(name="bytes called big-endian", topic="image", make=big_endian),
)  # fmt: skip


def jpeg(rgb: np.ndarray, **options: Any) -> bytes:
    return bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(rgb), **options))


def jpeg_of(change: Callable[[Random, bytes], bytes]) -> Callable[[Random], Message]:
    return lambda random: compressed(picture(random)).but(
        format="jpeg", data=change(random, jpeg(picture(random)))
    )


def with_luma_sampling(data: bytes, factors: int) -> bytes:
    """Another number of luma samples per block: four bits across, four down."""
    place = data.index(b"\xff\xc0") + 11
    return data[:place] + bytes([factors]) + data[place + 1 :]


def with_size(content: bytes, width: int, height: int) -> bytes:
    """A JPEG whose header says another size (frame header: marker, length, bits, height, width)."""
    place = content.index(b"\xff\xc0")
    return content[: place + 5] + struct.pack(">HH", height, width) + content[place + 9 :]


def png_of(change: Callable[[Random, bytes], bytes]) -> Callable[[Random], Message]:
    def make(random: Random) -> Message:
        message = compressed(picture(random))
        return message.but(data=change(random, message.data))

    return make


def png_file(*chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of the given chunks, with right sums."""
    parts = (
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def png_header(width: int, height: int, depth: int = 8) -> tuple[bytes, bytes]:
    return b"IHDR", struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0)


BOMB = zlib.compress(bytes(20_000_000), 9)
"""20 MB of zeros in 20 kB."""


def bomb(width: int, height: int) -> Callable[[Random, bytes], bytes]:
    return lambda *_: png_file(png_header(width, height), (b"IDAT", BOMB), (b"IEND", b""))


def flip_one(random: Random, content: bytes) -> bytes:
    place = int(random.integers(8, len(content) - 12))
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def deep_png(random: Random) -> Message:
    done, data = cv2.imencode(".png", picture(random).astype(np.uint16) * 256)
    assert done
    return compressed(picture(random)).but(data=data.tobytes())


def cmyk(random: Random) -> Message:
    pixels = random.integers(0, 256, (HEIGHT, WIDTH, 4), dtype=np.uint8)
    data = simplejpeg.encode_jpeg(pixels, colorspace="CMYK")
    return compressed(picture(random)).but(data=bytes(data))


def exact(random: Random, rgb: np.ndarray, content: bytes, kind: str) -> Made:
    """A JPEG with what the decoder makes of it."""
    return compressed(rgb).but(format=kind, data=content), simplejpeg.decode_jpeg(content)


def exif(random: Random) -> Made:
    rgb, content = picture(random), jpeg(picture(random))
    # Orientation 6, turned by a quarter: TIFF header, one entry (tag 0x112, short, 1 value).
    tiff = b"MM\0*\0\0\0\x08\0\x01" + struct.pack(">HHIHH", 0x112, 3, 1, 6, 0) + bytes(4)
    body = b"Exif\0\0" + tiff
    segment = b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body
    return exact(random, rgb, content[:2] + segment + content[2:], "jpeg")


def grey(random: Random) -> Made:
    grey_pixels = np.ascontiguousarray(picture(random)[:, :, :1])
    return exact(random, picture(random), jpeg(grey_pixels, colorspace="GRAY"), "mono8; jpeg")


def lossless(kind: str, extra: bool = False) -> Callable[[Random], Made]:
    def make(random: Random) -> Made:
        rgb = picture(random)
        message = compressed(rgb, kind=kind)
        if extra:  # a profile that unpacks to 20 MB, behind IHDR
            chunk = png_file((b"iCCP", b"p\0\0" + BOMB))[8:]
            message = message.but(data=message.data[:33] + chunk + message.data[33:])
        return message, rgb

    return make


COMPRESSED = (
    *(
        broken("compressed", reason, name, make)
        for reason, name, make in (
            ("image_empty", "no data", png_of(lambda *_: b"")),
            ("format_unknown", "neither JPEG nor PNG", png_of(
                lambda r, d: r.integers(0, 128, 99, dtype=np.uint8).tobytes())),
            ("jpeg_damaged", "JPEG cut off", jpeg_of(
                lambda r, d: d[: int(r.integers(4, len(d) - 2))])),
            ("jpeg_damaged", "JPEG of an unknown subsampling", jpeg_of(
                lambda r, d: with_luma_sampling(d, 0x14))),
            ("jpeg_damaged", "JPEG of size 0", jpeg_of(lambda r, d: with_size(d, 0, HEIGHT))),
            ("jpeg_damaged", "JPEG that is only a beginning", jpeg_of(
                lambda r, d: d[:3] + r.bytes(64))),
            ("jpeg_color", "JPEG for printers", cmyk),
            ("jpeg_scans", "JPEG with hundreds of scans", jpeg_of(
                lambda r, d: d[:-2] + b"\xff\xda\x00\x02" * 500 + d[-2:])),
            ("size_huge", "JPEG that says 65000 x 65000", jpeg_of(
                lambda r, d: with_size(d, 65000, 65000))),
            ("size_calibration", "JPEG of another size", jpeg_of(
                lambda r, d: jpeg(picture(r, WIDTH, HEIGHT + int(r.integers(1, 9)))))),
            ("png_damaged", "PNG cut off", png_of(lambda r, d: d[: int(r.integers(8, len(d)))])),
            ("png_damaged", "PNG with a changed bit", png_of(flip_one)),
            ("png_damaged", "PNG without pixels", png_of(
                lambda *_: png_file(png_header(WIDTH, HEIGHT), (b"IEND", b"")))),
            ("png_damaged", "PNG with too few pixels", png_of(lambda *_: png_file(
                png_header(WIDTH, HEIGHT), (b"IDAT", zlib.compress(bytes(999))), (b"IEND", b"")))),
            ("png_depth", "PNG with 16 bits", deep_png),
            ("size_huge", "PNG bomb", png_of(bomb(60_000, 60_000))),
            ("size_zero", "PNG of size 0", png_of(bomb(0, HEIGHT))),
            ("size_calibration", "PNG of another size", png_of(bomb(2000, 2000))),
        )
    ),
    Kind(name="PNG", topic="compressed", make=lossless("rgb8; png compressed bgr8")),
    Kind(name="PNG called JPEG", topic="compressed", make=lossless("jpeg"),
         notices=("format_differs",)),
    Kind(name="PNG with a profile that is a bomb", topic="compressed", make=lossless("png", True)),
    Kind(name="JPEG called PNG", topic="compressed", make=lambda r: exact(
        r, p := picture(r), jpeg(p), "png"), notices=("format_differs",)),
    Kind(name="JPEG with EXIF rotation", topic="compressed", make=exif, notices=("exif_rotation",)),
    Kind(name="grey JPEG", topic="compressed", make=grey),
)  # fmt: skip
