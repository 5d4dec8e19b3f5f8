import gc

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pool_sessions import (
    expected,
    half,
    model_for,
    open_session,
    pool,
    random_feed,
    with_body_of_zeros,
    without_body,
)

from export.bev_pool_onnx import bev_pool_model, register_schema
from perception import native

LEVELS = ("ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL")
HALF_ULP = 2.0**-11  # of a half-precision number, relative

sizes = st.tuples(*(st.integers(1, most) for most in (3, 4, 7, 4, 40)))


@pytest.fixture(scope="module")
def library() -> str:
    path = native.library_path()
    if path is None:
        pytest.skip(f"no compiled op: {native.description()}")
    register_schema()
    return str(path)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), sizes, st.integers(1, 9), st.sampled_from([0.0, 0.3, 1.0]))
def test_the_op_is_the_reference(library, seed, shape, num_cells, change):
    feed = random_feed(seed, shape, num_cells, change=change)
    np.testing.assert_allclose(pool(feed, 2, library), expected(feed), rtol=1e-5, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), sizes, st.integers(1, 9))
def test_half_precision_is_rounded_once_at_the_end(library, seed, shape, num_cells):
    feed = half(random_feed(seed, shape, num_cells))
    bev = pool(feed, 2, library)
    assert bev.dtype == np.float16
    np.testing.assert_allclose(bev, expected(feed), rtol=1.01 * HALF_ULP, atol=1e-5)


@pytest.mark.parametrize("name", LEVELS)
def test_the_op_is_preferred_to_the_body(library, name):
    level = getattr(onnxruntime.GraphOptimizationLevel, name)
    feed = random_feed(1, (2, 3, 4, 5, 6), 7)
    model = with_body_of_zeros(model_for(feed))
    (bev,) = open_session(model, library=library, level=level).run(None, feed)
    np.testing.assert_allclose(bev, expected(feed), rtol=1e-5, atol=1e-5)
    (zeros,) = open_session(model, level=level).run(None, feed)  # the body would have been seen
    assert not zeros.any()


def test_a_file_without_body_runs(library):
    feed = random_feed(2, (2, 3, 4, 5, 6), 7)
    (bev,) = open_session(without_body(model_for(feed)), library=library).run(None, feed)
    assert np.array_equal(bev, pool(feed, 1, library))


@pytest.mark.parametrize("precision", [dict, half])
def test_the_sum_does_not_depend_on_threads_or_on_the_run(library, precision):
    feed = precision(random_feed(3, (3, 20, 12, 22, 40), 900))
    model = model_for(feed)
    sessions = [open_session(model, threads, library) for threads in (1, 2, 3, 4)]
    results = [session.run(None, feed)[0] for session in sessions for _ in range(3)]
    for other in results[1:]:
        assert np.array_equal(results[0], other)


def test_sessions_come_and_go(library):
    feed = random_feed(4, (2, 3, 4, 5, 6), 7)
    first, second = (open_session(model_for(feed), library=library) for _ in range(2))
    bev = first.run(None, feed)[0]
    del first
    gc.collect()
    assert np.array_equal(second.run(None, feed)[0], bev)
    assert np.array_equal(pool(feed, 1, library), bev)


def test_padding_empty_tables_and_unused_pixels(library):
    feed = random_feed(5, (2, 3, 4, 5, 6), 7)
    bev = pool(feed, 1, library)
    rubbish = np.array([[-7, 2**31 - 1, 0], [2**31 - 1, -9, 40]], np.int32)
    padded = feed | {"runs": np.concatenate([feed["runs"], rubbish])}
    assert np.array_equal(pool(padded, 1, library), bev)
    empty = feed | {
        "runs": np.zeros((0, 3), np.int32),
        "cell_start": np.zeros(8, np.int32),
        "feat": np.full_like(feed["feat"], np.nan),
    }
    assert np.array_equal(pool(empty, 1, library), np.zeros((7, 6)))


# n, d, h, w = 2, 3, 4, 5: 120 points, 40 pixels; a run's first point 5 is row 1, column 0, camera 0
BAD_RUNS = [
    ([-1, 0, 1], "begins outside depth"),
    ([120, 0, 1], "begins outside depth"),
    ([2**31 - 1, 0, 1], "begins outside depth"),
    ([5, -5, 1], "pixel"),
    ([5, 40, 1], "pixel"),
    ([5, 6, 1], "pixel"),
    ([60, 0, 1], "pixel"),  # the second camera's first point with the first one's pixel
    ([5, 5, 0], "no rows"),
    ([5, 5, -3], "no rows"),
    ([5, 5, 4], "bottom"),
    ([5, 5, 2**31 - 1], "bottom"),
]


@pytest.mark.parametrize(("run", "words"), BAD_RUNS)
def test_a_run_that_points_outside_is_refused(library, run, words):
    feed = random_feed(6, (2, 3, 4, 5, 6), 1)
    feed["runs"] = np.array([run], np.int32)
    feed["cell_start"] = np.array([0, 1], np.int32)
    with pytest.raises(Exception, match=rf"perception\.BevPool: .*{words}"):
        pool(feed, 2, library)


@pytest.mark.parametrize(
    ("cell_start", "words"),
    [
        ([1, 1, 2], "begin at 0"),
        ([-1, 1, 2], "begin at 0"),
        ([0, 2, 1], "decreases"),
        ([0, 1, 3], "beyond the runs"),
        ([0, 1, 2**31 - 1], "beyond the runs"),
    ],
)
def test_starts_that_are_no_list_are_refused(library, cell_start, words):
    feed = random_feed(6, (2, 3, 4, 5, 6), 2)
    feed["runs"] = np.array([[5, 5, 2], [60, 20, 1]], np.int32)
    feed["cell_start"] = np.array(cell_start, np.int32)
    with pytest.raises(Exception, match=rf"perception\.BevPool: .*{words}"):
        pool(feed, 2, library)


def test_a_refused_table_leaves_the_session_usable(library):
    feed = random_feed(7, (2, 3, 4, 5, 6), 7)
    session = open_session(model_for(feed), library=library)
    bev = session.run(None, feed)[0]
    bad = feed | {"runs": feed["runs"] + np.int32(1000)}
    for _ in range(50):
        with pytest.raises(Exception, match=r"perception\.BevPool"):
            session.run(None, bad)
    assert np.array_equal(session.run(None, feed)[0], bev)


def with_free_sizes(model: onnx.ModelProto) -> onnx.ModelProto:
    for tensor in (*model.graph.input, *model.graph.output):
        tensor.type.tensor_type.ClearField("shape")
    return model


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("depth", (2, 12, 5), "depth has 3 axes, expected 4"),
        ("feat", (40, 6), "feat has 2 axes, expected 4"),
        ("runs", (9,), "runs has 1 axes, expected 2"),
        ("runs", (9, 2), "runs has not three columns"),
        ("cell_start", (2, 4), "cell_start has 2 axes, expected 1"),
        ("cell_start", (0,), "cell_start is empty"),
        ("feat", (1, 4, 5, 6), "depth .* differ in n, h or w"),
        ("feat", (2, 5, 4, 6), "depth .* differ in n, h or w"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(library, name, shape, words):
    feed = random_feed(8, (2, 3, 4, 5, 6), 7)
    session = open_session(with_free_sizes(model_for(feed)), library=library)
    feed[name] = np.zeros(shape, feed[name].dtype)
    with pytest.raises(Exception, match=rf"perception\.BevPool: {words}"):
        session.run(None, feed)


@pytest.mark.parametrize("name", ["depth", "feat", "runs", "cell_start"])
def test_other_element_types_are_refused_when_the_file_is_opened(library, name):
    model = bev_pool_model(2, 3, 4, 5, 6, 7)
    (tensor,) = [tensor for tensor in model.graph.input if tensor.name == name]
    tensor.type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    words = rf"'tensor\(double\)' of input parameter \({name}\) of operator \(BevPool\)"
    with pytest.raises(Exception, match=words):
        open_session(without_body(model), library=library)


def test_maps_of_two_types_are_refused_when_the_file_is_opened(library):
    model = bev_pool_model(2, 3, 4, 5, 6, 7)
    model.graph.input[1].type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    with pytest.raises(Exception, match="BevPool"):
        open_session(without_body(model), library=library)
