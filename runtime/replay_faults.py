"""Damages a recording on its way into the runtime: the same damage for the same seed.

message ---> lost? dead? ---> frozen? stuck? ---> delayed: jitter, late, burst ---> in order again
"""

import dataclasses
import heapq
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from perception.data.nuscenes_log import MissingFile
from perception.errors import InputError
from perception.messages import CameraImage, SensorMessage
from perception.taxonomy import CAMERAS, LIDAR
from runtime.message_source import Arrival, sensor_of

FaultKind = Literal["dead", "lossy", "frozen", "stuck", "late", "burst"]
"""dead: nothing comes. lossy: messages are lost with a probability. frozen: the last picture or
cloud again and again under fresh stamps. stuck: the last message again, stamp and all. late: comes
some time after its stamp. burst: everything is held back and comes at the end at once."""

GROUPS = {"ALL": (*CAMERAS, LIDAR), "CAMERAS": CAMERAS}
"""Names for several sensors in a script."""

DEFAULT_VALUES: dict[FaultKind, float] = {"lossy": 0.5, "late": 100.0}
"""Probability; delay [ms]. Source: ours; 100 ms is past every sensor's window."""

MAX_TIME_S = 1e6
"""Longest time that a fault lasts, delays by, or keeps away [s]: no recording lasts as long.
Source: ours."""

SCRIPT_FORM = "SENSOR:KIND:FROM-TO[:VALUE], e.g. CAM_BACK:dead:2.0-4.0"


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One line of a script."""

    sensors: tuple[str, ...]
    """Sensors that it strikes."""
    kind: FaultKind
    """What happens to them."""
    from_s: float
    """Start, since the scene's first message [s]."""
    to_s: float
    """End, exclusive [s]."""
    value: float = 0.0
    """lossy: probability 0..1; late: delay [ms]; without meaning for the others."""


@dataclass(frozen=True, kw_only=True)
class FaultPlan:
    """Everything that is done to a recording; the default does nothing."""

    script: tuple[Fault, ...] = ()
    """Faults at given times."""
    jitter_ms: float = 0.0
    """Standard deviation of a message's extra delay [ms]; the delay is its absolute value."""
    loss: float = 0.0
    """Probability that a message is lost, 0..1."""
    bursts_per_minute: float = 0.0
    """How often the whole machine stalls; what arrives in a stall is delivered at its end."""
    burst_ms: float = 300.0
    """How long a stall lasts [ms]. Source: ours, three periods."""
    seed: int = 0
    """Of everything random."""

    def __post_init__(self) -> None:
        """Refuse what is no probability or no time."""
        numbers = (self.jitter_ms, self.bursts_per_minute, self.burst_ms)
        most = MAX_TIME_S * 1e3
        if not 0 <= self.loss <= 1 or not all(0 <= n <= most for n in numbers) or self.seed < 0:
            raise InputError(
                f"loss is {self.loss}, expected 0..1; jitter, bursts and burst time are {numbers}, "
                f"expected 0 to {most:g}, and the seed is {self.seed}, expected 0 or more."
            )


def parse_fault(text: str) -> Fault:
    """Read one fault of a script, see `SCRIPT_FORM`.

    Raises:
        InputError: It has another form, or names an unknown sensor or kind.
    """
    name, _, rest = text.partition(":")
    kind, _, rest = rest.partition(":")
    span, _, value = rest.partition(":")
    sensors = GROUPS.get(name, (name,))
    if not set(sensors) <= set(GROUPS["ALL"]):
        expected = ", ".join((*GROUPS["ALL"], *GROUPS))
        raise InputError(f"Fault {text!r} is of the sensor {name!r}, expected one of {expected}.")
    kinds: dict[str, FaultKind] = {known: known for known in get_args(FaultKind)}
    if kind not in kinds:
        raise InputError(f"Fault {text!r} is of kind {kind!r}, expected one of {', '.join(kinds)}.")
    try:
        from_s, to_s = (float(end) for end in span.split("-"))
        number = float(value) if value else DEFAULT_VALUES.get(kinds[kind], 0.0)
    except ValueError as error:
        raise InputError(f"Fault {text!r} has another form, expected {SCRIPT_FORM}.") from error
    largest = 1.0 if kind == "lossy" else MAX_TIME_S * 1e3
    if not (0 <= from_s < to_s <= MAX_TIME_S and 0 <= number <= largest):
        raise InputError(
            f"Fault {text!r} lasts from {from_s} to {to_s} s with the value {number}, expected "
            f"times that grow up to {MAX_TIME_S:g}, and a value from 0 to {largest:g}."
        )
    return Fault(sensors=sensors, kind=kinds[kind], from_s=from_s, to_s=to_s, value=number)


def with_faults(
    arrivals: Iterable[Arrival], plan: FaultPlan, scene: str, counters: Counter[str]
) -> Iterator[Arrival]:
    """Do to a scene's messages what a plan says.

    Args:
        arrivals: In the order of their time.
        plan: What to do.
        scene: Its name goes into the seed, so that scenes differ.
        counters: Counts what was done, as "SENSOR: kind".

    Yields:
        What arrives, in the order of its new time; messages of one sensor keep their order.
    """
    if plan == FaultPlan(seed=plan.seed, burst_ms=plan.burst_ms):
        yield from arrivals
        return
    striker: _Striker | None = None
    held: list[tuple[int, int, Arrival]] = []
    for number, arrival in enumerate(arrivals):
        striker = striker or _Striker(plan, scene, arrival.now_ns, counters)
        while held and held[0][0] <= arrival.now_ns:
            yield heapq.heappop(held)[2]
        struck = striker.strike(arrival)
        heapq.heappush(held, (struck.now_ns, number, struck))
    while held:
        yield heapq.heappop(held)[2]


class _Striker:
    """The state of a scene's faults."""

    def __init__(self, plan: FaultPlan, scene: str, first_ns: int, counters: Counter[str]) -> None:
        self._plan, self._scene, self._first_ns = plan, scene, first_ns
        self._counters = counters
        self._random: dict[str, np.random.Generator] = {}
        self._last: dict[str, SensorMessage] = {}
        """Newest undamaged message per sensor."""
        self._last_ns: dict[str, int] = {}
        """Newest time of arrival per sensor."""
        self._stall_ns = (first_ns, first_ns)
        """Start and end of the newest stall."""

    def strike(self, arrival: Arrival) -> Arrival:
        """The same arrival with its faults; None as message where it is lost."""
        message = arrival.message
        if message is None or isinstance(message, MissingFile):
            return arrival
        sensor = sensor_of(message)
        lost_draw, lossy_draw, jitter = self._draws(sensor)
        since_s = (arrival.now_ns - self._first_ns) * 1e-9
        faults = {
            fault.kind: fault
            for fault in self._plan.script
            if sensor in fault.sensors and fault.from_s <= since_s < fault.to_s
        }
        lossy = faults["lossy"].value if "lossy" in faults else 0.0
        if "dead" in faults or lossy_draw < lossy or lost_draw < self._plan.loss:
            kind = "dead" if "dead" in faults else "lossy" if lossy_draw < lossy else "lost"
            return self._without(arrival, sensor, kind)
        for kind in ("stuck", "frozen"):
            if kind in faults:
                if sensor not in self._last:
                    return self._without(arrival, sensor, kind)
                self._count(sensor, kind)
                last = self._last[sensor]
                message = last if kind == "stuck" else _renewed(last, message)
                break
        else:
            self._last[sensor] = message
        now_ns = self._delayed(arrival.now_ns, sensor, faults, jitter)
        self._last_ns[sensor] = now_ns
        return Arrival(now_ns=now_ns, message=message)

    def _delayed(
        self, now_ns: int, sensor: str, faults: dict[FaultKind, Fault], jitter: float
    ) -> int:
        delayed_ns = now_ns + round(abs(jitter) * self._plan.jitter_ms * 1e6)
        if "late" in faults:
            self._count(sensor, "late")
            delayed_ns += round(faults["late"].value * 1e6)
        held_ns = self._end_of_stall(now_ns)
        if "burst" in faults:
            held_ns = max(held_ns, self._first_ns + round(faults["burst"].to_s * 1e9))
        if held_ns > delayed_ns:
            self._count(sensor, "burst")
        return max(delayed_ns, held_ns, self._last_ns.get(sensor, delayed_ns))

    def _end_of_stall(self, now_ns: int) -> int:
        """When the machine answers again; now, if it is not stalled."""
        if not self._plan.bursts_per_minute:
            return now_ns
        start_ns, end_ns = self._stall_ns
        while end_ns <= now_ns:
            pause_s = self._generator("stalls").exponential(60.0 / self._plan.bursts_per_minute)
            start_ns = end_ns + round(min(pause_s, MAX_TIME_S) * 1e9)
            end_ns = start_ns + max(1, round(self._plan.burst_ms * 1e6))
        self._stall_ns = (start_ns, end_ns)
        return end_ns if start_ns <= now_ns else now_ns

    def _draws(self, sensor: str) -> tuple[float, float, float]:
        """Always three per message, so that no fault changes another's chance."""
        random = self._generator(sensor)
        return float(random.random()), float(random.random()), float(random.standard_normal())

    def _generator(self, name: str) -> np.random.Generator:
        if name not in self._random:
            words = (self._plan.seed, zlib.crc32(self._scene.encode()), zlib.crc32(name.encode()))
            self._random[name] = np.random.default_rng(words)
        return self._random[name]

    def _without(self, arrival: Arrival, sensor: str, kind: str) -> Arrival:
        self._count(sensor, kind)
        return Arrival(now_ns=arrival.now_ns, message=None)

    def _count(self, sensor: str, kind: str) -> None:
        self._counters[f"{sensor}: {kind}"] += 1


def _renewed(last: SensorMessage, message: SensorMessage) -> SensorMessage:
    """The old content under the new message's stamp and pose."""
    if isinstance(message, CameraImage):
        return dataclasses.replace(message, rgb=last.rgb)  # type: ignore[union-attr]
    return dataclasses.replace(message, points_lidar=last.points_lidar)  # type: ignore[union-attr]
