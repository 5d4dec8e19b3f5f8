import itertools
from pathlib import Path

import fake_tensorrt
import numpy as np
import pytest
from fake_tensorrt import write_countable_toy

from export import to_trt, trt_check
from perception.bundle import load_bundle
from perception.errors import InputError
from runtime import agreement
from runtime.engines.base import ModelOutputs
from runtime.engines.onnx_engine import OnnxEngine


@pytest.fixture
def toy(tmp_path) -> Path:
    return write_countable_toy(tmp_path / "toy")


def permute(outputs: dict) -> None:
    outputs["boxes_ego"] = outputs["boxes_ego"][::-1]


def shift(name: str, by: float):
    def change(outputs: dict) -> None:
        outputs[name] = outputs[name] + np.float32(by)

    return change


def only_after_a_short_frame():
    """The first frame comes out right, the same one later does not."""
    runs = itertools.count()

    def change(outputs: dict) -> None:
        # an engine runs once to warm up and is tried on 5 frames
        if next(runs) == 5:
            shift("map_prob", 0.05)(outputs)

    return change


WRONG = {
    "scores": (shift("scores", 0.1), "frame 1 of noise a score is off by 1.0e-01, allowed is 0.03"),
    "map": (shift("map_prob", 0.05), "map_prob is off by 5.0e-02 and by 5.0e-02 in the mean"),
    "boxes": (shift("boxes_ego", 0.6), "only 0 of 6 expected boxes are found"),
    "order": (permute, "only 1 of 6 expected boxes"),  # the one in the middle stays
    "stale": (only_after_a_short_frame(), "on frame 5 of noise map_prob is off"),
}


@pytest.mark.parametrize("fault", sorted(WRONG))
def test_a_wrong_but_finite_engine_is_not_written(fault, toy, tmp_path, monkeypatch):
    change, said = WRONG[fault]
    trt = fake_tensorrt.install(monkeypatch)
    trt.twist = change
    with pytest.raises(InputError, match=said):
        to_trt.main([str(toy), "--out", str(tmp_path / "out")])
    assert [path.name for path in tmp_path.iterdir()] == ["toy"]
    assert trt.cuda.is_clean


def test_an_engine_that_fails_on_a_frame_is_not_written_and_closed(toy, tmp_path, monkeypatch):
    trt = fake_tensorrt.install(monkeypatch)
    trt.cuda.fail("cudaStreamSynchronize", after=2)  # the first is that of the set-up
    with pytest.raises(InputError, match=r"on frame 2 of noise it fails \(cudaStreamSync"):
        to_trt.main([str(toy), "--out", str(tmp_path / "out")])
    assert trt.cuda.is_clean
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_onnx_runtime_agrees_with_itself(precision, toy):
    bundle = load_bundle(toy)
    engine = OnnxEngine(bundle)
    found = trt_check.compare(engine, engine, bundle.card, precision)
    assert (found.scores, found.map_prob) == (0.0, 0.0)
    # Of 7 boxes the last is always left out. All sensors: 6, on both ends; without LiDAR its box is
    # the last, at 0: 6; without cameras theirs are, all six at 0: 1; with neither all are: 0.
    assert found.num_found == found.num_boxes == 6 + 6 + 1 + 0 + 6
    assert str(found).endswith("19 of 19 boxes found again")


def test_a_size_is_compared_by_share_and_a_yaw_round_the_circle():
    box = np.array([[1, 2, 0, 1000, 2, 1.5, np.pi - 0.001, 0, 0]], np.float32)
    expected = one_box(box)
    near = box + np.array([0, 0, 0, 5, 0, 0, 0.002 - 2 * np.pi, 0, 0], np.float32)
    bounds = agreement.BOUNDS["fp32"]  # 0.01: 5 m of 1000 m, 0.002 rad
    assert agreement.found_again(expected, one_box(near), bounds).all()
    far = box + np.array([0, 0, 0, 15, 0, 0, 0, 0, 0], np.float32)
    assert not agreement.found_again(expected, one_box(far), bounds).any()
    assert not agreement.found_again(expected, one_box(box, label=1), bounds).any()
    assert not agreement.found_again(expected, one_box(box, score=0.49), bounds).any()


def one_box(box_ego: np.ndarray, score: float = 0.5, label: int = 0) -> ModelOutputs:
    return ModelOutputs(
        boxes_ego=box_ego,
        scores=np.array([score], np.float32),
        labels=np.array([label]),
        map_prob=np.zeros((1, 2, 2), np.float32),
    )
