import dataclasses
import io
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from toy_bundle import toy_model, write_toy_bundle
from toy_frames import FakeEngine, frame

from perception.bundle import GOLDEN_FILE, MODEL_FILE, load_bundle, write_manifest
from perception.errors import InputError
from perception.model_inputs import prepare_frame
from runtime.agreement import BOUNDS, found_again
from runtime.engines.base import EngineError
from runtime.pipeline import Pipeline
from runtime.self_test import read_golden, self_test, write_golden


@pytest.fixture(scope="module")
def golden_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy bundle with a golden frame; copy it before you damage it."""
    folder = write_toy_bundle(tmp_path_factory.mktemp("golden") / "bundle")
    pipeline = Pipeline(load_bundle(folder), num_threads=1)
    inputs = prepare_frame(frame(), pipeline.bundle.card.inputs).inputs
    write_golden(folder, inputs, pipeline.engine.run(inputs))
    write_manifest(folder)
    pipeline.close()
    return folder


@pytest.fixture
def own(golden_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(golden_bundle, tmp_path / "bundle"))


def test_the_right_engine_passes(golden_bundle: Path) -> None:
    report = self_test(Pipeline(load_bundle(golden_bundle), num_threads=1))
    assert report.precision == "fp32"
    assert report.agreement.scores == report.agreement.map_prob == 0
    # seven boxes, of which the last of all is left out as a tie
    assert report.agreement.num_found == report.agreement.num_boxes == 6
    assert "6 of 6 boxes found again" in str(report)
    assert report.time_ms > 0


def test_the_frame_comes_back_as_it_was_written(golden_bundle: Path) -> None:
    bundle = load_bundle(golden_bundle)
    inputs, outputs = read_golden(bundle)
    written = prepare_frame(frame(), bundle.card.inputs).inputs.tensors
    for name, array in inputs.tensors.items():
        np.testing.assert_array_equal(array, written[name])
        assert array.dtype == written[name].dtype
    np.testing.assert_array_equal(outputs.labels, np.arange(7))


def constant(model: onnx.ModelProto, name: str, value: np.ndarray) -> None:
    """Give a weight of the graph another value."""
    old = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    old.CopyFrom(numpy_helper.from_array(value, name))


def change_weights(model: onnx.ModelProto) -> None:
    constant(model, "per_camera", np.array(0.05, np.float32))  # the map: 0.1 per camera before


def change_boxes(model: onnx.ModelProto) -> None:
    constant(model, "slot_column", np.arange(7, dtype=np.float32)[::-1, None].copy())


def change_operator(model: onnx.ModelProto) -> None:
    next(node for node in model.graph.node if node.output[0] == "scores").op_type = "Add"


WRONG = {
    # six cameras lost 0.05 each
    "weights": (change_weights, r"map_prob is off by 3\.0e-01"),
    "boxes": (change_boxes, "only 1 of 6 expected boxes are found"),
    # 1 + top score instead of 1 * top score: every score is 1 too high
    "operator": (change_operator, r"a score is off by 1\.0e\+00, allowed is 0\.001"),
}


@pytest.mark.parametrize("kind", sorted(WRONG))
def test_another_graph_is_refused_with_what_differs(kind: str, own: Path) -> None:
    change, said = WRONG[kind]
    model = toy_model()
    change(model)
    (own / MODEL_FILE).write_bytes(model.SerializeToString())
    write_manifest(own)  # a bundle put together by hand: every digest is right
    with pytest.raises(InputError, match=rf"does not pass its self-test.*on the golden.*{said}"):
        self_test(Pipeline(load_bundle(own), num_threads=1))


def test_an_engine_may_be_as_far_off_as_its_precision_explains(golden_bundle: Path) -> None:
    bundle = load_bundle(golden_bundle)
    _, golden = read_golden(bundle)
    engine = FakeEngine()
    # fp32 allows 0.001, fp16 0.1 and a tenth of it in the mean
    engine.outputs = dataclasses.replace(golden, map_prob=golden.map_prob + np.float32(0.005))
    pipeline = Pipeline(bundle, engine=engine)
    with pytest.raises(InputError, match=r"map_prob is off by 5\.0e-03 .*allowed is 0\.001"):
        self_test(pipeline)
    engine.precision = "fp16"
    assert self_test(pipeline).precision == "fp16"
    engine.outputs = dataclasses.replace(golden, map_prob=golden.map_prob * np.float32(np.nan))
    with pytest.raises(InputError, match="its map_prob is not finite"):
        self_test(pipeline)


def test_an_engine_that_fails_or_answers_in_other_shapes_is_refused(golden_bundle: Path) -> None:
    engine = FakeEngine()
    pipeline = Pipeline(load_bundle(golden_bundle), engine=engine)
    engine.error = EngineError("no memory")
    with pytest.raises(InputError, match=r"the engine fails \(no memory\)"):
        self_test(pipeline)
    other = FakeEngine(labels=np.zeros(2, np.int64))
    with pytest.raises(InputError, match="do not belong together"):
        self_test(Pipeline(load_bundle(golden_bundle), engine=other))


def rewritten(folder: Path, **changes: np.ndarray) -> Path:
    """The golden frame with other arrays: digests are right."""
    with np.load(folder / GOLDEN_FILE) as file:
        arrays = {name: file[name] for name in file.files}
    arrays.update({name.replace("__", "."): array for name, array in changes.items()})
    np.savez_compressed(folder / GOLDEN_FILE, **arrays)
    write_manifest(folder)
    return folder


@pytest.mark.parametrize(
    ("name", "array", "said"),
    [
        ("output__boxes_ego", np.zeros((7, 7), np.float32), r"boxes_ego as float32 \[7, 7\]"),
        ("output__boxes_ego", np.zeros((0, 9), np.float32), r"boxes_ego as float32 \[0, 9\]"),
        ("output__map_prob", np.zeros((6, 1, 1), np.float32), r"map_prob as float32 \[6, 1, 1\]"),
        ("output__scores", np.zeros(7), "scores as float64"),
        ("input__cell_start", np.zeros(401), "cell_start as float64"),
        (
            "input__images",
            np.zeros((6, 32), np.uint8),
            r"uint8 \[6, 32\], the model card",
        ),
    ],
)
def test_a_golden_frame_of_another_shape_or_type_is_refused(
    own: Path, name: str, array: np.ndarray, said: str
) -> None:
    with pytest.raises(InputError, match=said):
        self_test(Pipeline(load_bundle(rewritten(own, **{name: array})), num_threads=1))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"scores": np.zeros(7)}, "scores is float64"),
        ({"labels": np.zeros(7, np.int32)}, "labels is int32"),
        (
            {n: a[:6] for n, a in vars(FakeEngine().outputs).items() if n != "map_prob"},
            r"boxes_ego is float32 \[3, 9\], expected float32 \[7, 9\]",
        ),
        ({"map_prob": np.full((6, 40, 40), np.nan, np.float32)}, "map_prob is not finite"),
        ({"boxes_ego": np.full((7, 9), np.inf, np.float32)}, "boxes_ego is not finite"),
    ],
)
def test_an_answer_of_another_shape_or_type_is_refused_before_numbers_are_compared(
    golden_bundle: Path, changes: dict, said: str
) -> None:
    bundle, engine = load_bundle(golden_bundle), FakeEngine()
    engine.outputs = read_golden(bundle)[1]
    for name, array in changes.items():  # past the shapes that tests check and a car does not
        object.__setattr__(engine.outputs, name, array)
    with pytest.raises(InputError, match=said):
        self_test(Pipeline(bundle, engine=engine))


def test_a_golden_frame_that_shows_too_few_boxes_is_no_silent_pass(
    own: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine = FakeEngine()
    scores = np.array([0.5, 0.505, 0.53, 0.54, 0.55, 0.9, 0.9], np.float32)
    engine.outputs = dataclasses.replace(read_golden(load_bundle(own))[1], scores=scores)
    rewritten(own, output__scores=scores)
    report = self_test(Pipeline(load_bundle(own), engine=engine))
    assert report.agreement.num_boxes == 6  # fp32: those 0.0001 above the last one
    engine.precision = "int8"
    report = self_test(Pipeline(load_bundle(own), engine=engine))  # 0.01: 0.505 is a tie, too
    assert (report.agreement.num_boxes, report.agreement.weakness) == (5, None)
    assert not caplog.records
    scores[4] = 0.5
    rewritten(own, output__scores=scores)
    report = self_test(Pipeline(load_bundle(own), engine=engine))
    assert report.agreement.num_boxes == 4
    assert "4 of 4 boxes found again (fewer than 5: boxes are hardly compared" in str(report)
    assert "is weak (fewer than 5" in caplog.text


def test_each_box_is_found_once(golden_bundle: Path) -> None:
    expected = read_golden(load_bundle(golden_bundle))[1]
    # Seven boxes in one place, of which the engine has one, and the others 50 m away.
    boxes = np.tile(expected.boxes_ego[:1], (7, 1))
    near = dataclasses.replace(expected, boxes_ego=boxes, labels=np.zeros(7, np.int64))
    far = boxes.copy()
    far[1:, 0] += 50.0
    got = dataclasses.replace(near, boxes_ego=far, scores=near.scores[[0] * 7])
    near = dataclasses.replace(near, scores=near.scores[[0] * 7])
    assert found_again(near, got, BOUNDS["int8"]).sum() == 1


def test_a_bundle_without_a_golden_frame_opens_but_has_no_self_test(own: Path) -> None:
    golden = (own / GOLDEN_FILE).read_bytes()
    (own / GOLDEN_FILE).unlink()
    write_manifest(own)
    bundle = load_bundle(own)
    pipeline = Pipeline(bundle, num_threads=1)
    assert pipeline.process(frame()).mode == "fusion"
    with pytest.raises(InputError, match=r"lists no golden\.npz.*export the bundle again"):
        self_test(pipeline)
    (own / GOLDEN_FILE).write_bytes(golden)  # a file that the manifest does not list is not used
    with pytest.raises(InputError, match=r"lists no golden\.npz"):
        read_golden(load_bundle(own))


def damaged(content: bytes, kind: str) -> bytes:
    one_array = io.BytesIO()
    np.save(one_array, np.zeros(3))
    kinds = {
        "cut": content[:500],
        "text": b"no archive",
        "empty": b"",
        "one array": one_array.getvalue(),
    }
    return kinds[kind]


@pytest.mark.parametrize("kind", ["cut", "text", "empty", "one array"])
def test_a_file_that_is_no_golden_frame_is_refused(kind: str, own: Path) -> None:
    path = own / GOLDEN_FILE
    path.write_bytes(damaged(path.read_bytes(), kind))
    with pytest.raises(InputError, match=r"golden.npz has sha256 .* changed or damaged"):
        load_bundle(own)
    write_manifest(own)
    with pytest.raises(InputError, match="is no golden frame of this bundle"):
        read_golden(load_bundle(own))


@pytest.mark.parametrize("lacks", ["input.images", "output.scores"])
def test_one_that_lacks_a_tensor_is_refused(lacks: str, own: Path) -> None:
    with np.load(own / GOLDEN_FILE) as file:
        arrays = {name: file[name] for name in file.files if name != lacks}
    np.savez_compressed(own / GOLDEN_FILE, **arrays)
    write_manifest(own)
    with pytest.raises(InputError, match=f"no golden frame of this bundle .*{lacks}"):
        read_golden(load_bundle(own))


def test_objects_are_never_unpacked(own: Path) -> None:
    with np.load(own / GOLDEN_FILE) as file:
        arrays = {name: file[name] for name in file.files}
    arrays["output.scores"] = np.array([print], dtype=object)
    np.savez_compressed(own / GOLDEN_FILE, **arrays)
    write_manifest(own)
    with pytest.raises(InputError, match="allow_pickle"):
        read_golden(load_bundle(own))
