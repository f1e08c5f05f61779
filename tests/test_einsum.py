"""einsum_spec: its einsum gives what the library gives, and its text says what it did."""

import numpy as np
import pytest
from helpers import random_integers

import loopconv
from loopconv.cases import CASES

CASES = {case.name: case for case in CASES}
LIBRARY = {None: "", "input": "_input_grad", "weight": "_weight_grad"}


def operands(case, dtype="int64"):
    x, w = random_integers(case.x_shape, dtype, 0), random_integers(case.w_shape, dtype, 1)
    y = getattr(loopconv, case.op)(x, w, backend="reference", **case.settings)
    return x, w, y, random_integers(y.shape, dtype, 2)


def expected(case, wrt, x, w, grad):
    function = getattr(loopconv, case.op + LIBRARY[wrt])
    arguments = {None: (x, w), "input": (grad, w, x.shape), "weight": (grad, x, w.shape)}[wrt]
    return function(*arguments, backend="reference", **case.settings)


def result(spec):
    return np.einsum(spec.subscripts, *spec.operands).reshape(spec.shape)


@pytest.mark.parametrize("wrt", LIBRARY)
@pytest.mark.parametrize("name", CASES)
def test_the_einsum_is_the_librarys_result(name, wrt):
    case = CASES[name]
    x, w, _, grad = operands(case)
    spec = loopconv.einsum_spec(case.op, wrt, x, w, None if wrt is None else grad, **case.settings)
    found = result(spec)
    assert np.array_equal(found, expected(case, wrt, x, w, grad))
    assert found.shape == spec.shape
    if case.geometry.groups == 1:  # then there is nothing to reshape
        assert np.einsum(spec.subscripts, *spec.operands).shape == spec.shape


@pytest.mark.parametrize("wrt", LIBRARY)
@pytest.mark.parametrize("name", ["1d", "groups", "t-2d", "t-groups"])
@pytest.mark.parametrize("dtype", ["int8", "float16", "complex64", "complex128"])
def test_dtypes_are_those_that_are_computed_in(dtype, name, wrt):
    case = CASES[name]
    x, w, _, grad = operands(case, dtype)
    grad = grad.astype(dtype)
    spec = loopconv.einsum_spec(case.op, wrt, x, w, None if wrt is None else grad, **case.settings)
    compute = {"int8": "int64", "float16": "float32"}.get(dtype, dtype)
    assert {array.dtype.name for array in spec.operands} == {compute}
    # integers, exact in each of these dtypes; complex factors beside a gradient are conjugated
    assert np.array_equal(result(spec), expected(case, wrt, x, w, grad))


def test_only_the_factors_matter():
    x, w, grad = np.ones((1, 5)), np.full((2, 1, 3), 1j), np.ones((2, 3))
    spec = loopconv.einsum_spec("conv", "weight", x, w, grad)
    assert spec.operands[0].dtype == np.float64
    assert result(spec).tolist() == np.full((2, 1, 3), 3).tolist()


def test_one_factor_is_swapped():
    x, w, grad = np.ones((2, 3, 7, 6)), np.ones((4, 3, 3, 2)), np.ones((2, 4, 5, 5))
    specs = {wrt: loopconv.einsum_spec("conv", wrt, x, w, None if wrt is None else grad) for wrt in LIBRARY}
    assert {wrt: spec.subscripts for wrt, spec in specs.items()} == {
        None: "ncpqrs,kcrs->nkpq",
        "weight": "ncpqrs,nkpq->kcrs",
        "input": "nkhwrs,kcrs->nchw",
    }
    assert {wrt: spec.names for wrt, spec in specs.items()} == {
        None: ("x_windows", "w"),
        "weight": ("x_windows", "grad"),
        "input": ("grad_windows", "w"),
    }
    assert [(spec.result, spec.swapped) for spec in specs.values()] == [("y", None), ("grad_x", "x"), ("grad_w", "w")]
    transposed = {
        wrt: loopconv.einsum_spec("conv_transpose", wrt, grad, w, None if wrt is None else x).subscripts
        for wrt in LIBRARY
    }
    assert transposed == {None: "nkhwrs,kcrs->nchw", "weight": "nkhwrs,nchw->kcrs", "input": "ncpqrs,kcrs->nkpq"}


def test_windows_are_views():
    x, w = np.arange(35.0).reshape(1, 1, 7, 5), np.arange(6.0).reshape(1, 1, 2, 3)
    windows, factor = loopconv.einsum_spec("conv", None, x, w, stride=(2, 1), dilation=(1, 2)).operands
    assert np.shares_memory(windows, x)
    assert np.shares_memory(factor, w)
    assert not windows.flags.writeable
    assert windows.strides == (280, 280, 2 * 40, 8, 40, 2 * 8)
    # as in source document 003: rows of the picture under the taps
    windows = loopconv.einsum_spec("conv", None, [[1, 2, 3], [4, 5, 6], [7, 8, 9]], np.ones((1, 3, 2), int)).operands[0]
    assert windows[0].tolist() == [[1, 2], [2, 3]]
    # a stride of 1 needs no zeros between, only a border
    grad = np.ones((1, 1, 3, 3))
    windows = loopconv.einsum_spec("conv", "input", np.ones((1, 1, 3, 3)), np.ones((1, 1, 1, 1)), grad).operands[0]
    assert np.shares_memory(windows, grad)


def test_taps_are_read_backwards_when_scattering_is_written_as_gathering():
    x, w = np.array([[1, 2, 3]]), np.array([[[1, 10, 100]]])
    spec = loopconv.einsum_spec("conv_transpose", None, x, w, stride=2)
    # by hand: y[0] is w[0]*x[0]; y[2] is w[0]*x[1] + w[2]*x[0]; y[1] is w[1]*x[0]
    assert spec.operands[0][0].tolist() == [
        [1, 0, 0], [0, 1, 0], [2, 0, 1], [0, 2, 0], [3, 0, 2], [0, 3, 0], [0, 0, 3]
    ]  # fmt: skip
    assert result(spec).tolist() == [[1, 10, 102, 20, 203, 30, 300]]


def test_it_prints_for_a_lesson():
    x, w, grad = np.ones((1, 2, 5, 5)), np.ones((4, 1, 3, 3)), np.ones((1, 4, 3, 1))
    settings = {"stride": 2, "padding": (1, 0), "dilation": (1, 2), "groups": 2}
    assert str(loopconv.einsum_spec("conv", "input", x, w, grad, **settings)).splitlines() == [
        'grad_x = np.einsum("ngkhwrs,gkcrs->ngchw", grad_windows, w)',
        "  grad_windows[n,g,k,h,w,r,s] has shape (1, 2, 2, 5, 5, 3, 3), strides (2016, 1008, 504, 72, 8, -72, -16)",
        "  w[g,k,c,r,s] has shape (2, 2, 1, 3, 3), strides (144, 72, 72, 24, 8)",
        "  grad_windows[n,g,k,h,w,r,s] = grad[n, g, k, (h + 1 - r)/2, (w - 2*s)/2], 0 where grad has no such pixel",
        "  grad is in the place of x; summed over all axes but those of x",
    ]
    forward = str(loopconv.einsum_spec("conv", None, x, w, **settings)).splitlines()
    assert forward[0] == 'y = np.einsum("ngcpqrs,gkcrs->ngkpq", x_windows, w)'
    assert forward[-1] == (
        "  x_windows[n,g,c,p,q,r,s] = x[n, g, c, 2*p + r - 1, 2*q + 2*s], 0 where x has no such pixel"
    )


RIGHT = {"op": "conv", "wrt": "input", "x": np.ones((1, 5)), "w": np.ones((1, 1, 3)), "grad": np.ones((1, 3))}


@pytest.mark.parametrize(
    ("given", "exception", "message"),
    [
        ({"op": "deconv"}, ValueError, "op must be one of conv, conv_transpose, got 'deconv'"),
        ({"wrt": "x"}, ValueError, "wrt must be one of None, input, weight, got 'x'"),
        ({"wrt": ["input"]}, ValueError, r"wrt must be one of None, input, weight, got \['input'\]"),
        ({"wrt": None}, ValueError, "grad must be left out with wrt=None, the forward call"),
        ({"grad": None}, ValueError, "grad must be given with wrt='input', got None"),
        ({"grad": np.ones((1, 5))}, ValueError, r"grad must have the output's shape \(1, 3\), got shape \(1, 5\)"),
        ({"grad": "three"}, TypeError, "grad must be of an integer dtype"),
        ({"x": None}, TypeError, "x must be an array of numbers, got None"),
        ({"x": np.ones((2, 5))}, ValueError, "x must have 1 channels"),
        ({"output_padding": 1}, ValueError, "output_padding must be left out for a conv"),
        ({"op": "conv_transpose"}, ValueError, r"grad must have the output's shape \(1, 7\), got shape \(1, 3\)"),
        ({"padding": 3, "stride": (1, 1)}, ValueError, "stride must be an int or one int per axis"),
        (
            {"x": np.ones((1, 2, 2, 2, 2)), "w": np.ones((1, 1, 2, 2, 2, 2)), "grad": np.ones((1, 1, 1, 1, 1))},
            ValueError,
            "w must have 1 to 3 spatial axes, for which there are letters, got shape",
        ),
    ],
)
def test_what_has_no_einsum_is_refused(given, exception, message):
    with pytest.raises(exception, match=f"^{message}"):
        loopconv.einsum_spec(**(RIGHT | given))
