"""The parameters of the node `bev`: facts of the deployment; all else is in the bundles."""

import math
from dataclasses import dataclass

from perception_ros.parameters import parameter
from runtime.api import InputError

MAX_PERIOD_MS = 60_000.0
"""Longest time between two results [ms]. Source: ours; beyond it there is no perception."""

MAX_WINDOW_MS = 1000.0
"""Widest window round an expected stamp [ms]. Source: `runtime.synchronizer`: a step of time by
more than that starts it over."""

MAX_SENSOR_DEPTH = 1000
"""Most messages kept per sensor. Source: ours; ten seconds of a 100 Hz sensor."""


@dataclass(frozen=True, kw_only=True)
class NodeSettings:
    """Read at every configure; README.md holds the same table."""

    bundle: str = parameter("", "folder that `python export/to_onnx.py` wrote")
    camera_bundle: str = parameter(
        "", "bundle for frames without LiDAR; empty: `bundle` with the LiDAR masked"
    )
    lidar_bundle: str = parameter(
        "", "bundle for frames without a camera; empty: `bundle` with the cameras masked"
    )
    autostart: bool = parameter(
        True, "configure and activate at start; false: wait for a lifecycle manager"
    )
    calibration: str = parameter(
        "", "JSON file of the rig; empty: camera info, /tf and the parameters `extrinsics.*`"
    )
    calibration_timeout_s: float = parameter(
        0.0, "how long autostart waits for that file to appear [s]"
    )
    use_tf: bool = parameter(
        True, "take extrinsics from /tf and /tf_static, where tf2_msgs is installed"
    )
    compressed: bool = parameter(
        False, "cameras send CompressedImage on `~/input/image{i}/compressed`"
    )
    intensity_scale: float = parameter(
        1.0, "factor that makes the LiDAR's intensity 0..255, e.g. 255 for 0..1"
    )
    allow_zero_row_step: bool = parameter(
        False, "take clouds with row_step 0, which some drivers send"
    )
    engine: str = parameter("onnx", "what runs the model: `onnx` or `tensorrt`")
    num_threads: int = parameter(0, "threads of ONNX Runtime; 0: one per core")
    bev_pool: str = parameter(
        "auto", "BEV pool in ONNX Runtime: `native`, `function` (of the model file) or `auto`"
    )
    self_test: bool = parameter(
        True, "at configure, compute the bundle's golden frame and compare the answer"
    )
    score_threshold: float = parameter(0.3, "boxes below this score are left out, 0..1")
    map_threshold: float = parameter(
        0.5, "probability from which a bit of `~/output/map_mask` is set, 0..1"
    )
    period_ms: float = parameter(100.0, "time from one output to the next [ms]")
    wait_ms: float = parameter(
        50.0, "longest time an output waits for sensors, from its instant on [ms]"
    )
    window_ms: float = parameter(
        60.0, "a sample this far from its expected stamp, to either side, is not used [ms]"
    )
    camera_offsets_ms: tuple[float, ...] = parameter(
        (-40.0,), "expected stamp minus the LiDAR's: one for all cameras or one each [ms]"
    )
    frozen_after: int = parameter(
        3,
        "a sensor that sends the same content so many times in a row is not used; 0: it is, for "
        "simulators without noise",
    )
    compensate_ego_motion: bool = parameter(
        True, "put each camera where it was when its picture was taken; needs odometry"
    )
    base_frame: str = parameter("base_link", "frame of the results and of odometry")
    sensor_depth: int = parameter(5, "messages kept per sensor until they are read")
    max_silent_s: float = parameter(1.0, "longer than this without a result is an error [s]")

    def __post_init__(self) -> None:
        """Refuse what cannot work; the bundle's and the pipeline's own are checked by them."""
        if not self.bundle:
            raise InputError("Parameter bundle is empty: pass -p bundle:=FOLDER.")
        for name in ("max_silent_s", "intensity_scale"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(
                    f"Parameter {name} is {getattr(self, name)}, expected a positive number."
                )
        for name, (low, high) in {
            "period_ms": (1.0, MAX_PERIOD_MS),
            "wait_ms": (0.0, self.period_ms),
            "window_ms": (1e-3, MAX_WINDOW_MS),
            "sensor_depth": (1, MAX_SENSOR_DEPTH),
        }.items():
            if not low <= getattr(self, name) <= high:
                raise InputError(
                    f"Parameter {name} is {getattr(self, name)}, expected a number from {low} to "
                    f"{high}{' (period_ms)' * (name == 'wait_ms')}."
                )
        if not 0 <= self.map_threshold <= 1:
            raise InputError(f"Parameter map_threshold is {self.map_threshold}, expected 0..1.")
        if not all(map(math.isfinite, self.camera_offsets_ms)):
            raise InputError(
                f"Parameter camera_offsets_ms is {list(self.camera_offsets_ms)}, expected finite "
                "numbers."
            )

    def offsets_ns(self, cameras: tuple[str, ...]) -> dict[str, int]:
        """Expected stamp of each camera's sample minus the frame's instant [ns].

        Raises:
            InputError: There are neither one nor as many as cameras.
        """
        offsets = self.camera_offsets_ms
        if len(offsets) not in (1, len(cameras)):
            raise InputError(
                f"Parameter camera_offsets_ms has {len(offsets)} numbers, expected 1 or "
                f"{len(cameras)}, one per camera of the bundle."
            )
        each = offsets * len(cameras) if len(offsets) == 1 else offsets
        return {name: int(ms * 1e6) for name, ms in zip(cameras, each, strict=True)}
