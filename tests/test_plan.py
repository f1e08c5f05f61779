"""Plans give the bits of the plain call by their algorithm, keep what they were made of, and allocate nothing."""

import re
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from helpers import random_array, unwritten

import loopconv
from loopconv import registry
from loopconv.cases import CASES

PLANS = {"conv": loopconv.plan_conv, "conv_transpose": loopconv.plan_conv_transpose}
FLOATS = ("float32", "float64")


def takes(case, dtype):
    contraction = "forward" if case.op == "conv" else "adjoint"
    rows = [row for row in registry.implementations() if (row.contraction, row.backend) == (contraction, "tiled")]
    return rows[0].unsupported(case.geometry, np.dtype(dtype)) is None


def arguments(case, dtype):
    """x, w, bias of the case's call."""
    g = case.geometry
    shape, channels = (g.x_shape, g.k) if case.op == "conv" else (g.y_shape, g.c)
    return tuple(random_array(s, dtype, seed) for seed, s in enumerate((shape, g.w_shape, (channels,))))


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_bits_of_the_plain_call(dtype):
    done = 0
    for case in CASES:
        if not takes(case, dtype):
            continue
        x, w, bias = arguments(case, dtype)
        for given in ((w,), (w, bias)):
            plan = PLANS[case.op](*given, input_shape=x.shape, **case.settings)
            expected = getattr(loopconv, case.op)(x, *given, algorithm=plan.algorithm, **case.settings)
            out = unwritten(expected.shape, dtype)
            assert plan(x).tobytes() == expected.tobytes(), case.name
            assert plan(x, out) is out
            assert out.tobytes() == expected.tobytes(), case.name
            assert (plan.input_shape, plan.output_shape, plan.dtype) == (x.shape, expected.shape, np.dtype(dtype))
        done += 1
    assert done > 50


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("algorithm", ["direct", "indirect", "winograd2", "winograd4"])
@pytest.mark.parametrize("name", PLANS)
def test_numbers_that_are_not_finite(name, algorithm, value):
    x, w = random_array((1, 3, 9, 11), "float32", 0), random_array((3, 3, 3, 3), "float32", 1)
    settings = {"padding": 1, "algorithm": algorithm}
    bad_x, bad_w = x.copy(), w.copy()
    bad_x[0, 1, 4, 5], bad_w[2, 0, 1, 2] = value, value
    for given_x, given_w in ((bad_x, w), (x, bad_w), (bad_x, bad_w)):
        plan = PLANS[name](given_w, input_shape=x.shape, **settings)
        expected = getattr(loopconv, name)(given_x, given_w, padding=1, backend="tiled", algorithm="direct")
        for _ in range(2):
            assert np.array_equal(plan(given_x), expected, equal_nan=True)


def test_unbatched_and_strided_arrays():
    w = random_array((4, 3, 3, 3), "float32", 1)
    plan = loopconv.plan_conv(w, input_shape=(3, 8, 9), padding=1)
    x = random_array((9, 8, 3), "float32", 0).transpose(2, 1, 0)
    expected = loopconv.conv(x, w, padding=1, backend="tiled")
    wide = unwritten((4, 8, 18), "float32")
    assert plan(x, wide[:, :, ::2]).base is wide
    assert np.array_equal(wide[:, :, ::2], expected)
    assert np.isnan(wide[:, :, 1::2]).all()
    x.flags.writeable = False
    assert np.array_equal(plan(x), expected)


def test_weights_and_bias_are_copied():
    x, w, bias = (random_array(shape, "float64", seed) for seed, shape in enumerate(((1, 2, 7), (3, 2, 3), (3,))))
    plan = loopconv.plan_conv(w, bias, input_shape=x.shape)
    expected = loopconv.conv(x, w, bias, backend="tiled")
    w[...] = 0
    bias[...] = 7
    assert plan(x).tobytes() == expected.tobytes()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("algorithm", ["direct", "indirect", "winograd2", "winograd4"])
def test_nothing_is_allocated(algorithm, threads, monkeypatch):
    monkeypatch.setattr(loopconv.threads, "SHARED_MACS", 0)
    monkeypatch.setattr(loopconv.threads, "WAKING_MACS", 0)
    monkeypatch.setattr(loopconv.threads, "_requested", threads)
    x, w = random_array((1, 16, 40, 40), "float32", 0), random_array((16, 16, 3, 3), "float32", 1)
    plan = loopconv.plan_conv(w, input_shape=x.shape, padding=1, algorithm=algorithm)
    out = plan(x)
    tracemalloc.start()
    try:
        plan(x, out)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 8192, f"{most} bytes; the output alone has {out.nbytes}"
    assert plan.nbytes > w.nbytes


def test_several_python_threads():
    xs = [random_array((1, 8, 33, 35), "float32", seed) for seed in range(4)]
    w = random_array((8, 8, 3, 3), "float32", 9)
    plan = loopconv.plan_conv(w, input_shape=xs[0].shape, padding=1)
    expected = [loopconv.conv(x, w, padding=1, algorithm=plan.algorithm).tobytes() for x in xs]

    def ten_calls(i):
        return [plan(xs[i]).tobytes() == expected[i] for _ in range(10)]

    with ThreadPoolExecutor(4) as pool:
        assert all(all(same) for same in pool.map(ten_calls, range(4)))


def test_repr_names_sizes_and_algorithm():
    plan = loopconv.plan_conv(np.ones((2, 1, 3, 3), "float32"), input_shape=(1, 1, 6, 6), algorithm="winograd4")
    assert repr(plan) == "<plan_conv (1, 1, 6, 6) -> (1, 2, 4, 4), float32, winograd4>"
    assert plan.algorithm == "winograd4"


W = np.ones((2, 1, 3, 3), np.float32)
REFUSED = [
    ({"w": W.astype(int)}, TypeError, "w must be of dtype float32 or float64 for a plan, got dtype int64"),
    ({"bias": np.ones(2)}, TypeError, "bias must be of a dtype that fits into w's float32, got dtype float64"),
    ({"bias": np.ones(3, np.float32)}, ValueError, "bias must have shape (2,), one value per output channel"),
    ({"input_shape": (1, 2, 6, 6)}, ValueError, "input_shape must have 1 channels"),
    ({"input_shape": 6}, TypeError, "input_shape must be a tuple of ints, got 6"),
    (
        {"algorithm": "fft"},
        ValueError,
        "algorithm must be None or one of direct, indirect, winograd2, winograd4 for this call",
    ),
    (
        {"algorithm": "winograd2", "stride": 3},
        ValueError,
        "algorithm must be None or one of direct, indirect for this call",
    ),
    ({"stride": 0}, ValueError, "stride must be at least 1 on every axis, got 0"),
]


@pytest.mark.parametrize(("change", "error", "message"), REFUSED)
def test_what_cannot_be_planned(change, error, message):
    given = {"w": W, "input_shape": (1, 1, 6, 6), **change}
    with pytest.raises(error, match=re.escape(message)):
        loopconv.plan_conv(given.pop("w"), given.pop("bias", None), **given)


X = np.ones((1, 1, 6, 6), np.float32)
CALLS = [
    ([[1.0]], None, TypeError, "x must be a NumPy array of the plan's dtype float32, got list"),
    (X.astype(float), None, TypeError, "x must have the plan's dtype float32, got dtype float64"),
    (X[0], None, ValueError, "x must have the plan's input shape (1, 1, 6, 6), got shape (1, 6, 6)"),
    (X, np.ones((1, 2, 4, 5), np.float32), ValueError, "out must have the result's shape (1, 2, 4, 4)"),
    (X, np.ones((1, 2, 4, 4)), TypeError, "out must have the result's dtype float32, got dtype float64"),
]


@pytest.mark.parametrize(("x", "out", "error", "message"), CALLS)
def test_calls_that_are_refused(x, out, error, message):
    plan = loopconv.plan_conv(W, input_shape=X.shape)
    before = None if out is None else out.copy()
    with pytest.raises(error, match=re.escape(message)):
        plan(x, out)
    assert out is None or np.array_equal(out, before)


def test_an_output_over_the_input_is_refused():
    memory = np.ones(64, np.float32)
    plan = loopconv.plan_conv(np.ones((1, 1, 3, 3), np.float32), input_shape=(1, 1, 6, 6))
    with pytest.raises(ValueError, match="out must not overlap x"):
        plan(memory[:36].reshape(1, 1, 6, 6), memory[20:36].reshape(1, 1, 4, 4))
    assert (memory == 1).all()
