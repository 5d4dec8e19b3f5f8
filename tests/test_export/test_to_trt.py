import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import fake_tensorrt
import numpy as np
import onnx
import pytest
from fake_tensorrt import write_countable_toy
from onnx import TensorProto
from toy_bundle import toy_card, toy_model

from export import to_trt, trt_check
from export.parity_frames import noise_frame, with_missing_sensors
from export.to_onnx import model_card
from perception import bundle as bundles
from perception import json_codec
from perception.bundle import load_bundle
from perception.errors import InputError
from runtime.engines.onnx_engine import OnnxEngine
from runtime.engines.tensorrt_engine import TensorrtEngine

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def small_bundle(settled, small_export, tmp_path_factory) -> Path:
    """The small network, without the parity table."""
    graph, model = small_export
    card = model_card(settled, graph, noise_frame(settled.config.inputs))
    folder = tmp_path_factory.mktemp("trt") / "bundle"
    folder.mkdir()
    (folder / bundles.MODEL_FILE).write_bytes(model.SerializeToString())
    (folder / bundles.CARD_FILE).write_text(json_codec.to_json(card))
    bundles.write_manifest(folder)
    return folder


@pytest.fixture
def toy(tmp_path) -> Path:
    return write_countable_toy(tmp_path / "toy")


@pytest.fixture
def library(tmp_path) -> Path:
    path = tmp_path / "libplugin.so"
    path.write_bytes(b"a plugin library")
    return path


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_engine_comes_out_of_a_bundle_and_computes_what_the_file_does(
    precision, small_bundle, library, tmp_path, monkeypatch, capsys
):
    trt = fake_tensorrt.install(monkeypatch)
    out = tmp_path / "with_engine"
    command = [small_bundle, "--plugin", library, "--out", out, "--precision", precision]
    command += ["--workspace", "0.5", "--timing-cache", tmp_path / "cache"]
    assert to_trt.main([str(word) for word in command]) == 0
    assert f"TensorRT 11.4.0.106, {precision}, Fake GPU, CUDA graph" in capsys.readouterr().out

    bundle = load_bundle(out)
    names = {path.name for path in out.iterdir()}
    assert names == {
        *("model.onnx", "model_card.json", "manifest.json"),
        *("engine.plan", "engine.json", "libbev_plugins_trt.so"),
    }
    said = json.loads((out / "engine.json").read_text())
    assert (said["precision"], said["workspace_bytes"]) == (precision, 2**29)
    assert said["platform"]["gpu_arch"] == "9.0"
    spec = bundle.card.inputs
    pixels = len(spec.cameras) * spec.feature_height * spec.feature_width
    # every point may be a run of its own
    assert said["axes"]["runs"] == pixels * spec.frustum.num_depths

    asked = dict(trt.calls)
    assert asked["create_network"] == (2,)  # bit 1, STRONGLY_TYPED, and nothing else
    assert ("set_flag" if precision == "fp16" else "clear_flag", ("TF32",)) in trt.calls
    (model,) = asked["build_serialized_network"]
    assert not model.functions
    halves = [n for n in model.graph.node if n.op_type == "Cast" and n.attribute[0].i == 10]
    assert bool(halves) == (precision == "fp16")

    # the same answers as the portable file, with room left in every varying axis
    bound = {"fp32": 1e-5, "fp16": 1e-2}[precision]
    engine, file = TensorrtEngine(bundle), OnnxEngine(bundle)
    for frame in [noise_frame(spec, 3), *with_missing_sensors(noise_frame(spec, 4))]:
        got, expected = engine.run(frame), file.run(frame)
        np.testing.assert_allclose(got.map_prob, expected.map_prob, atol=bound)
        assert len(got.scores) == len(expected.scores)
        # Of peaks that all are 1 chance keeps one more or less, and the last score makes room. The
        # bound has 1e-5 to the next score.
        scores = [np.sort(s[s < 0.99995]) for s in (got.scores, expected.scores)]
        num = min(map(len, scores))
        assert num >= 15
        np.testing.assert_allclose(scores[0][-num:], scores[1][-num:], atol=bound)


def test_the_profile_is_the_card_s_and_the_cache_is_used_again(toy, tmp_path, monkeypatch):
    trt = fake_tensorrt.install(monkeypatch)
    cache = tmp_path / "cache"
    for name in ("first", "second"):
        command = [toy, "--out", tmp_path / name, "--timing-cache", cache]
        assert to_trt.main([str(word) for word in command]) == 0
    caches = [arguments[0] for name, arguments in trt.calls if name == "set_timing_cache"]
    assert caches == [b"", b"timed;"]
    assert cache.read_bytes() == b"timed;timed;"
    plan = json.loads((tmp_path / "first" / "engine.plan").read_text())
    # the toy: 1600 pillars of 8 points; 6 cameras x 10 bins x 4 x 11 pixels
    assert plan["profile"] == {
        "pool_runs": [[2640, 3]] * 3,
        "pillar_points": [[1600, 8, 5]] * 3,
        "pillar_num_points": [[1600]] * 3,
        "pillar_cell": [[1600]] * 3,
    }


def test_a_foreign_timing_cache_is_left_aside(toy, tmp_path, monkeypatch):
    trt = fake_tensorrt.install(monkeypatch)
    cache = tmp_path / "cache"
    cache.write_bytes(b"foreign")
    assert to_trt.main([str(toy), "--timing-cache", str(cache)]) == 0
    caches = [arguments for name, arguments in trt.calls if name == "set_timing_cache"]
    assert caches == [(b"foreign", False), (b"", False)]
    assert cache.read_bytes() == b"timed;"


def test_without_out_the_bundle_itself_gets_the_engine(toy, monkeypatch):
    fake_tensorrt.install(monkeypatch)
    before = load_bundle(toy).digest
    assert to_trt.main([str(toy)]) == 0
    bundle = load_bundle(toy)
    assert bundle.digest != before
    assert (toy / "engine.plan").is_file()
    assert not (toy / "libbev_plugins_trt.so").exists()  # the toy's graph has no pool
    assert [path.name for path in toy.parent.iterdir()] == ["toy", "tensorrt.timing_cache"][
        ::-1
    ] or {path.name for path in toy.parent.iterdir()} == {"toy", "tensorrt.timing_cache"}
    assert TensorrtEngine(bundle).description.startswith("TensorRT 11.4.0.106, fp16")


FAILURES = {
    "parse": "cannot parse the graph .no importer for this node; 2 errors.",
    "build": "could not build the engine",
    "profile": "refuses the shapes of",
    "deserialize": "cannot read the engine",
    "load_library": "cannot load the plugin library",
    "creator": "brings no plugin perception::BevPool of version 1",
}


@pytest.mark.parametrize("failure", sorted(FAILURES))
def test_what_goes_wrong_in_tensorrt_is_one_sentence_and_leaves_nothing(
    failure, small_bundle, library, tmp_path, monkeypatch
):
    fake_tensorrt.install(monkeypatch).fails = {failure}
    command = [str(small_bundle), "--plugin", str(library), "--out", str(tmp_path / "out")]
    with pytest.raises(InputError, match=FAILURES[failure]):
        to_trt.main([*command, "--timing-cache", str(tmp_path / "cache")])
    assert [path.name for path in tmp_path.iterdir()] == ["libplugin.so"]


def test_an_answer_that_is_no_number_is_not_shipped(toy, tmp_path, monkeypatch):
    fake_tensorrt.install(monkeypatch)
    model = toy_model()
    for weight in model.graph.initializer:
        if weight.name == "for_lidar":
            weight.CopyFrom(onnx.numpy_helper.from_array(np.float32(np.nan), "for_lidar"))
    bad = write_countable_toy(tmp_path / "bad", model=model)
    with pytest.raises(InputError, match=r"on frame 1 of noise its map_prob is not finite"):
        to_trt.main([str(bad), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


@pytest.fixture
def run(tmp_path, monkeypatch) -> Path:
    """A run whose export is the toy."""
    monkeypatch.setattr("perception.checkpoint.load_checkpoint", lambda path: None)
    monkeypatch.setattr(
        "export.to_onnx.export_checkpoint", lambda checkpoint, out, frames: write_countable_toy(out)
    )
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / to_trt.RUN_FILE).write_bytes(b"")
    return folder


def test_a_run_becomes_a_bundle_with_an_engine_or_nothing(run, tmp_path, monkeypatch):
    trt = fake_tensorrt.install(monkeypatch)
    out = tmp_path / "out"
    trt.fails = {"build"}
    with pytest.raises(InputError, match="could not build the engine"):
        to_trt.main([str(run), "--out", str(out)])
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    trt.fails = set()
    assert to_trt.main([str(run), "--out", str(out)]) == 0
    digest = load_bundle(out).digest
    with pytest.raises(InputError, match="out exists already: choose another name or pass"):
        to_trt.main([str(run), "--out", str(out)])
    trt.fails = {"build"}
    with pytest.raises(InputError, match="could not build the engine"):
        to_trt.main([str(run), "--out", str(out), "--overwrite"])
    assert load_bundle(out).digest == digest


def test_a_timing_cache_that_cannot_be_written_is_told_before_the_build(toy, tmp_path, monkeypatch):
    trt = fake_tensorrt.install(monkeypatch)
    for path in (tmp_path / "nowhere" / "cache", toy):
        with pytest.raises(InputError, match=r"The timing cache .* cannot be written"):
            to_trt.main([str(toy), "--timing-cache", str(path)])
    assert not trt.calls


def test_a_timing_cache_lost_at_the_end_is_a_warning(toy, tmp_path, monkeypatch, capsys):
    fake_tensorrt.install(monkeypatch)
    folder = tmp_path / "caches"
    folder.mkdir()
    works = to_trt.build_engine

    def build_slowly(*arguments: object) -> object:
        folder.rmdir()
        return works(*arguments)

    monkeypatch.setattr(to_trt, "build_engine", build_slowly)
    assert to_trt.main([str(toy), "--timing-cache", str(folder / "cache")]) == 0
    assert capsys.readouterr().err.startswith("warning: Cannot write ")
    assert (toy / "engine.plan").is_file()


def test_no_times_do_not_replace_those_of_an_earlier_build(toy, tmp_path, monkeypatch):
    fake_tensorrt.install(monkeypatch)
    cache = tmp_path / "cache"
    cache.write_bytes(b"timed;")
    monkeypatch.setattr(fake_tensorrt.ITimingCache, "serialize", lambda self: b"")
    assert to_trt.main([str(toy), "--timing-cache", str(cache)]) == 0
    assert cache.read_bytes() == b"timed;"


BAD_INPUT = {
    "endless workspace": (["--workspace", "inf"], "Workspace is inf GiB, expected more than 0 and"),
    "no workspace": (["--workspace", "nan"], "Workspace is nan GiB, expected more than 0 and"),
    "precision": (["--precision", "fp8"], "Precision is 'fp8', expected one of fp32, fp16, int8"),
    "workspace": (
        ["--workspace", "0"],
        "0.0 GiB, expected more than 0 and at most 1024",
    ),
    "no int8": (["--precision", "int8"], "a bundle of precision fp32, an engine of int8 cannot"),
}


@pytest.mark.parametrize("case", sorted(BAD_INPUT))
def test_a_wrong_option_is_one_sentence(case, toy):
    options, said = BAD_INPUT[case]
    with pytest.raises(InputError, match=said):
        to_trt.main([str(toy), *options])


def test_a_graph_that_tensorrt_does_not_take_is_named(tmp_path):
    model = toy_model()
    model.opset_import[0].version = 8
    with pytest.raises(InputError, match=r"breaks 1 rules .* opset 8 of the standard operators"):
        to_trt.main([str(write_countable_toy(tmp_path / "old", model=model))])


def test_an_axis_of_no_known_limit_is_refused(tmp_path, monkeypatch):
    fake_tensorrt.install(monkeypatch)
    card = toy_card()
    tensors = list(card.input_tensors)
    tensors[1] = dataclasses.replace(tensors[1], shape=("sensors",))
    card = dataclasses.replace(card, input_tensors=tuple(tensors))
    with pytest.raises(InputError, match=r"input axes of no known limit \(sensors\)"):
        to_trt.main([str(write_countable_toy(tmp_path / "odd", card=card))])


def test_a_damaged_bundle_is_refused(toy):
    (toy / "model.onnx").write_bytes(b"x")
    with pytest.raises(InputError, match="was changed or damaged"):
        to_trt.main([str(toy)])


def test_a_missing_plugin_is_one_sentence(small_bundle, tmp_path, monkeypatch):
    fake_tensorrt.install(monkeypatch)
    with pytest.raises(InputError, match="needs the plugin library, which is not named"):
        to_trt.main([str(small_bundle), "--out", str(tmp_path / "out")])
    with pytest.raises(InputError, match=r"nowhere\.so is missing"):
        to_trt.main([str(small_bundle), "--plugin", "nowhere.so", "--out", str(tmp_path / "out")])


def test_a_full_disk_is_one_sentence_and_the_bundle_is_as_it_was(toy, monkeypatch):
    fake_tensorrt.install(monkeypatch)
    before = {path.name: path.read_bytes() for path in toy.iterdir()}

    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(to_trt.shutil, "copyfile", full)
    with pytest.raises(InputError, match=r"Cannot write .*: No space left on device; check"):
        to_trt.main([str(toy)])
    assert {path.name: path.read_bytes() for path in toy.iterdir()} == before
    assert [path.name for path in toy.parent.iterdir()] == ["toy"]


def test_a_run_needs_a_name_for_its_bundle(tmp_path):
    (tmp_path / "checkpoint.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="is a run: name the bundle to make with --out"):
        to_trt.main([str(tmp_path)])


def test_a_computer_without_gpu_is_told_apart(toy, monkeypatch, capsys):
    fake_tensorrt.install(monkeypatch).cuda.num_devices = 0
    assert to_trt.main([str(toy)]) == 3
    assert "error: There is no usable GPU (cudaErrorNoDevice)" in capsys.readouterr().err


def test_without_tensorrt_the_command_says_what_to_install(toy):
    if _has_tensorrt():
        pytest.skip("TensorRT is installed")
    done = subprocess.run(
        [sys.executable, "export/to_trt.py", toy],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: TensorRT cannot be imported (No module named 'tensorrt')")
    assert "pip install bev-perception[trt]" in line
    assert not (toy / "engine.plan").exists()


def test_an_int8_bundle_becomes_an_int8_engine(tmp_path, monkeypatch):
    fake_tensorrt.install(monkeypatch)
    folder = write_countable_toy(
        tmp_path / "toy", dataclasses.replace(toy_card(), precision="int8"), rounded_toy_model(0)
    )
    with pytest.raises(InputError, match="precision int8, an engine of fp16 cannot be made"):
        to_trt.main([str(folder), "--precision", "fp16"])
    assert to_trt.main([str(folder)]) == 0
    bundle = load_bundle(folder)
    scores = TensorrtEngine(bundle).run(noise_frame(bundle.card.inputs)).scores
    assert scores[0] == np.float32(64) * np.float32(1 / 127)
    assert json.loads((folder / "engine.json").read_text())["precision"] == "int8"


@pytest.mark.parametrize(
    ("precision", "said"), [("int8", "zero point must be"), ("uint8", "uint8")]
)
def test_a_zero_point_is_nothing_for_tensorrt(precision, said, tmp_path):
    card = dataclasses.replace(toy_card(), precision=precision)
    folder = write_countable_toy(tmp_path / "toy", card, rounded_toy_model(3))
    with pytest.raises(InputError, match=said):
        to_trt.main([str(folder)])


def rounded_toy_model(zero_point: int) -> onnx.ModelProto:
    """The toy with scores rounded to steps of 1/127: 0.5 becomes 64/127."""
    model = toy_model()
    step = onnx.numpy_helper.from_array(np.float32(1 / 127), "step")
    zero = onnx.numpy_helper.from_array(np.int8(zero_point), "zero")
    model.graph.initializer.extend([step, zero])
    last = next(node for node in model.graph.node if node.output[0] == "scores")
    last.output[0] = "fine"
    make = onnx.helper.make_node
    model.graph.node.append(make("QuantizeLinear", ["fine", "step", "zero"], ["q"]))
    model.graph.node.append(make("DequantizeLinear", ["q", "step", "zero"], ["scores"]))
    return model


@pytest.mark.trt
def test_the_real_tensorrt_builds_and_agrees(small_bundle, tmp_path):
    if not _has_tensorrt():
        pytest.skip("no TensorRT")
    if to_trt.PLUGIN_VARIABLE not in os.environ:
        pytest.skip(f"no plugin: set {to_trt.PLUGIN_VARIABLE} to the library for TensorRT")
    out = tmp_path / "out"
    assert to_trt.main([str(small_bundle), "--precision", "fp32", "--out", str(out)]) == 0
    bundle = load_bundle(out)
    engine = TensorrtEngine(bundle)
    agreement = trt_check.compare(engine, OnnxEngine(bundle), bundle.card, "fp32")
    assert agreement.num_boxes > 0
    assert agreement.num_found >= 0.9 * agreement.num_boxes
    engine.close()


def _has_tensorrt() -> bool:
    try:
        import tensorrt  # noqa: F401
    except ImportError:
        return False
    return True


def test_half_precision_is_in_the_file(small_bundle):
    source = to_trt.prepare(load_bundle(small_bundle), "fp16")
    types = {info.name: info.type.tensor_type.elem_type for info in source.model.graph.value_info}
    (pool,) = (node for node in source.model.graph.node if node.op_type == "BevPool")
    assert types[pool.output[0]] == TensorProto.FLOAT16
