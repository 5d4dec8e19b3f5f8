"""One frame of sensor data in, boxes and map masks out. Nothing that a sensor sends raises here."""

import dataclasses
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from perception.bundle import Bundle
from perception.errors import InputError
from perception.geometry import boxes
from perception.geometry.pool_table import PoolTableCache
from perception.geometry.sparse_tables import build_sparse_tables
from perception.messages import Calibration, Detections, MapMask, PerceptionResult, SensorFrame
from perception.model_inputs import (
    ModelInputs,
    calibrated_rig,
    prepare_frame,
    rig_pool_table,
)
from perception.usable_data import is_pose
from runtime.engines.base import Engine, EngineError, ModelOutputs
from runtime.engines.onnx_engine import OnnxEngine


class Pipeline:
    """Prepares a frame, runs the engine, keeps what may be published.

    A box that is not finite, or whose label is no class, is dropped and counted; a map cell that is
    not finite or outside 0..1 becomes 0 ("layer not seen here") and is counted. A frame without any
    usable sensor, and one that the engine could not compute, gives a result with no boxes, a map of
    zeros, no `sensors_used`, and the reason per sensor; the engine is not asked in the first case.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        num_threads: int = 0,
        score_threshold: float = 0.0,
        engine: Engine | None = None,
        compensate_ego_motion: bool = True,
    ) -> None:
        """Open the engine.

        Args:
            bundle: Model and card.
            num_threads: Threads within the engine; 0 for one per core.
            score_threshold: Boxes below this score are left out, 0..1.
            engine: What runs the graph, closed by `close`; ONNX Runtime by default.
            compensate_ego_motion: Whether a camera's pose counts the car's way between the image's
                stamp and the frame's. Without, the pool table changes with the calibration only.

        Raises:
            InputError: A number is out of range, or the engine refuses the bundle.
        """
        if not 0.0 <= score_threshold <= 1.0:
            raise InputError(f"score threshold is {score_threshold}, expected 0..1.")
        self.bundle = bundle
        self.engine: Engine = OnnxEngine(bundle, num_threads) if engine is None else engine
        self.counters: Counter[str] = Counter()
        """frames, frames_without_sensor, engine_failures, dropped_boxes, dropped_pillars,
        dropped_voxels (beyond the capacity of a sparse encoder's level), bad_map_cells."""
        self._score_threshold = score_threshold
        self._compensate_ego_motion = compensate_ego_motion
        self._newest_cameras: tuple[str, ...] = bundle.card.inputs.cameras
        self._pool_tables = PoolTableCache()
        # One thread sorts points while this one cuts images: the split that two cores gain from.
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="prepare")

    def close(self) -> None:
        """Give the thread and the engine's memory back."""
        self._pool.shutdown()
        self.engine.close()

    def warm_up(self) -> float:
        """Run the engine once with every sensor masked, so that the first real frame is fast.

        Returns:
            Time it took [ms].

        Raises:
            InputError: The engine fails or answers with other shapes than the model card's.
        """
        start = time.perf_counter()
        empty = SensorFrame(
            stamp_ns=0,
            T_global_ego=None,
            images={},
            sweeps=(),
            calibration=Calibration(cameras={}, T_ego_lidar=np.eye(4)),
            missing={},
        )
        try:
            self._run_engine(empty)
        except EngineError as error:
            raise InputError(
                f"{self.bundle.path}: the engine fails on a frame without sensors ({error}): "
                "export the bundle again."
            ) from error
        return (time.perf_counter() - start) * 1e3

    def prepare_calibration(self, calibration: Calibration) -> None:
        """Make the pool table of a rig that frames will have later; another thread may call this.

        It is made for all cameras and for those of the newest frame. Where ego motion moves the
        cameras, each frame makes its own.

        Raises:
            ValueError: An image of this calibration cannot be cut for the network, or has
                intrinsics without an inverse.
        """
        spec = self.bundle.card.inputs
        for cameras in {tuple(calibration.cameras), self._newest_cameras}:
            known = [camera for camera in cameras if camera in calibration.cameras]
            rig_pool_table(
                calibrated_rig(calibration, spec, known), spec, np.eye(4), self._pool_tables
            )

    def process(self, frame: SensorFrame) -> PerceptionResult:
        """Compute one frame; never raises for what a sensor or the network gives.

        `stage_ms` has "preprocess", "engine" and "postprocess", one after the other; a stage that
        was not reached is 0. "preprocess/..." are parts of the first, some side by side.
        """
        self.counters["frames"] += 1
        start = time.perf_counter()
        spec = self.bundle.card.inputs
        if not is_pose(frame.T_global_ego):
            frame = dataclasses.replace(frame, T_global_ego=None)
        prepared = prepare_frame(
            frame,
            spec,
            self._pool,
            tables=self._pool_tables,
            images_out=self.engine.input_buffer("images"),
            compensate_ego_motion=self._compensate_ego_motion,
        )
        inputs = self._with_tables(prepared.inputs)
        self._newest_cameras = tuple(c for c in spec.cameras if c in prepared.sensors_used)
        self.counters["dropped_pillars"] += prepared.num_dropped_pillars
        stage_ms = {
            "preprocess": (time.perf_counter() - start) * 1e3,
            "engine": 0.0,
            "postprocess": 0.0,
            **{f"preprocess/{part}": ms for part, ms in prepared.part_ms.items()},
        }
        if not prepared.sensors_used:
            self.counters["frames_without_sensor"] += 1
            nobody = self._empty_result(frame, prepared.sensors_missing, stage_ms)
            return dataclasses.replace(nobody, bundle_digest="")

        start = time.perf_counter()
        try:
            outputs = self.checked(self.engine.run(inputs))
        except EngineError as error:
            self.counters["engine_failures"] += 1
            stage_ms["engine"] = (time.perf_counter() - start) * 1e3
            failed = dict.fromkeys(prepared.sensors_used, f"engine failed: {error}")
            return self._empty_result(frame, {**prepared.sensors_missing, **failed}, stage_ms)
        end = time.perf_counter()
        stage_ms["engine"] = (end - start) * 1e3
        detections, prob = self._detections(outputs), self._map_prob(outputs)
        stage_ms["postprocess"] = (time.perf_counter() - end) * 1e3
        return self._result(
            frame, detections, prob, prepared.sensors_used, prepared.sensors_missing, stage_ms
        )

    def _run_engine(self, frame: SensorFrame) -> None:
        prepared = prepare_frame(frame, self.bundle.card.inputs)
        self.checked(self.engine.run(self._with_tables(prepared.inputs)))

    def _with_tables(self, inputs: ModelInputs) -> ModelInputs:
        """Add what a sparse encoder takes; voxels for which there is no room are left out."""
        levels = self.bundle.card.sparse_levels
        if levels is None:
            return inputs
        tables = build_sparse_tables(inputs.pillar_cell, levels, num_threads=2)
        self.counters["dropped_voxels"] += sum(tables.num_dropped)
        return dataclasses.replace(inputs, sparse_tables=tables.by_name)

    def checked(self, outputs: ModelOutputs) -> ModelOutputs:
        """The same outputs; shapes that the graph leaves open are only known now.

        Raises:
            EngineError: They are not the model card's.
        """
        card = self.bundle.card
        num = len(outputs.scores)
        map_shape = (len(card.map_classes), card.map_grid.ny, card.map_grid.nx)
        if outputs.boxes_ego.shape != (num, boxes.NUM_COLUMNS) or outputs.labels.shape != (num,):
            raise EngineError(
                f"boxes {outputs.boxes_ego.shape}, labels {outputs.labels.shape} and {num} scores "
                "do not belong together"
            )
        if outputs.map_prob.shape != map_shape:
            raise EngineError(f"map is {outputs.map_prob.shape}, the model card says {map_shape}")
        return outputs

    def _detections(self, outputs: ModelOutputs) -> Detections:
        classes = self.bundle.card.detection_classes
        valid = np.isfinite(outputs.boxes_ego).all(axis=1) & np.isfinite(outputs.scores)
        valid &= (outputs.labels >= 0) & (outputs.labels < len(classes))
        self.counters["dropped_boxes"] += int(len(valid) - np.count_nonzero(valid))
        kept = np.flatnonzero(valid & (outputs.scores >= self._score_threshold))
        best_first = kept[np.argsort(-outputs.scores[kept], kind="stable")]
        return Detections(
            boxes_ego=outputs.boxes_ego[best_first],
            scores=outputs.scores[best_first],
            labels=outputs.labels[best_first],
            classes=classes,
        )

    def _map_prob(self, outputs: ModelOutputs) -> np.ndarray:
        valid = (outputs.map_prob >= 0.0) & (outputs.map_prob <= 1.0)  # false for NaN too
        if valid.all():
            return outputs.map_prob
        self.counters["bad_map_cells"] += int(valid.size - np.count_nonzero(valid))
        return np.where(valid, outputs.map_prob, np.float32(0.0))

    def _empty_result(
        self, frame: SensorFrame, missing: Mapping[str, str], stage_ms: Mapping[str, float]
    ) -> PerceptionResult:
        card = self.bundle.card
        nothing = Detections(
            boxes_ego=np.zeros((0, boxes.NUM_COLUMNS), np.float32),
            scores=np.zeros(0, np.float32),
            labels=np.zeros(0, np.int64),
            classes=card.detection_classes,
        )
        prob = np.zeros((len(card.map_classes), card.map_grid.ny, card.map_grid.nx), np.float32)
        return self._result(frame, nothing, prob, (), missing, stage_ms)

    def _result(
        self,
        frame: SensorFrame,
        detections: Detections,
        prob: np.ndarray,
        used: tuple[str, ...],
        missing: Mapping[str, str],
        stage_ms: Mapping[str, float],
    ) -> PerceptionResult:
        card = self.bundle.card
        return PerceptionResult(
            stamp_ns=frame.stamp_ns,
            T_global_ego=frame.T_global_ego,
            detections=detections,
            map_mask=MapMask(prob=prob, classes=card.map_classes, grid=card.map_grid),
            sensors_used=used,
            sensors_missing=missing,
            stage_ms=stage_ms,
            calibration_epoch=frame.calibration_epoch,
            bundle_digest=self.bundle.digest,
        )
