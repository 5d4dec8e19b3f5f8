import dataclasses
import json
import sys
from pathlib import Path

import fake_tensorrt
import numpy as np
import pytest
from fake_tensorrt import write_countable_toy

from export import to_trt
from export.parity_frames import noise_frame
from perception import bundle as bundles
from perception.bundle import load_bundle, write_manifest
from perception.errors import InputError
from perception.model_inputs import ModelInputs
from runtime.engines import tensorrt_engine
from runtime.engines.base import Engine, EngineError
from runtime.engines.engine_manifest import ENGINE_CARD_FILE, ENGINE_FILE
from runtime.engines.selection import open_engine
from runtime.engines.tensorrt_engine import MissingPartError, TensorrtEngine
from runtime.ladder import Ladder
from runtime.pipeline import Pipeline
from runtime.self_test import self_test, write_golden


@pytest.fixture
def trt(monkeypatch) -> fake_tensorrt.FakeTensorrt:
    return fake_tensorrt.install(monkeypatch)


@pytest.fixture
def built(trt, tmp_path) -> Path:
    """The toy bundle with an engine. It needs no plugin; its row in engine.json is tested apart."""
    folder = write_countable_toy(tmp_path / "bundle")
    assert to_trt.main([str(folder), "--precision", "fp32"]) == 0
    trt.cuda.copied_bytes.clear()
    return folder


def frame(folder: Path, seed: int = 0) -> ModelInputs:
    return noise_frame(load_bundle(folder).card.inputs, seed)


def test_a_frame_goes_through_one_cuda_graph(trt, built):
    engine = TensorrtEngine(load_bundle(built))
    assert isinstance(engine, Engine)
    assert engine.description == "TensorRT 11.4.0.106, fp32, Fake GPU, CUDA graph"
    inputs = frame(built)
    launches = trt.cuda.launches
    outputs = engine.run(inputs)
    assert trt.cuda.launches == launches + 1
    # the toy's answer, see toy_bundle: brightness per camera, masks as scores
    brightness = inputs.images.reshape(6, -1).mean(axis=1) / 255
    np.testing.assert_allclose(outputs.boxes_ego[:6, 1], brightness, rtol=1e-5)
    np.testing.assert_allclose(outputs.scores, 0.5 + 0.05 * np.arange(7), rtol=1e-6)
    assert outputs.labels.dtype == np.int64


def test_whatever_is_configured_and_cleaned_up_leaves_nothing_on_the_gpu(trt, built):
    bundle = load_bundle(built)
    first = TensorrtEngine(bundle)
    write_golden(built, frame(built), first.run(frame(built)))
    write_manifest(built)
    first.close()
    for index in range(3):
        bundle = load_bundle(built)
        pipeline = Pipeline(bundle, engine=open_engine(bundle, "tensorrt"))
        ladder = Ladder(pipeline)
        ladder.warm_up()
        if index == 1:  # a wrong kernel: the self-test refuses it
            trt.twist = lambda outputs: outputs["scores"].fill(1.0)
            with pytest.raises(InputError, match="does not pass its self-test"):
                self_test(pipeline)
            trt.twist = None
        else:
            self_test(pipeline)
        assert not trt.cuda.is_clean
        ladder.close()
        assert trt.cuda.is_clean
        ladder.close()  # once more is no harm


def test_answers_of_earlier_frames_stay_as_they_were(built):
    engine = TensorrtEngine(load_bundle(built))
    first = engine.run(frame(built))
    kept = first.scores.copy()
    blind = dataclasses.replace(frame(built), camera_mask=np.zeros(6, np.float32))
    assert not np.array_equal(engine.run(blind).scores, kept)
    np.testing.assert_array_equal(first.scores, kept)


def test_images_may_be_written_into_pinned_memory(built):
    engine = TensorrtEngine(load_bundle(built))
    assert engine.precision == "fp32"
    inputs = frame(built)
    expected = engine.run(inputs)
    memory = engine.input_buffer("images")
    memory[...] = 0
    assert engine.run(dataclasses.replace(inputs, images=memory)).boxes_ego[:6, 1].max() == 0
    memory[...] = inputs.images
    again = engine.run(dataclasses.replace(inputs, images=memory))
    np.testing.assert_array_equal(again.boxes_ego, expected.boxes_ego)
    assert engine.input_buffer("pool_runs") is None  # of another length in each frame
    engine.close()
    assert engine.input_buffer("images") is None  # nobody writes where memory was


def test_only_rows_in_use_are_copied_and_a_short_frame_may_follow_a_long_one(trt, built):
    engine = TensorrtEngine(load_bundle(built))
    inputs = frame(built)
    engine.run(inputs)
    trt.cuda.copied_bytes.clear()
    few = dataclasses.replace(
        inputs, pool_runs=inputs.pool_runs[:0], cell_start=inputs.cell_start * 0
    )
    engine.run(few)
    sizes = [array.nbytes for array in few.tensors.values() if array.nbytes]
    assert trt.cuda.copied_bytes[: len(sizes)] == sizes
    assert inputs.pool_runs.nbytes not in trt.cuda.copied_bytes


def test_a_table_that_points_outside_is_refused_before_the_gpu_sees_it(trt, built):
    engine = TensorrtEngine(load_bundle(built))
    inputs = frame(built)
    runs = inputs.pool_runs.copy()
    runs[3, 0] = 10**9
    launches = trt.cuda.launches
    with pytest.raises(EngineError, match=r"the pool table cannot be used: run 3 is \[1000000000"):
        engine.run(dataclasses.replace(inputs, pool_runs=runs))
    assert trt.cuda.launches == launches
    engine.run(inputs)  # the next frame works


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"images": np.zeros((6, 16, 88, 3), np.uint8)}, r"images is uint8 \[6, 16, 88, 3\]"),
        ({"cell_pillar": np.zeros(1601, np.int32)}, r"cell_pillar is int32 \[1601\]"),
        (
            {
                "pillar_points": np.zeros((1601, 8, 5), np.float32),
                "pillar_num_points": np.zeros(1601, np.int32),
                "pillar_cell": np.zeros(1601, np.int32),
            },
            r"pillar_points is float32 \[1601, 8, 5\], .* float32 \[1600, 8, 5\]",
        ),
    ],
)
def test_a_tensor_of_another_shape_is_an_engine_error(change, said, built):
    engine = TensorrtEngine(load_bundle(built))
    with pytest.raises(EngineError, match=said):
        engine.run(dataclasses.replace(frame(built), **change))


def test_an_engine_that_cannot_be_recorded_runs_without_a_graph(trt, built, caplog):
    trt.fails = {"capture"}
    engine = TensorrtEngine(load_bundle(built))
    assert engine.description.endswith("no CUDA graph")
    assert "without a CUDA graph" in caplog.text
    np.testing.assert_allclose(engine.run(frame(built)).scores[0], 0.5)


@pytest.mark.parametrize(
    "function", ["cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphInstantiate"]
)
def test_a_graph_that_cuda_refuses_is_done_without(function, trt, built):
    trt.cuda.fail(function)
    engine = TensorrtEngine(load_bundle(built))
    assert engine.description.endswith("no CUDA graph")
    np.testing.assert_allclose(engine.run(frame(built)).scores[0], 0.5)
    engine.close()
    assert trt.cuda.is_clean


def test_closing_gives_everything_back_and_ends_the_work(trt, built):
    assert trt.cuda.is_clean  # the command that built it has closed its engine
    engine = TensorrtEngine(load_bundle(built))
    assert trt.cuda.blocks
    assert trt.cuda.streams
    assert trt.cuda.graphs == 2  # what was recorded, and what runs
    engine.close()
    assert trt.cuda.is_clean
    engine.close()
    with pytest.raises(EngineError, match="the engine is closed"):
        engine.run(frame(built))


@pytest.mark.parametrize("after", [0, 5])
@pytest.mark.parametrize("function", ["cudaMalloc", "cudaMallocHost"])
def test_a_gpu_without_room_is_one_sentence_and_nothing_stays(function, after, trt, built):
    trt.cuda.fail(function, after)
    said = rf"cannot be set up on Fake GPU \({function}: cudaErrorMemoryAllocation\): end what"
    with pytest.raises(InputError, match=said):
        TensorrtEngine(load_bundle(built))
    assert trt.cuda.is_clean


def test_an_engine_that_does_not_start_is_one_sentence_and_nothing_stays(trt, built):
    trt.fails = {"run"}
    with pytest.raises(InputError, match=r"cannot be set up .*could not start the engine"):
        TensorrtEngine(load_bundle(built))
    assert trt.cuda.is_clean


def test_a_gpu_that_does_not_answer_is_a_missing_part(trt, built):
    trt.cuda.fail("cudaGetDevice")
    with pytest.raises(MissingPartError, match=r"does not answer \(cudaGetDevice: "):
        TensorrtEngine(load_bundle(built))


def test_a_process_has_one_plugin_library(trt, tmp_path, monkeypatch):
    monkeypatch.setattr(tensorrt_engine, "_LOADED", {})
    first, copy, other = (tmp_path / name for name in ("first.so", "copy.so", "other.so"))
    first.write_bytes(b"one")
    copy.write_bytes(b"one")
    other.write_bytes(b"two")
    tensorrt_engine.load_plugin(trt, first)
    tensorrt_engine.load_plugin(trt, copy)  # the same library
    with pytest.raises(InputError, match=r"has loaded another plugin library than .*other\.so"):
        tensorrt_engine.load_plugin(trt, other)
    assert trt.libraries == [str(first)]
    tensorrt_engine._LOADED.clear()  # as if somebody else had brought it
    with pytest.raises(InputError, match="BevPool that this runtime did not load is in"):
        tensorrt_engine.load_plugin(trt, first)


def test_settings_of_onnx_runtime_are_refused(built):
    bundle = load_bundle(built)
    with pytest.raises(InputError, match="threads is 2, which is a setting of ONNX Runtime"):
        open_engine(bundle, "tensorrt", num_threads=2)
    with pytest.raises(InputError, match="bev_pool is 'native', which is a setting of ONNX"):
        open_engine(bundle, "tensorrt", bev_pool="native")
    assert isinstance(open_engine(bundle, "tensorrt"), TensorrtEngine)


def rewrite(folder: Path, **changes: object) -> None:
    """Change engine.json and the manifest's digest of it, as a careful forger would."""
    path = folder / ENGINE_CARD_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    bundles.write_manifest(folder)


def another_onnx(folder: Path) -> None:
    with (folder / bundles.MODEL_FILE).open("ab") as file:
        file.write(b"\x8a\x01\x01x")  # one more unknown field
    bundles.write_manifest(folder)


def damage(folder: Path) -> None:
    (folder / ENGINE_FILE).write_bytes(b"x")
    bundles.write_manifest(folder)


def unlist(folder: Path) -> None:
    plan = (folder / ENGINE_FILE).read_bytes()
    (folder / ENGINE_FILE).unlink()
    bundles.write_manifest(folder)
    (folder / ENGINE_FILE).write_bytes(plan)


def unreadable(folder: Path) -> None:
    (folder / ENGINE_CARD_FILE).write_text("{")
    bundles.write_manifest(folder)


def foreign_plugin(folder: Path) -> None:
    (folder / "libbev_plugins_trt.so").write_bytes(b"another library")
    rewrite(folder, plugin_sha256="0" * 64)


PLATFORM = {
    "tensorrt": "11.4.0.106", "gpu_name": "Fake GPU", "gpu_arch": "9.0", "driver": "13.0",
}  # fmt: skip
CAUSES = {
    "unlisted": (unlist, "holds an unlisted engine.plan"),
    "unreadable": (unreadable, "engine.json is not valid JSON"),
    "damaged": (damage, "is damaged: it has not the digest"),
    "other onnx": (another_onnx, "was built from another model.onnx"),
    "other plugin": (foreign_plugin, "was built with another plugin library"),
    "no plugin": (lambda f: rewrite(f, plugin_sha256="0" * 64), "libbev_plugins_trt.so is missing"),
    "format": (lambda f: rewrite(f, format_version=9), "format 9, this version reads 1"),
    "precision": (lambda f: rewrite(f, precision="fp8"), "precision is 'fp8', expected one of"),
    "other tensorrt": (
        lambda f: rewrite(f, platform={**PLATFORM, "tensorrt": "10.3.0"}),
        "was built by TensorRT 10.3.0, here is 11.4.0.106",
    ),
    "other gpu": (
        lambda f: rewrite(f, platform={**PLATFORM, "gpu_arch": "8.7", "gpu_name": "Orin"}),
        r"was built for compute capability 8.7 \(Orin\), here is 9.0 \(Fake GPU\)",
    ),
    "other driver": (
        lambda f: rewrite(f, platform={**PLATFORM, "driver": "12.8"}),
        "was built under a driver for CUDA 12.8, here is one for 13.0",
    ),
}


@pytest.mark.parametrize("cause", sorted(CAUSES))
def test_a_stale_or_foreign_engine_is_refused_and_the_sentence_says_why(cause, built):
    change, said = CAUSES[cause]
    change(built)
    with pytest.raises(InputError, match=said) as caught:
        TensorrtEngine(load_bundle(built))
    text = str(caught.value)
    assert "build" in text
    assert "to_trt.py" in text
    assert "\n" not in text


def test_each_cause_has_its_own_sentence():
    assert len({said for _, said in CAUSES.values()}) == len(CAUSES)


def test_a_minor_driver_update_does_no_harm(built):
    rewrite(built, platform={**PLATFORM, "driver": "13.2"})
    assert TensorrtEngine(load_bundle(built)).run(frame(built)).scores[0] == np.float32(0.5)


def test_a_bundle_without_engine_says_how_to_build_one(trt, tmp_path):
    folder = write_countable_toy(tmp_path / "bundle")
    with pytest.raises(InputError, match=r"has no engine\.plan .*to_trt\.py"):
        TensorrtEngine(load_bundle(folder))


def test_an_engine_of_other_tensors_than_the_card_s_is_refused(trt, built):
    path = built / bundles.CARD_FILE
    path.write_text(path.read_text().replace('"float32"', '"float16"', 1))
    bundles.write_manifest(built)
    with pytest.raises(InputError, match="camera_mask of the engine is float32"):
        TensorrtEngine(load_bundle(built))


def test_no_gpu_and_no_tensorrt_are_told_apart(trt, built, monkeypatch):
    trt.cuda.num_devices = 0
    with pytest.raises(MissingPartError, match="no usable GPU"):
        TensorrtEngine(load_bundle(built))
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(MissingPartError, match="CUDA's Python bindings cannot be imported"):
        TensorrtEngine(load_bundle(built))
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingPartError, match="TensorRT cannot be imported"):
        TensorrtEngine(load_bundle(built))
