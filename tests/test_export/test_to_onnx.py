import contextlib
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from small_detector import small_config
from toy_frames import FakeEngine

from export import parity, to_onnx
from export.deploy_graph import DeployGraph
from export.parity_frames import log_frames, noise_frame, with_missing_sensors
from export.to_onnx import export_checkpoint
from perception.bundle import load_bundle
from perception.checkpoint import Checkpoint, load_checkpoint
from perception.data.nuscenes_log import NuScenesLog
from perception.errors import InputError
from perception.model_inputs import TENSOR_NAMES
from perception.models.detector import build_detector
from perception.taxonomy import MAP_CLASSES
from runtime.engines.base import OUTPUT_NAMES
from runtime.engines.onnx_engine import OnnxEngine
from runtime.pipeline import Pipeline
from runtime.self_test import self_test

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def bundle(small_run, small_log_root, tmp_path_factory):
    out = tmp_path_factory.mktemp("export") / "bundle"
    checkpoint = load_checkpoint(small_run)
    frames = log_frames(NuScenesLog(small_log_root), checkpoint.config.inputs, 2)
    assert export_checkpoint(checkpoint, out, frames).passed
    return load_bundle(out)


def test_a_bundle_holds_model_card_parity_and_manifest(bundle):
    names = {path.name for path in bundle.path.iterdir()}
    assert names == set("model.onnx model_card.json parity.json golden.npz manifest.json".split())
    assert [t.name for t in bundle.card.input_tensors] == list(TENSOR_NAMES)
    assert [t.name for t in bundle.card.output_tensors] == list(OUTPUT_NAMES)
    # layers that no training frame knew do not leave the house
    assert bundle.card.map_classes == ("drivable_area", "walkway")
    assert bundle.card.output_tensors[3].shape == ("2", "50", "50")
    report = json.loads((bundle.path / "parity.json").read_text())
    assert report["num_frames"] == 6
    assert report["num_matched"] == report["num_boxes"] > 0


def test_the_bundle_passes_its_own_self_test(bundle):
    with contextlib.closing(Pipeline(bundle, num_threads=1)) as pipeline:
        report = self_test(pipeline)
    # the same file on the same computer, with another number of threads
    assert max(report.agreement.scores, report.agreement.map_prob) < 1e-5
    assert report.agreement.num_found == report.agreement.num_boxes > 0


class ScoresOfFrame(FakeEngine):
    """Answers with scores that it has for a picture's first pixel."""

    def __init__(self, scores: dict[int, list[float]]) -> None:
        super().__init__()
        self.scores = scores

    def run(self, inputs):
        scores = np.array(self.scores[int(inputs.images.flat[0])], np.float32)
        rows = {
            name: np.repeat(getattr(self.outputs, name)[:1], len(scores), axis=0)
            for name in ("boxes_ego", "labels")
        }
        return dataclasses.replace(self.outputs, scores=scores, **rows)


def test_the_golden_frame_is_the_one_with_most_boxes_to_compare(tmp_path, capsys):
    noise = noise_frame(small_config().inputs)
    frames = [dataclasses.replace(noise, images=np.full_like(noise.images, i)) for i in range(3)]
    # fp16: 0.003 above the last one
    scores = {0: [0.5, 0.5, 0.502], 1: [0.9, 0.8, 0.7], 2: [0.9, 0.7, 0.7]}
    to_onnx._write_best_golden(tmp_path, ScoresOfFrame(scores), frames, None)
    with np.load(tmp_path / "golden.npz") as file:
        assert (file["input.images"] == 1).all()
        assert file["output.scores"].tolist() == pytest.approx([0.9, 0.8, 0.7])
    said = capsys.readouterr()
    assert "golden frame: 2 boxes that a self-test in fp16 compares" in said.out
    assert "hardly look at boxes (5 are wanted): export with --log" in said.err
    many = [0.9] * 5 + [0.1]
    to_onnx._write_best_golden(tmp_path, ScoresOfFrame({0: many}), frames[:1], None)
    assert capsys.readouterr().err == ""


def test_the_graph_holds_one_pool_node_and_no_scatter(bundle):
    model = onnx.load(bundle.model_path)
    own = [node.op_type for node in model.graph.node if node.domain == "perception"]
    assert own == ["BevPool"]
    kinds = {node.op_type for node in model.graph.node}
    assert not {kind for kind in kinds if kind.startswith("Scatter")}
    assert model.functions[0].name == "BevPool"


def test_the_file_agrees_with_torch_on_frames_it_was_not_traced_with(small_run, bundle):
    checkpoint = load_checkpoint(small_run)
    spec = checkpoint.config.inputs
    frames = [noise_frame(spec, seed) for seed in (5, 6)] + with_missing_sensors(
        noise_frame(spec, 7)
    )
    report = parity.compare(DeployGraph(checkpoint), OnnxEngine(bundle), frames)
    assert report.passed, report.table()


def test_what_is_no_number_fails_in_whatever_frame_it_is(small_run, bundle, monkeypatch):
    graph = DeployGraph(load_checkpoint(small_run))
    frames = [noise_frame(small_config().inputs, seed) for seed in (1, 2)]
    calls = []

    def torch_with_a_nan_in_the_first(graph, inputs, run=parity.run_torch):
        outputs = run(graph, inputs)
        if not calls:
            outputs.map_prob[0, 3, 4] = np.nan
        calls.append(inputs)
        return outputs

    monkeypatch.setattr(parity, "run_torch", torch_with_a_nan_in_the_first)
    report = parity.compare(graph, OnnxEngine(bundle), frames)
    assert len(calls) == 2
    assert not report.passed


ONE_SENSOR = {
    "cameras": {"inputs": {"use_lidar": False, "depth_image": False}, "point_encoder": None},
    "lidar": {
        "inputs": {"cameras": (), "depth_image": False},
        "image_encoder": None,
        "view_transform": None,
    },
}


@pytest.mark.parametrize("sensors", sorted(ONE_SENSOR))
def test_a_network_of_one_sensor_alone_comes_out_as_it_is(sensors, tmp_path):
    # traced with lists of length 0 for the sensor that it lacks
    small = small_config()
    change = dict(ONE_SENSOR[sensors])
    change["inputs"] = dataclasses.replace(small.inputs, **change["inputs"])
    config = dataclasses.replace(small, separate_bev_encoders=sensors == "lidar", **change)
    torch.manual_seed(0)
    checkpoint = Checkpoint(
        detector=build_detector(config),
        config=config,
        recipe=sensors,
        trained_map_classes=MAP_CLASSES,
    )
    export_checkpoint(checkpoint, tmp_path / "bundle", [])
    frames = [noise_frame(config.inputs, seed) for seed in (5, 6)]
    report = parity.compare(
        DeployGraph(checkpoint), OnnxEngine(load_bundle(tmp_path / "bundle")), frames
    )
    assert report.passed, report.table()


def test_two_runs_give_the_same_bits_for_any_number_of_threads(bundle, small_run):
    frame = noise_frame(load_checkpoint(small_run).config.inputs, 8)
    first = OnnxEngine(bundle, num_threads=1).run(frame)
    for threads in (1, 2):
        again = OnnxEngine(bundle, num_threads=threads).run(frame)
        for name in OUTPUT_NAMES:
            assert np.array_equal(getattr(first, name), getattr(again, name)), name


def test_other_weights_fail_the_comparison_and_leave_nothing(
    small_run, tmp_path, monkeypatch, capsys
):
    # what the comparison is for: the file says something else than torch does
    def torch_with_another_map(graph, inputs, run=parity.run_torch):
        outputs = run(graph, inputs)
        outputs.map_prob[0, 3, 4] += 0.01
        return outputs

    monkeypatch.setattr(parity, "run_torch", torch_with_another_map)
    with pytest.raises(InputError, match="disagrees with torch"):
        export_checkpoint(load_checkpoint(small_run), tmp_path / "bundle", [])
    assert "FAILED" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("run", "said"), [("nowhere", "no folder"), ("empty", "holds no checkpoint.safetensors")]
)
def test_a_wrong_run_is_one_sentence(tmp_path, run, said):
    (tmp_path / "empty").mkdir()
    done = subprocess.run(
        [sys.executable, "export/to_onnx.py", tmp_path / run, "--out", tmp_path / "bundle"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert said in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("number", ["0", "-1"])
def test_no_frames_to_compare_are_one_sentence(tmp_path, monkeypatch, number):
    words = ["to_onnx.py", str(tmp_path), "--out", str(tmp_path / "out"), "--frames", number]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(InputError, match=f"--frames is {number}, expected 1 or more"):
        to_onnx.main()


@pytest.mark.parametrize("text", ["", "{}", "no JSON", "[]", '{"data": {"log": 3}}'])
def test_a_damaged_configuration_of_a_run_names_no_log(tmp_path, capsys, text):
    (tmp_path / "config.json").write_text(text)
    assert to_onnx._parity_log(tmp_path, None, None) is None
    assert "golden frame are of noise only" in capsys.readouterr().err


def test_the_log_of_a_run_is_taken_where_it_is_there(tmp_path, small_log_root, capsys):
    data = {"log": str(small_log_root), "version": ""}
    (tmp_path / "config.json").write_text(json.dumps({"data": data}))
    log = to_onnx._parity_log(tmp_path, None, None)
    assert log is not None
    assert log.root == small_log_root
    data["log"] = ""
    (tmp_path / "config.json").write_text(json.dumps({"data": data}))
    assert to_onnx._parity_log(tmp_path, None, None) is None
    assert "golden frame are of noise only" in capsys.readouterr().err
