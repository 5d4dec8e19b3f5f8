"""Several bundles for one car: with each frame the one that was made for the sensors it has."""

import dataclasses
from collections import Counter

from perception.bundle import Bundle
from perception.errors import InputError
from perception.messages import Calibration, PerceptionResult, SensorFrame
from perception.usable_data import missing_sensors, sensor_faults
from runtime.engines.base import Engine
from runtime.pipeline import Pipeline


class Ladder:
    """Fusion, camera-only and LiDAR-only bundle behind the interface of one `Pipeline`.

        usable sensors         asked, the next only where one before it gives nothing
        cameras and LiDAR      fusion, camera, LiDAR
        cameras                camera, fusion with the LiDAR masked
        LiDAR                  LiDAR, fusion with the cameras masked
        none                   fusion, which gives an invalid result

    More precisely, the bundle that takes most of the usable sensors comes first; of equals the
    specialist. So a camera-only bundle that does without a camera that is there comes after fusion,
    and one that takes none of them is not asked. Nothing is kept from one frame to the next: the
    frame decides, and the rung changes with it.
    """

    def __init__(
        self, fusion: Pipeline, camera: Pipeline | None = None, lidar: Pipeline | None = None
    ) -> None:
        """Check that the answers of all bundles mean the same.

        Args:
            fusion: For frames with everything, and for those that no other bundle is given for.
            camera: Takes frames without LiDAR; the ladder closes all of them.
            lidar: Takes frames without cameras.

        Raises:
            InputError: A bundle is for other sensors than its place says, or for other classes or
                another map than the fusion bundle.
        """
        self._fusion = fusion
        self.pipelines = tuple(p for p in (fusion, camera, lidar) if p is not None)
        """The rungs that are given, the fusion bundle first."""
        self._counters: Counter[str] = Counter()
        if camera is not None:
            _require_same(fusion.bundle, camera.bundle)
            if camera.bundle.card.inputs.use_lidar:
                raise InputError(
                    f"{camera.bundle.path} uses the LiDAR, expected a bundle of the cameras alone: "
                    "export a camera-only recipe."
                )
        if lidar is not None:
            _require_same(fusion.bundle, lidar.bundle)
            if lidar.bundle.card.inputs.cameras:
                raise InputError(
                    f"{lidar.bundle.path} uses cameras, expected a bundle of the LiDAR alone: "
                    "export a LiDAR-only recipe."
                )

    @property
    def bundle(self) -> Bundle:
        """The fusion bundle, which names all sensors and what every result looks like."""
        return self._fusion.bundle

    @property
    def engine(self) -> Engine:
        """The fusion bundle's engine."""
        return self._fusion.engine

    @property
    def counters(self) -> Counter[str]:
        """Those of all bundles together, each frame once."""
        total = sum((pipeline.counters for pipeline in self.pipelines), Counter())
        return total - Counter(frames=total["frames"]) + self._counters

    def process(self, frame: SensorFrame) -> PerceptionResult:
        """Compute one frame with the bundle for its sensors; never raises for what a sensor gives.

        `sensors_missing` names every sensor of the fusion bundle that was not used, and
        `bundle_digest` which bundle it was. `stage_ms` adds up all bundles that were asked.
        """
        self._counters["frames"] += 1
        faults = sensor_faults(frame, self.bundle.card.inputs)
        missing = missing_sensors(frame, faults)
        usable = [sensor for sensor, fault in faults.items() if fault is None]
        stage_ms: dict[str, float] = {}
        for pipeline in self._rungs(usable):
            result = pipeline.process(frame)
            for stage, time_ms in result.stage_ms.items():
                stage_ms[stage] = stage_ms.get(stage, 0.0) + time_ms
            missing |= result.sensors_missing
            if result.sensors_used:
                break
        left = {name: why for name, why in missing.items() if name not in result.sensors_used}
        return dataclasses.replace(result, sensors_missing=left, stage_ms=stage_ms)

    def _rungs(self, usable: list[str]) -> list[Pipeline]:
        def num_taken(pipeline: Pipeline) -> int:
            return len(set(usable) & set(pipeline.bundle.card.inputs.sensors))

        specialists_first = (*self.pipelines[1:], self._fusion)
        asked = [pipeline for pipeline in specialists_first if num_taken(pipeline)]
        return sorted(asked, key=num_taken, reverse=True) or [self._fusion]

    def prepare_calibration(self, calibration: Calibration) -> None:
        """As `Pipeline.prepare_calibration`, for every bundle."""
        for pipeline in self.pipelines:
            pipeline.prepare_calibration(calibration)

    def warm_up(self) -> float:
        """As `Pipeline.warm_up`, for every bundle.

        Returns:
            Time it took [ms].
        """
        return sum(pipeline.warm_up() for pipeline in self.pipelines)

    def close(self) -> None:
        """Give the threads and engines of every bundle back."""
        for pipeline in self.pipelines:
            pipeline.close()


def _require_same(fusion: Bundle, other: Bundle) -> None:
    for what in ("detection_classes", "map_classes", "map_grid"):
        expected, got = getattr(fusion.card, what), getattr(other.card, what)
        if got != expected:
            raise InputError(
                f"{other.path} has {what} {got}, the fusion bundle {fusion.path} has {expected}: "
                "train and export both with the same classes and map."
            )
    odd = sorted(set(other.card.inputs.sensors) - set(fusion.card.inputs.sensors))
    if odd:
        raise InputError(
            f"{other.path} takes {', '.join(odd)}, which the fusion bundle {fusion.path} does not: "
            "use bundles of one rig."
        )
