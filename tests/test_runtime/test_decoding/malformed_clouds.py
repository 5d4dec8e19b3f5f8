"""PointCloud2 and headers: what is refused and what is only unusual."""

from collections.abc import Callable
from typing import Any

import numpy as np
from malformed_kinds import Kind, Made, broken
from message_stand_ins import PLAIN, Message, cloud, field, header, points

from runtime.decoding.cloud_decoding import CloudRules

Random = np.random.Generator
BIG = 2**32 - 1
FLOATS = ("f4", "f8")
NO_TEXT = "lid\N{REPLACEMENT CHARACTER}r"
"""What ROS makes of bytes that are no UTF-8."""

MANY = [field(f"f{i}", 0, "f4") for i in range(5000)]
NUMBERS = ("i1", "u1", "i2", "u2", "i4", "u4", "f4", "f8")


def good(random: Random) -> Message:
    return cloud(points(random, int(random.integers(2, 40))))


def changed(**values: Any) -> Callable[[Random], Message]:
    """A good cloud with other values; callables are asked with a generator."""

    def make(random: Random) -> Message:
        return good(random).but(**{k: v(random) if callable(v) else v for k, v in values.items()})

    return make


def with_fields(change: Callable[[Random, list[Message]], list[Message]]) -> Any:
    def make(random: Random) -> Message:
        message = good(random)
        return message.but(fields=change(random, message.fields))

    return make


def one_field(names: tuple[str, ...], **values: Any) -> Any:
    """One of the named fields, chosen at random, with other values."""

    def change(random: Random, fields: list[Message]) -> list[Message]:
        name = random.choice(names)
        new = {k: int(random.choice(v)) if isinstance(v, tuple) else v for k, v in values.items()}
        return [f.but(**new) if f.name == name else f for f in fields]

    return with_fields(change)


def without(name: str) -> Any:
    return with_fields(lambda _, fields: [f for f in fields if f.name != name])


def resized(point_step: int) -> Callable[[Random], Message]:
    """Another point_step with all else fitting."""

    def make(random: Random) -> Message:
        message = good(random)
        row_step = message.width * point_step
        return message.but(point_step=point_step, row_step=row_step, data=bytes(row_step))

    return make


def row_step_by(difference: int) -> Callable[[Random], Message]:
    def make(random: Random) -> Message:
        message = good(random)
        return message.but(row_step=message.row_step + difference)

    return make


def data_by(change: Callable[[Random, bytes], bytes]) -> Callable[[Random], Message]:
    def make(random: Random) -> Message:
        message = good(random)
        return message.but(data=change(random, message.data))

    return make


def framed(make_frame: Callable[[Random], str]) -> Callable[[Random], Message]:
    return changed(header=lambda random: header(frame_id=make_frame(random)))


def stamped(make_stamp: Callable[[Random], tuple[int, int]]) -> Callable[[Random], Message]:
    def make(random: Random) -> Message:
        sec, nanosec = make_stamp(random)
        return good(random).but(
            header=Message(stamp=Message(sec=sec, nanosec=nanosec), frame_id="sensor")
        )

    return make


def all_bad(random: Random) -> Message:
    values = points(random, 20)
    values[random.integers(0, 3), :] = random.choice([np.nan, np.inf, -np.inf])
    return cloud(values)


REFUSED = tuple(
    broken("cloud", reason, name, make)
    for reason, name, make in (
        ("points_overflow", "width x height beyond 32 bits", changed(width=BIG, height=BIG)),
        ("points_overflow", "width x height is 0 in 32 bits", changed(width=2**16, height=2**16)),
        ("too_many_points", "more points than the cap", changed(width=2_000_001)),
        ("no_points", "width 0", changed(width=0)),
        ("no_points", "height 0", changed(height=0)),
        ("no_points", "every point without a number", all_bad),
        ("point_step_zero", "point_step 0", changed(point_step=0)),
        ("point_step_short", "point_step cuts the last field", resized(15)),
        ("row_step_zero", "row_step 0", changed(row_step=0)),
        ("row_step_short", "row_step below width x point_step", row_step_by(-1)),
        ("row_step_short", "point_step far beyond the data", changed(point_step=BIG)),
        ("data_short", "row_step beyond the data", row_step_by(1)),
        ("data_short", "huge row_step", changed(row_step=BIG)),
        ("data_short", "no data", changed(data=b"")),
        ("data_short", "data cut off", data_by(lambda r, d: d[: r.integers(0, len(d))])),
        ("data_short", "more rows than the data", changed(height=lambda r: r.integers(2, 9))),
        ("data_long", "data too long", data_by(lambda r, d: d + bytes(int(r.integers(1, 99))))),
        ("field_missing", "no x", without("x")),
        ("field_missing", "no y", without("y")),
        ("field_missing", "no z", without("z")),
        ("field_missing", "no intensity", without("intensity")),
        ("field_missing", "no fields", changed(fields=[])),
        ("field_missing", "other names", one_field(tuple(PLAIN), name="range")),
        ("field_duplicate", "a field twice", with_fields(lambda r, f: [*f, f[r.integers(4)]])),
        ("field_type", "unknown type code", one_field(tuple(PLAIN), datatype=(0, 9, 255))),
        ("field_type", "whole numbers as coordinates", one_field(("x", "y", "z"), datatype=(1, 6))),
        ("field_count", "several values per point", one_field(tuple(PLAIN), count=(2, 3, BIG))),
        ("field_offset", "offset at the end", one_field(tuple(PLAIN), offset=16)),
        ("field_offset", "huge offset", one_field(tuple(PLAIN), offset=(BIG, BIG - 3))),
        ("field_overlap", "fields overlap", one_field(("y",), offset=(0, 1, 2, 3))),
        ("too_many_fields", "thousands of fields", with_fields(
            lambda _, f: f + MANY)),
        ("frame_empty", "frame_id empty", framed(lambda _: "")),
        ("frame_slash", "frame_id with a leading slash", framed(lambda _: "/lidar")),
        ("frame_long", "frame_id of 10 kB", framed(lambda r: "x" * int(r.integers(256, 10_001)))),
        ("frame_text", "frame_id that is no UTF-8", framed(lambda _: NO_TEXT)),
        ("frame_text", "frame_id with control codes", framed(lambda _: "a\a")),
        ("stamp_zero", "stamp 0", stamped(lambda _: (0, 0))),
        ("stamp_negative", "stamp negative", stamped(lambda r: (-int(r.integers(1, 2**31)), 5))),
        ("stamp_nanosec", "nanosec of a second or more", stamped(
            lambda r: (5, int(r.integers(10**9, 2**32))))),
    )
)  # fmt: skip


def legal(
    name: str,
    make: Callable[[Random, np.ndarray], Message],
    *notices: str,
    rules: CloudRules | None = None,
    num: int | None = None,
) -> Kind:
    """A variant that decodes to its points."""

    def make_both(random: Random) -> Made:
        values = points(random, num or 2 * int(random.integers(1, 20)))
        values[0, 0] = 5.0  # a sweep of which every point is on the car is not used
        return make(random, values), values

    return Kind(
        name=name, topic="cloud", make=make_both, notices=notices, rules=rules or CloudRules()
    )


def dropped(name: str, spoil: Callable[[Random, np.ndarray], None]) -> Kind:
    """A variant of which every third point is not a measurement."""

    def make(random: Random) -> Made:
        values = points(random, 30)
        kept = np.arange(30) % 3 > 0
        bad = values[:, ~kept]
        spoil(random, bad)
        values[:, ~kept] = bad
        return cloud(values), values[:, kept]

    return Kind(name=name, topic="cloud", make=make, notices=("points_dropped",))


def mixed_layout(random: Random, values: np.ndarray) -> Message:
    """Types, order and fillings as drivers choose them."""
    names = [*PLAIN, "ring", "time", "filler"]
    random.shuffle(names)
    types = {"x": FLOATS, "y": FLOATS, "z": FLOATS, "ring": ("u2",), "time": FLOATS,
             "intensity": NUMBERS, "filler": ("u1",)}  # fmt: skip
    layout = {name: str(random.choice(types[name])) for name in names}
    extra = {"ring": 65535, "time": random.choice([np.nan, -1.0, 1e12])}
    return cloud(values, layout, order=str(random.choice(["<", ">"])), **extra)


def intensities(name: str, value: float, cut: float) -> Kind:
    def make(random: Random) -> Made:
        values = points(random, 6)
        values[3, 2] = value
        expected = values.copy()
        expected[3, 2] = cut
        return cloud(values), expected

    return Kind(name=name, topic="cloud", make=make, notices=("intensity_cut",))


def spoil_with(*numbers: float) -> Callable[[Random, np.ndarray], None]:
    def spoil(random: Random, bad: np.ndarray) -> None:
        bad[random.integers(0, 3, bad.shape[1]), np.arange(bad.shape[1])] = random.choice(
            np.array(numbers, np.float32), bad.shape[1]
        )

    return spoil


def denormal(random: Random, values: np.ndarray) -> Message:
    values[2] = random.choice(np.array([1e-40, -1e-42], np.float32), values.shape[1])
    return cloud(values)


def in_one_place(_: Random, values: np.ndarray) -> Message:
    values[:3] = np.float32([[8.25], [-7.5], [0.25]])
    return cloud(values)


CLOUDS = (
    *REFUSED,
    broken(
        "cloud", "too_many_points", "one point more than the cap",
        lambda r: cloud(points(r, 11)), CloudRules(max_points=10),
    ),
    legal(
        "as many points as the cap", lambda _, v: cloud(v), rules=CloudRules(max_points=10), num=10
    ),
    legal("one point", lambda _, v: cloud(v), num=1),
    legal("point_step not aligned", lambda r, v: cloud(v, point_padding=int(r.integers(1, 16)))),
    legal("rows with filling", lambda r, v: cloud(v, rows=2, row_padding=int(r.integers(0, 9)))),
    legal(
        "row_step 0 under the switch", lambda _, v: cloud(v).but(row_step=0), "row_step_zero",
        rules=CloudRules(allow_zero_row_step=True),
    ),
    legal("big-endian", lambda _, v: cloud(v, order=">")),
    legal("double precision", lambda _, v: cloud(v, dict(PLAIN, x="f8", y="f8", z="f8"))),
    legal("intensity of any number type", lambda r, v: cloud(
        v, dict(PLAIN, intensity=str(r.choice(NUMBERS))))),
    legal("other order, other fields, other types", mixed_layout),
    legal("count 0, as old drivers write it", lambda _, v: (m := cloud(v)).but(
        fields=[f.but(count=0) for f in m.fields])),
    legal("is_dense says nothing", lambda _, v: cloud(v).but(is_dense=False)),
    legal("denormal numbers", denormal),
    legal("all points in one place", in_one_place),
    dropped("some points without a number", spoil_with(np.nan, np.inf, -np.inf)),
    dropped("some points at 1e30", spoil_with(1e30, -1e30)),
    intensities("intensity without a number", np.nan, 0.0),
    intensities("intensity beyond 255", 65535.0, 255.0),
    intensities("intensity below 0", -3.0, 0.0),
    intensities("intensity infinite", np.inf, 255.0),
)  # fmt: skip
