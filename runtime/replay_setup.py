"""What a replay needs, opened as its command line says."""

import argparse
import sys

from perception.bundle import GOLDEN_FILE, Bundle, load_bundle
from perception.data.nuscenes_log import NuScenesLog
from perception.errors import InputError
from runtime.bag_feed import BagSource
from runtime.calibration_file import read_calibration
from runtime.engines.selection import open_engine
from runtime.ladder import Ladder
from runtime.message_source import MessageSource, NuScenesSource
from runtime.pipeline import Pipeline
from runtime.replay_faults import FaultPlan, parse_fault
from runtime.self_test import self_test


def open_source(options: argparse.Namespace, bundle: Bundle | None) -> MessageSource:
    """Open the recording.

    Raises:
        InputError: It cannot be read, or is a bag and there is no bundle.
    """
    if options.log is not None:
        return NuScenesSource(NuScenesLog(options.log, options.version))
    if bundle is None:
        raise InputError("no bundle given: pass it, its cameras are those of the bag's topics.")
    return BagSource(
        options.bag,
        cameras=bundle.card.inputs.cameras,
        calibration=None if options.calibration is None else read_calibration(options.calibration),
        topics=dict(_named_topic(text) for text in options.topic or ()),
        base_frame=options.base_frame or "base_link",
    )


def fault_plan(options: argparse.Namespace) -> FaultPlan:
    """Read what is done to the messages.

    Raises:
        InputError: A script has another form, or a number is out of range.
    """
    return FaultPlan(
        script=tuple(parse_fault(line) for line in options.fault),
        jitter_ms=options.jitter,
        loss=options.loss,
        bursts_per_minute=options.bursts,
        seed=options.seed,
    )


def open_model(options: argparse.Namespace, bundle: Bundle) -> Ladder:
    """Open the engines of all bundles, each after its self-test.

    Raises:
        InputError: A bundle cannot be used, or fails its self-test.
    """

    def pipeline(bundle: Bundle) -> Pipeline:
        engine = open_engine(bundle, options.engine, options.threads, options.bev_pool)
        opened = Pipeline(bundle, engine=engine, score_threshold=options.score_threshold)
        if GOLDEN_FILE in bundle.files:
            sys.stdout.write(f"self-test {self_test(opened)}\n")
        else:
            sys.stdout.write(f"self-test none: {bundle.path} has no golden frame\n")
        return opened

    camera, lidar = (
        None if path is None else pipeline(load_bundle(path))
        for path in (options.camera_bundle, options.lidar_bundle)
    )
    return Ladder(pipeline(bundle), camera, lidar)


def _named_topic(text: str) -> tuple[str, str]:
    name, equals, topic = text.partition("=")
    if not (name and equals and topic):
        raise InputError(f"--topic got {text!r}, expected SENSOR=TOPIC.")
    return name, topic
