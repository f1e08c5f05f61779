"""gradcheck and adjoint_test must pass what is right, and must not pass what is wrong."""

import numpy as np
import pytest
from helpers import random_array

import loopconv
from loopconv import (
    adjoint_test,
    conv,
    conv_bias_grad,
    conv_grads,
    conv_input_grad,
    conv_transpose,
    conv_transpose_bias_grad,
    conv_transpose_grads,
    conv_transpose_input_grad,
    conv_transpose_weight_grad,
    conv_weight_grad,
    gradcheck,
)
from loopconv.cases import CASES

# name: (shape of x, shape of w, keywords)
CONV = {
    "1d": ((2, 2, 5), (3, 2, 3), {}),
    "unbatched": ((2, 6), (2, 2, 2), {"padding": 1}),
    "strided": ((1, 2, 6, 5), (2, 2, 3, 2), {"stride": (2, 3), "padding": 1}),
    "dilated": ((1, 1, 6, 7), (2, 1, 3, 2), {"dilation": (2, 3)}),
    "groups": ((2, 4, 4, 3), (2, 2, 2, 2), {"groups": 2}),
    "asymmetric": ((1, 1, 4, 5), (1, 1, 3, 3), {"padding": ((2, 0), (-1, 1)), "stride": 2}),
    "same": ((1, 1, 7), (1, 1, 4), {"padding": "same", "stride": 2}),
    "3d": ((1, 2, 3, 4, 3), (2, 1, 2, 2, 2), {"groups": 2, "stride": (1, 2, 1)}),
}
TRANSPOSE = {
    "1d": ((2, 2, 4), (2, 3, 3), {}),
    "unbatched": ((2, 4), (2, 1, 2), {"padding": 1}),
    "strided": ((1, 2, 3, 2), (2, 2, 3, 2), {"stride": (2, 3), "padding": 1, "output_padding": (1, 2)}),
    "dilated": ((1, 1, 3, 2), (1, 2, 3, 2), {"dilation": (2, 3), "output_padding": (1, 2)}),
    "groups": ((2, 4, 3, 2), (4, 1, 2, 2), {"groups": 2, "stride": 2}),
    "asymmetric": ((1, 1, 3, 3), (1, 1, 3, 3), {"padding": ((2, 0), (-1, 1)), "stride": 2}),
    "same": ((1, 1, 4), (1, 1, 3), {"padding": "same", "stride": 2, "output_size": 7}),
    "3d": ((1, 2, 2, 2, 3), (2, 1, 2, 2, 2), {"groups": 2, "stride": (1, 2, 1)}),
}
dtypes = pytest.mark.parametrize("dtype", ["float64", "complex128"])


def arguments(x_shape, w_shape, channels, dtype):
    """x, w and bias."""
    return [random_array(shape, dtype, seed) for seed, shape in enumerate((x_shape, w_shape, (channels,)))]


@dtypes
@pytest.mark.parametrize("name", CONV)
def test_gradients_of_conv(name, dtype):
    x_shape, w_shape, settings = CONV[name]
    x, w, bias = arguments(x_shape, w_shape, w_shape[0], dtype)
    batched = x.ndim == w.ndim

    def f(x, w, bias):
        return conv(x, w, bias, **settings)

    gradcheck(f, (x, w, bias), lambda grad, x, w, bias: conv_grads(grad, x, w, **settings))
    gradcheck(f, (x, w, bias), lambda grad, x, w, bias: (conv_input_grad(grad, w, x.shape, **settings), None, None))
    gradcheck(f, (x, w, bias), lambda grad, x, w, bias: (None, conv_weight_grad(grad, x, w.shape, **settings), None))
    gradcheck(f, (x, w, bias), lambda grad, x, w, bias: (None, None, conv_bias_grad(grad, batched=batched)))


@dtypes
@pytest.mark.parametrize("name", TRANSPOSE)
def test_gradients_of_conv_transpose(name, dtype):
    x_shape, w_shape, settings = TRANSPOSE[name]
    x, w, bias = arguments(x_shape, w_shape, w_shape[1] * settings.get("groups", 1), dtype)
    batched = x.ndim == w.ndim

    def f(x, w, bias):
        return conv_transpose(x, w, bias, **settings)

    def input_grad(grad, x, w, bias):
        return conv_transpose_input_grad(grad, w, x.shape, **settings), None, None

    def weight_grad(grad, x, w, bias):
        return None, conv_transpose_weight_grad(grad, x, w.shape, **settings), None

    gradcheck(f, (x, w, bias), lambda grad, x, w, bias: conv_transpose_grads(grad, x, w, **settings))
    gradcheck(f, (x, w, bias), input_grad)
    gradcheck(f, (x, w, bias), weight_grad)
    gradcheck(f, (x, w, bias), lambda grad, x, w, bias: (None, None, conv_transpose_bias_grad(grad, batched=batched)))


# ----------------------------------------------------------------------------- a user's own functions


def test_a_users_function():
    x = random_array((3, 2), "float64", 0)
    worst = gradcheck(lambda x: x**3, (x,), lambda grad, x: grad * 3 * x**2)
    assert isinstance(worst, tuple)
    assert worst._fields == ("input", "element", "error", "tolerance")
    assert worst.input == 0
    assert len(worst.element) == 2
    assert 0 <= worst.error <= worst.tolerance


def test_a_network_by_the_chain_rule():
    x, w, v = (random_array(shape, "float64", i) for i, shape in enumerate([(1, 1, 6), (2, 1, 3), (2, 1, 2)]))

    def net(x, w, v):
        return conv_transpose(np.tanh(conv(x, w)), v, stride=2)

    def back(grad, x, w, v):
        hidden = np.tanh(conv(x, w))
        second = conv_transpose_grads(grad, hidden, v, stride=2)
        first = conv_grads(second.input * (1 - hidden**2), x, w)
        return first.input, first.weight, second.weight

    gradcheck(net, (x, w, v), back)


def test_integers_and_lists_are_taken_in_double_precision():
    gradcheck(lambda x: x * x, ([1, 2, 3],), lambda grad, x: 2 * x * grad)
    gradcheck(lambda x: x * x, (np.ones(2, np.complex64),), lambda grad, x: grad * (2 * x).conj())


def test_the_inputs_stay_as_they_were():
    x = np.arange(3.0)
    gradcheck(lambda x: x**2, (x,), lambda grad, x: 2 * x * grad)
    assert x.tolist() == [0, 1, 2]


def test_the_seed_makes_other_gradients():
    seen = []
    for seed in (0, 0, 1):
        gradcheck(lambda x: x, (np.ones(2),), lambda grad, x: seen.append(grad.copy()) or grad, seed=seed)
    assert np.array_equal(seen[0], seen[1])
    assert not np.array_equal(seen[0], seen[2])


# ------------------------------------------------------------------------------------ what must fail


def wrong_at(number, element, amount):
    """The gradients of conv with one element off by `amount`."""

    def gradient(grad, x, w):
        gradients = [array.copy() for array in conv_grads(grad, x, w)[:2]]
        gradients[number][element] += amount
        return gradients

    return gradient


@pytest.mark.parametrize("amount", [1e-3, -1.0, np.nan, np.inf])
@pytest.mark.parametrize(("number", "element"), [(0, (0, 1, 4)), (1, (2, 0, 1)), (0, (0, 0, 0))])
def test_a_wrong_element_is_named(number, element, amount):
    x, w = random_array((1, 2, 5), "float64", 0), random_array((3, 2, 2), "float64", 1)
    gradcheck(conv, (x, w), wrong_at(number, element, 0.0))
    message = rf"gradient of input {number} is wrong at \({', '.join(map(str, element))}\): got"
    with pytest.raises(AssertionError, match=message):
        gradcheck(conv, (x, w), wrong_at(number, element, amount))


def test_a_gradient_that_is_nan_everywhere_fails():
    with pytest.raises(AssertionError, match="gradient of input 0 is wrong at"):
        gradcheck(lambda x: x, (np.ones(3),), lambda grad, x: np.full(3, np.nan))


def test_a_function_that_is_nan_fails():
    with pytest.raises(AssertionError, match="gradient of input 0 is wrong at"):
        gradcheck(lambda x: x * np.nan, (np.ones(3),), lambda grad, x: grad)


def test_a_conjugate_that_is_missing_fails():
    x, w = random_array((1, 1, 4), "complex128", 0), random_array((1, 1, 2), "complex128", 1)

    def unconjugated(grad, x, w):
        return conv_transpose(grad, w), None  # C.T instead of C.conj().T

    with pytest.raises(AssertionError, match="gradient of input 0 is wrong at"):
        gradcheck(conv, (x, w), unconjugated)
    gradcheck(conv, (x.real, w.real), unconjugated)
    with pytest.raises(AssertionError, match="gradient of input 1 is wrong at"):
        gradcheck(conv, (x, w), lambda grad, x, w: (None, conv_weight_grad(grad, x.conj(), w.shape)))


def test_the_mistakes_of_the_source_documents_fail():
    x, w = random_array((1, 1, 4, 4), "float64", 0), random_array((1, 1, 3, 3), "float64", 1)
    with pytest.raises(AssertionError, match="gradient of input 0"):
        gradcheck(conv, (x, w), lambda grad, x, w: (conv_transpose(conv(x, w), w), None))  # C.T y, not C.T grad
    with pytest.raises(AssertionError, match="gradient of input 0"):
        gradcheck(conv, (x, w), lambda grad, x, w: (conv(grad, w, padding=2), None))  # the kernel is not flipped


def test_a_small_mistake_among_large_gradients_is_not_hidden_by_rounding():
    # The allowed error is a fraction of the largest gradient, 1e-6 by default.
    x = np.array([1.0, 1000.0])
    with pytest.raises(AssertionError, match=r"input 0 is wrong at \(0,\)"):
        gradcheck(lambda x: x**2, (x,), lambda grad, x: 2 * x * grad + [0.1, 0.0])


@pytest.mark.parametrize(
    "gradient",
    [
        lambda grad, x, w: conv_grads(grad, x, w),  # three for two
        lambda grad, x, w: (grad,),
        lambda grad, x, w: grad,
        lambda grad, x, w: None,
    ],
)
def test_another_number_of_gradients_is_refused(gradient):
    with pytest.raises(ValueError, match="gradient must return one array or None per input, 2 of them"):
        gradcheck(conv, (np.ones((1, 1, 4)), np.ones((1, 1, 2))), gradient)


@pytest.mark.parametrize("shape", [(1, 1, 3), (4,), (), (1, 1, 4, 1)])
def test_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match=r"gradient must have the shape \(1, 1, 4\) of input 0"):
        gradcheck(conv, (np.ones((1, 1, 4)), np.ones((1, 1, 2))), lambda grad, x, w: (np.ones(shape), None))


# --------------------------------------------------------------------------------------- adjoint_test


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_conv_and_conv_transpose_are_adjoint(case, dtype):
    g = case.geometry
    w = random_array(case.w_shape, dtype, 0)
    if case.op == "conv":
        deviation = adjoint_test(
            lambda x: conv(x, w, **case.settings),
            lambda y: conv_transpose(y, w, output_size=g.input, **case.settings),
            case.x_shape,
            dtype=dtype,
        )
    else:
        deviation = adjoint_test(
            lambda x: conv_transpose(x, w, **case.settings),
            lambda y: conv_transpose_input_grad(y, w, case.x_shape, **case.settings),
            case.x_shape,
            dtype=dtype,
        )
    assert deviation.error <= deviation.tolerance


@pytest.mark.parametrize("dtype", ["complex64", "complex128"])
@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_complex_adjoints_conjugate(case, dtype):
    w = random_array(case.w_shape, dtype, 0)
    forward, back = {"conv": (conv, conv_input_grad), "conv_transpose": (conv_transpose, conv_transpose_input_grad)}[
        case.op
    ]
    adjoint_test(
        lambda x: forward(x, w, **case.settings),
        lambda y: back(y, w, case.x_shape, **case.settings),
        case.x_shape,
        dtype=dtype,
    )


def test_the_weight_gradient_is_the_adjoint_in_w():
    x = random_array((2, 4, 6, 5), "float64", 0)
    settings = {"stride": 2, "padding": 1, "groups": 2}
    adjoint_test(
        lambda w: conv(x, w, **settings), lambda y: conv_weight_grad(y, x, (6, 2, 3, 2), **settings), (6, 2, 3, 2)
    )


W = random_array((1, 1, 3), "complex128", 0)
WRONG = {
    "twice": lambda y: 2 * conv_input_grad(y, W, (1, 1, 9)),
    "kernel-flipped": lambda y: conv_input_grad(y, W[..., ::-1], (1, 1, 9)),
    "not-conjugated": lambda y: conv_transpose(y, W),
    "one-pixel-late": lambda y: np.roll(conv_input_grad(y, W, (1, 1, 9)), 1),
    "nan": lambda y: np.full((1, 1, 9), np.nan),
    "inf": lambda y: np.full((1, 1, 9), np.inf),
    "one-nan": lambda y: np.where(np.arange(9) == 4, np.nan, conv_input_grad(y, W, (1, 1, 9))),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_a_wrong_adjoint_fails(wrong):
    adjoint_test(lambda x: conv(x, W), lambda y: conv_input_grad(y, W, (1, 1, 9)), (1, 1, 9), dtype=complex)
    with pytest.raises(AssertionError, match="f_adjoint is not the adjoint of f"):
        adjoint_test(lambda x: conv(x, W), wrong, (1, 1, 9), dtype=complex)


def test_a_function_that_is_nan_has_no_adjoint():
    with pytest.raises(AssertionError, match="f_adjoint is not the adjoint of f"):
        adjoint_test(lambda x: x * np.nan, lambda y: y, (3,))


def test_an_error_of_one_in_a_million_fails_in_double_precision():
    with pytest.raises(AssertionError, match="f_adjoint is not the adjoint of f"):
        adjoint_test(lambda x: x, lambda y: y * (1 + 1e-6), (1000,))
    adjoint_test(lambda x: x, lambda y: y * (1 + 1e-6), (1000,), rtol=1e-5)


@pytest.mark.parametrize("shape", [(8,), (1, 9), ()])
def test_an_adjoint_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match=r"f_adjoint must return the shape \(9,\) of x, got shape"):
        adjoint_test(lambda x: x, lambda y: np.ones(shape), (9,))


def test_both_are_public():
    assert loopconv.gradcheck is gradcheck
    assert loopconv.adjoint_test is adjoint_test
