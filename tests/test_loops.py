"""Every kernel against the reference, and what no reference can say: threads, NaN and Inf, huge arrays."""

from functools import cache

import numpy as np
import pytest
from helpers import DTYPES, assert_within, literal, random_array, random_integers, ready, unwritten

import loopconv
from loopconv import geometry, registry
from loopconv.cases import CASES

RESULT = {"forward": "y", "adjoint": "x", "weight": "w"}
ROWS = registry.implementations()
LOOPS = ("parallel", "numba", "cython", "python")
BY_NAME = {case.name: case for case in CASES}


def name_of(row):
    return f"{row.contraction}-{row.backend}"


def kernel(row):
    """The row's function."""
    ready(row.backend)
    return registry.loaded(row)


def operands(g, dtype, make=random_array):
    return {name: make(getattr(g, f"{name}_shape"), dtype, seed) for seed, name in enumerate("xwy")}


@cache
def judged(contraction, case_name, dtype, with_bias=False):
    """(operands, bias, what the reference makes of them in double precision, allowed error)."""
    g = BY_NAME[case_name].geometry
    arrays = operands(g, dtype)
    bias = random_array(g.k if contraction == "forward" else g.c, dtype, 3) if with_bias else None
    wide = np.result_type(dtype, np.float64) if dtype.kind in "fc" else dtype
    results = []
    for prepare in (lambda array: array.astype(wide), lambda array: np.abs(array.astype(wide))):
        prepared = {name: prepare(array) for name, array in arrays.items()}
        added = {"bias": prepare(bias)} if with_bias else {}
        registry.select(contraction, "reference", g, wide)(g, **prepared, **added)
        results.append(prepared[RESULT[contraction]])
    return arrays, bias, results[0], registry.tolerance(g, contraction, dtype) * results[1]


def check(run, contraction, case_name, dtype, with_bias=False):
    """Run one kernel on one case and compare; its operands must stay as they were."""
    arrays, bias, expected, tolerance = judged(contraction, case_name, dtype, with_bias)
    given = {name: array.copy() for name, array in arrays.items()}
    given[RESULT[contraction]] = unwritten(expected.shape, dtype)
    run(BY_NAME[case_name].geometry, **given, **({"bias": bias.copy()} if with_bias else {}))
    message = f"{contraction} {case_name} {dtype}"
    if dtype.kind in "iu":
        assert np.array_equal(given[RESULT[contraction]], expected), message
    else:
        assert_within(given[RESULT[contraction]], expected, tolerance, message)
    for name in set("xwy") - {RESULT[contraction]}:
        assert given[name].tobytes() == arrays[name].tobytes(), f"{message}: {name} was changed"


@pytest.mark.parametrize("case_name", BY_NAME)
@pytest.mark.parametrize("row", ROWS, ids=name_of)
def test_every_kernel_on_every_case(row, case_name):
    run, g = kernel(row), BY_NAME[case_name].geometry
    refusals = {dtype: row.unsupported(g, dtype) for dtype in DTYPES}
    if all(refusals.values()):
        pytest.skip(f"{row.backend}: {next(iter(refusals.values()))}")
    for dtype in DTYPES:
        if not refusals[dtype]:
            check(run, row.contraction, case_name, dtype)


@pytest.mark.parametrize("row", [row for row in ROWS if row.contraction != "weight"], ids=name_of)
def test_every_kernel_adds_the_bias(row):
    run = kernel(row)
    for case in CASES:
        for dtype in DTYPES:
            if not row.unsupported(case.geometry, dtype):
                check(run, row.contraction, case.name, dtype, with_bias=True)


def test_the_textbook_loops_take_every_case():
    taken = {
        row.backend for row in ROWS if not any(row.unsupported(case.geometry, dt) for case in CASES for dt in DTYPES)
    }
    assert taken >= {*LOOPS, "reference"}


def test_a_cell_that_is_not_written_is_noticed():
    def lazy(g, x, w, y):
        cells = y.copy()
        registry.select("forward", "reference", g, y.dtype)(g, x, w, cells)
        y.ravel()[:-1] = cells.ravel()[:-1]

    for dtype in DTYPES:
        with pytest.raises(AssertionError):
            check(lazy, "forward", "2d", dtype)


def test_the_tolerance_notices_a_missing_term():
    def forgetful(g, x, w, y):
        without = w.copy()
        without[-1, -1, -1, -1] = 0
        registry.select("forward", "reference", g, y.dtype)(g, x, without, y)

    for dtype in DTYPES:
        with pytest.raises(AssertionError, match=rf"forward 2d {dtype}") as caught:
            check(forgetful, "forward", "2d", dtype)
        assert "was changed" not in str(caught.value)


# ------------------------------------------------------------------------------------------ threads


@pytest.fixture
def threads():
    """`loopconv.set_num_threads`; the number of threads is put back afterwards."""
    before = loopconv.get_num_threads()
    yield loopconv.set_num_threads
    loopconv.set_num_threads(before)


BIG = {
    "padded": geometry.conv((3, 8, 33, 31), (10, 8, 3, 3), padding=1),
    "groups": geometry.conv((2, 12, 39, 60), (6, 4, 3, 3), groups=3, stride=2),
    "one-plane-short": geometry.conv((1, 7, 40, 40), (3, 7, 5, 5), dilation=2),
    "3d": geometry.conv((1, 4, 12, 13, 14), (5, 4, 3, 3, 3), padding=1),
}


@pytest.mark.parametrize("g", BIG.values(), ids=BIG)
@pytest.mark.parametrize("contraction", registry.CONTRACTIONS)
@pytest.mark.parametrize("threaded", ["parallel", "tiled"])
def test_any_number_of_threads_gives_the_same_bits(threaded, contraction, g, threads, monkeypatch):
    ready(threaded)
    assert g.macs >= registry.PARALLEL_MACS
    monkeypatch.setattr(loopconv.threads, "SHARED_MACS", 0)
    monkeypatch.setattr(loopconv.threads, "WAKING_MACS", 0)
    run, result = registry.select(contraction, threaded, g, np.float32), RESULT[contraction]
    arrays = operands(g, np.float32)
    bits = []
    for n in (1, 2, 2, 1):
        threads(n)
        arrays[result] = unwritten(arrays[result].shape, np.float32)
        run(g, **arrays)
        bits.append(arrays[result].tobytes())
    assert not np.isnan(arrays[result]).any()
    assert bits[1:] == bits[:1] * 3


@pytest.mark.parametrize("g", BIG.values(), ids=BIG)
@pytest.mark.parametrize("contraction", registry.CONTRACTIONS)
def test_parallel_and_serial_agree(contraction, g, threads):
    ready("parallel")
    threads(2)
    arrays, result = operands(g, np.int64), RESULT[contraction]
    written = {}
    for backend in ("parallel", "numba"):
        arrays[result] = unwritten(arrays[result].shape, np.int64)
        registry.select(contraction, backend, g, np.int64)(g, **arrays)
        written[backend] = arrays[result]
    assert np.array_equal(written["parallel"], written["numba"])


@pytest.mark.parametrize("backend", ["parallel", "numba"])
def test_calls_leave_numbas_own_number_of_threads_alone(backend, threads):
    ready(backend)
    numba = pytest.importorskip("numba", reason="numba is not installed")
    before = numba.get_num_threads()
    threads(1)
    g = BIG["padded"]
    registry.select("forward", backend, g, np.float32)(g, **operands(g, np.float32))
    assert numba.get_num_threads() == before


# -------------------------------------------------------------------------------------- NaN and Inf

# Padding, a cropped side, a stride that leaves cells which no tap reaches, and two groups.
SPECIAL = geometry.conv((2, 4, 7, 8), (4, 2, 2, 1), stride=(3, 2), padding=((1, 0), (-1, 1)), groups=2)


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
@pytest.mark.parametrize("row", ROWS, ids=name_of)
def test_nan_and_inf_come_out_where_the_sum_has_them(row, dtype):
    """Only terms of the sum that hold a NaN or Inf may spread it.

    The literal sum says where that is. (Padding is read as zeros, and ``0 * nan`` is NaN: a NaN tap marks
    every output. Written to, padding is dropped, and a cell that no tap reaches stays 0.)
    """
    run, g = kernel(row), SPECIAL
    if reason := row.unsupported(g, np.dtype(dtype)):
        pytest.skip(f"{row.backend}: {reason}")
    result = RESULT[row.contraction]
    for name in set("xwy") - {result}:
        marked = 0
        for value in (np.nan, np.inf, -np.inf):
            arrays = operands(g, dtype, random_integers)
            for seed in range(3):
                at = tuple(np.random.default_rng(seed).integers(arrays[name].shape).tolist())
                arrays[name][at] = value
                expected = literal(row.contraction, g, **arrays).astype(dtype)
                marked += np.count_nonzero(~np.isfinite(expected))
                arrays[result] = unwritten(arrays[result].shape, dtype)
                run(g, **arrays)
                message = f"{row.backend} {row.contraction} {dtype}: {value} in {name}{at}"
                if arrays[result].dtype.kind == "c":  # inf * (a + bj) is one of several infinities or NaN
                    finite = np.isfinite(expected)
                    assert np.array_equal(np.isfinite(arrays[result]), finite), message
                    assert np.array_equal(arrays[result][finite], expected[finite]), message
                else:
                    assert np.array_equal(arrays[result], expected, equal_nan=True), message
        assert marked


# ------------------------------------------------------------------------------ beyond 32-bit indices

FAR = 2**31  # elements; int32 indices end one before


def far_zeros(size):
    """(1, 1, size) zeros whose pages are not there until they are written."""
    try:
        return np.zeros((1, 1, size), np.float32)
    except MemoryError as error:
        pytest.skip(f"this machine does not give the address space: {error}")


@pytest.mark.parametrize("backend", LOOPS)
def test_forward_reads_past_2_to_31_elements(backend):
    x = far_zeros(FAR + 1)  # of which the loops read the first and the last
    x[0, 0, 0], x[0, 0, -1] = 3, 5
    y = loopconv.conv(x, np.full((1, 1, 1), 2, np.float32), stride=FAR, backend=ready(backend))
    assert y.tolist() == [[[6, 10]]]


@pytest.mark.parametrize("backend", LOOPS)
def test_weight_gradient_reads_past_2_to_31_elements(backend):
    x = far_zeros(FAR + 1)
    x[0, 0, 0], x[0, 0, -1] = 3, 5
    grad = np.array([[[7, 11]]], np.float32)
    w_grad = loopconv.conv_weight_grad(grad, x, (1, 1, 1), stride=FAR, backend=ready(backend))
    assert w_grad.tolist() == [[[3 * 7 + 5 * 11]]]


@pytest.mark.parametrize("backend", LOOPS)
def test_adjoint_writes_past_2_to_31_elements(backend):
    # All but the last four of 2**31 + 2 pixels are cropped, so the result is small and the buffer is not.
    x, w = np.array([[[3, 5]]], np.float32), np.array([[[2, 7]]], np.float32)
    far_zeros(FAR + 2)
    y = loopconv.conv_transpose(x, w, stride=FAR, padding=((FAR - 2, 0),), backend=ready(backend))
    assert y.tolist() == [[[0, 0, 10, 35]]]


@pytest.mark.parametrize("backend", LOOPS)
def test_taps_past_2_to_31_elements(backend):
    x = far_zeros(FAR + 1)
    x[0, 0, 0], x[0, 0, -1] = 3, 5
    y = loopconv.conv(x, np.array([[[2, 10]]], np.float32), dilation=FAR, backend=ready(backend))
    assert y.tolist() == [[[56]]]
