"""The public functions: against the matrix C, and what SEMANTICS promises about sizes, dtypes and arrays."""

import warnings
from functools import cache

import numpy as np
import pytest
from helpers import assert_within, random_array, random_integers, takes

import loopconv
from loopconv import (
    conv,
    conv_bias_grad,
    conv_grads,
    conv_input_grad,
    conv_matrix,
    conv_transpose,
    conv_transpose_bias_grad,
    conv_transpose_grads,
    conv_transpose_input_grad,
    conv_transpose_weight_grad,
    conv_weight_grad,
    geometry,
)
from loopconv.cases import CASES

BY_NAME = {case.name: case for case in CASES}
every_case = pytest.mark.parametrize("name", BY_NAME)


# ------------------------------------------------------------------------- against the matrix C
#
# Every case is called in both directions: `large` is the input of conv and the output of
# conv_transpose, `small` the other one. Operands are (Gaussian) integers, so every sum is exact in
# every dtype and nothing needs a tolerance.


@cache
def both_ways(name):
    """(shape of large, of w, of small, keywords of conv, keywords of conv_transpose) of one case."""
    case = BY_NAME[name]
    g = case.geometry
    batched = len(case.x_shape) == len(case.w_shape)
    large, small = (shape if batched else shape[1:] for shape in (g.x_shape, g.y_shape))
    if case.op == "conv":
        return large, g.w_shape, small, case.settings, {**case.settings, "output_size": g.input}
    # The conv with exactly as many windows as the transpose has input pixels, which crops what is beyond.
    ends = [(o - 1) * s + d * (k - 1) + 1 for o, s, k, d in zip(g.output, g.stride, g.kernel, g.dilation)]
    padding = [(lo, end - n - lo) for lo, end, n in zip(g.pad, ends, g.input)]
    conv_settings = {"stride": g.stride, "padding": padding, "dilation": g.dilation, "groups": g.groups}
    return large, g.w_shape, small, conv_settings, case.settings


@cache
def operands(name, dtype):
    """(large, w, small, keywords of conv, keywords of conv_transpose, C)."""
    *shapes, forward, backward = both_ways(name)
    large, w, small = (random_integers(shape, dtype, seed) for seed, shape in enumerate(shapes))
    return large, w, small, forward, backward, conv_matrix(w, large.shape, **forward)


EXACT = ("int64", "float64", "complex128")


@every_case
def test_conv_is_C(name):
    for dtype in EXACT:
        large, w, small, forward, _, C = operands(name, dtype)
        y = conv(large, w, **forward)
        assert y.shape == small.shape
        assert y.dtype == dtype
        assert np.array_equal(y.ravel(), C @ large.ravel()), dtype


@every_case
def test_conv_transpose_is_C_transposed(name):
    for dtype in EXACT:
        large, w, small, _, backward, C = operands(name, dtype)
        x = conv_transpose(small, w, **backward)
        assert x.shape == large.shape
        assert x.dtype == dtype
        assert np.array_equal(x.ravel(), C.T @ small.ravel()), dtype


@every_case
def test_conv_input_grad_is_C_conjugate_transposed(name):
    for dtype in EXACT:
        large, w, grad, forward, _, C = operands(name, dtype)
        dx = conv_input_grad(grad, w, large.shape, **forward)
        assert dx.shape == large.shape
        assert np.array_equal(dx.ravel(), C.conj().T @ grad.ravel()), dtype


@every_case
def test_conv_transpose_input_grad_is_C_conjugate(name):
    for dtype in EXACT:
        grad, w, small, _, backward, C = operands(name, dtype)
        dx = conv_transpose_input_grad(grad, w, small.shape, **backward)
        assert dx.shape == small.shape
        assert np.array_equal(dx.ravel(), C.conj() @ grad.ravel()), dtype


# The output is linear in w: y = sum over j of w[j] * C_j x, with C_j the matrix of the j-th unit kernel.
# So the gradient is sum(grad * conj(C_j x)). One sparse matrix per weight, hence the small cases only.
SMALL = [name for name, case in BY_NAME.items() if np.prod(case.geometry.w_shape) <= 108]


@cache
def unit_matrices(name):
    large, w_shape, _, forward, _ = both_ways(name)
    units = np.eye(int(np.prod(w_shape)), dtype=np.int64).reshape(int(np.prod(w_shape)), *w_shape)
    return [conv_matrix(unit, large, format="csr", **forward) for unit in units]


@pytest.mark.parametrize("name", SMALL)
def test_conv_weight_grad_by_linearity(name):
    pytest.importorskip("scipy", reason="one dense matrix per weight is too much memory")
    for dtype in EXACT:
        x, w, grad, forward, _, _ = operands(name, dtype)
        dw = conv_weight_grad(grad, x, w.shape, **forward)
        assert dw.shape == w.shape
        expected = [(grad.ravel() * (C @ x.ravel()).conj()).sum() for C in unit_matrices(name)]
        assert np.array_equal(dw.ravel(), expected), dtype


@pytest.mark.parametrize("name", SMALL)
def test_conv_transpose_weight_grad_by_linearity(name):
    pytest.importorskip("scipy", reason="one dense matrix per weight is too much memory")
    for dtype in EXACT:
        grad, w, x, _, backward, _ = operands(name, dtype)
        dw = conv_transpose_weight_grad(grad, x, w.shape, **backward)
        assert dw.shape == w.shape
        expected = [(grad.ravel() * (C.T @ x.ravel()).conj()).sum() for C in unit_matrices(name)]
        assert np.array_equal(dw.ravel(), expected), dtype


def test_the_small_cases_have_strides_groups_dilation_and_both_directions():
    geometries = [BY_NAME[name].geometry for name in SMALL]
    assert any(max(g.stride) > 1 for g in geometries)
    assert any(max(g.dilation) > 1 for g in geometries)
    assert any(g.groups > 1 for g in geometries)
    assert {BY_NAME[name].op for name in SMALL} == {"conv", "conv_transpose"}


@pytest.mark.parametrize("dtype", ["int64", "complex128"])
@every_case
def test_unbatched_in_unbatched_out(name, dtype):
    """Image 0 of a batch, given alone, gives result 0 alone, for all functions."""
    large, w, small, forward, backward, _ = operands(name, dtype)
    if large.ndim < w.ndim:  # the case is unbatched itself; make it a batch of one
        large, small = large[None], small[None]
    if len(large) == 0:
        assert conv(large, w, **forward).shape == small.shape
        return
    x, y = large[0], small[0]
    assert np.array_equal(conv(x, w, **forward), conv(large, w, **forward)[0])
    assert np.array_equal(conv_transpose(y, w, **backward), conv_transpose(small, w, **backward)[0])
    pairs = [
        (conv_grads(y, x, w, **forward), conv_grads(y[None], x[None], w, **forward)),
        (conv_transpose_grads(x, y, w, **backward), conv_transpose_grads(x[None], y[None], w, **backward)),
    ]
    for alone, batch in pairs:
        assert np.array_equal(alone.input, batch.input[0])
        assert np.array_equal(alone.weight, batch.weight)
        assert np.array_equal(alone.bias, batch.bias)


@every_case
def test_gradients_by_name(name):
    large, w, small, forward, backward, _ = operands(name, "complex128")
    batched = large.ndim == w.ndim
    grads = conv_grads(small, large, w, **forward)
    assert grads._fields == ("input", "weight", "bias")
    assert np.array_equal(grads.input, conv_input_grad(small, w, large.shape, **forward))
    assert np.array_equal(grads.weight, conv_weight_grad(small, large, w.shape, **forward))
    assert np.array_equal(grads.bias, conv_bias_grad(small, batched=batched))
    others = tuple(axis for axis in range(small.ndim) if axis != small.ndim - w.ndim + 1)
    assert np.array_equal(grads.bias, small.sum(others))
    grads = conv_transpose_grads(large, small, w, **backward)
    assert np.array_equal(grads.input, conv_transpose_input_grad(large, w, small.shape, **backward))
    assert np.array_equal(grads.weight, conv_transpose_weight_grad(large, small, w.shape, **backward))
    assert np.array_equal(grads.bias, conv_transpose_bias_grad(large, batched=batched))
    assert [grad.shape for grad in grads] == [small.shape, w.shape, (large.shape[1 if batched else 0],)]


@pytest.mark.parametrize("name", [case.name for case in CASES if case.op == "conv_transpose"])
def test_the_gradients_of_the_transpose_need_no_output_padding(name):
    # The shape of grad says it.
    large, w, small, _, backward, _ = operands(name, "int64")
    fewer = {key: value for key, value in backward.items() if key not in ("output_padding", "output_size")}
    for with_it, without in zip(
        conv_transpose_grads(large, small, w, **backward), conv_transpose_grads(large, small, w, **fewer)
    ):
        assert np.array_equal(with_it, without)


@every_case
def test_bias_is_added_to_each_channel(name):
    large, w, small, forward, backward, _ = operands(name, "int64")
    for function, x, settings in ((conv, large, forward), (conv_transpose, small, backward)):
        plain = function(x, w, **settings)
        bias = 1000 * np.arange(1, plain.shape[1 - w.ndim] + 1)
        expected = plain + bias.reshape(-1, *(1,) * (w.ndim - 2))
        assert np.array_equal(function(x, w, bias, **settings), expected)
        assert np.array_equal(function(x, w, bias=bias.tolist(), **settings), expected)


# ------------------------------------------------------------------------------- sizes, with numbers


def row(*values):
    """One image of one channel."""
    return np.array([[values]])


def test_output_padding_exposes_cells(integer_backend):
    y = conv_transpose(row(1, 2, 3), row(1, 10, 100), stride=2, padding=1, output_padding=1, backend=integer_backend)
    assert y.tolist() == [[[10, 102, 20, 203, 30, 300]]]


def test_cells_that_no_tap_reaches_hold_the_bias(integer_backend):
    y = conv_transpose(row(1, 1), row(1), [7], stride=3, output_padding=2, backend=integer_backend)
    assert y.tolist() == [[[8, 7, 7, 8, 7, 7]]]


def test_the_kernel_is_not_flipped():
    assert conv(row(1, 2, 3, 4, 5), row(1, 10)).tolist() == [[[21, 32, 43, 54]]]
    assert conv_transpose(row(1), row(1, 10, 100)).tolist() == [[[1, 10, 100]]]


def test_conv_same_puts_the_odd_pixel_at_the_end():
    assert conv(row(1, 2, 3, 4, 5), row(1, 10), padding="same").tolist() == [[[21, 32, 43, 54, 5]]]


@pytest.mark.parametrize("stride", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("taps", [1, 2, 3, 5])
@pytest.mark.parametrize("n", [1, 4, 5, 9])
def test_conv_same_has_n_over_stride_pixels(n, taps, stride):
    x, w = random_integers((1, 1, n), "int64", 0), random_integers((1, 1, taps), "int64", 1)
    y = conv(x, w, padding="same", stride=stride)
    assert y.shape == (1, 1, -(-n // stride))
    total = max((y.shape[2] - 1) * stride + taps - n, 0)
    explicit = ((total // 2, total - total // 2),)
    assert np.array_equal(y, conv(x, w, padding=explicit, stride=stride))


def test_transposed_same_is_the_transpose_of_same():
    assert conv_transpose(row(1, 2), row(1), stride=3, padding="same").tolist() == [[[1, 0, 0, 2, 0, 0]]]
    for n, taps, stride in ((4, 5, 2), (3, 2, 4), (5, 3, 1)):
        w = random_integers((1, 1, taps), "int64", 0)
        C = conv_matrix(w, (1, n * stride), padding="same", stride=stride)
        y = random_integers((1, n), "int64", 1)
        assert np.array_equal(conv_transpose(y, w, padding="same", stride=stride).ravel(), C.T @ y.ravel())


def test_an_odd_total_of_padding_on_either_side():
    # ONNX's output_shape=6: NOTSET and SAME_LOWER put the odd pixel in front, SAME_UPPER at the end.
    x, w = row(1, 2, 3), row(1, 10, 100)
    assert conv_transpose(x, w, stride=2, padding=((1, 0),)).tolist() == [[[10, 102, 20, 203, 30, 300]]]
    assert conv_transpose(x, w, stride=2, padding=((0, 1),)).tolist() == [[[1, 10, 102, 20, 203, 30]]]


def test_every_input_size_of_one_output_size_is_reached():
    w = random_integers((1, 1, 3), "int64", 0)
    for n in range(9, 12):  # (o-1)*s + e - lo - hi = 9 for o = 3, and s - 1 = 2 more
        x = random_integers((1, 1, n), "int64", 1)
        y = conv(x, w, stride=3)
        assert y.shape == (1, 1, 3)
        op = (n - 3) % 3
        assert conv_transpose(y, w, stride=3, output_padding=op).shape == x.shape
        assert np.array_equal(
            conv_transpose(y, w, stride=3, output_padding=op), conv_transpose(y, w, stride=3, output_size=n)
        )


def test_output_padding_may_reach_the_dilation():
    x, w = row(1, 2), row(1, 10)
    assert conv_transpose(x, w, dilation=3, output_padding=2).tolist() == [[[1, 2, 0, 10, 20, 0, 0]]]
    with pytest.raises(ValueError, match="output_padding must be less than max"):
        conv_transpose(x, w, dilation=3, output_padding=3)


def test_negative_padding_crops_and_extends():
    assert conv(row(1, 2, 3, 4, 5), row(1, 10), padding=((-1, -2),)).tolist() == [[[32]]]
    assert conv_transpose(row(1, 2), row(1, 10), padding=((-1, -2),)).tolist() == [[[0, 1, 12, 20, 0, 0]]]


def test_padding_may_shift_without_changing_the_size(backend):
    # As many pixels go on one side as come off the other: nothing but the position says so.
    x, w, y = row(1.0, 2.0, 3.0), row(1.0, 10.0), row(1.0, 100.0)
    assert conv(x, w, padding=((1, -1),), backend=backend).tolist() == [[[10, 21]]]
    assert conv(x, w, padding=((-1, 1),), backend=backend).tolist() == [[[32, 3]]]
    back = conv_transpose(y, w, [5.0], padding=((1, -1),), backend=backend)
    assert back.tolist() == [[[115, 1005, 5]]]  # 1, 110, 1000, moved by one
    assert conv_weight_grad(y, x, (1, 1, 2), padding=((1, -1),), backend=backend).tolist() == [[[100, 201]]]


def test_a_kernel_longer_than_the_input_is_refused():
    with pytest.raises(ValueError, match=r"^w must fit"):
        conv(row(1, 2), row(1, 2, 3))
    assert conv(row(1, 2), row(1, 2, 3), padding=((0, 1),)).tolist() == [[[5]]]  # 1*1 + 2*2 + 0*3


def test_the_stride_need_not_divide():
    assert conv(row(*range(8)), row(1, 1), stride=4).tolist() == [[[1, 9]]]


# --------------------------------------------------------------------------- gradients, with numbers


def test_the_uncovered_tail_has_no_gradient(backend):
    dx = conv_input_grad(np.ones((1, 1, 3)), np.ones((1, 1, 2)), (1, 1, 9), stride=3, backend=backend)
    assert dx.tolist() == [[[1, 1, 0, 1, 1, 0, 1, 1, 0]]]


def test_gradients_of_a_strided_pointwise_transpose(backend):
    # pytorch #63314: k=1, s=2.
    x, w = row(1.0, 2.0, 3.0), row(10.0)
    grad = row(1.0, 2.0, 3.0, 4.0, 5.0)
    grads = conv_transpose_grads(grad, x, w, stride=2, backend=backend)
    assert grads.input.tolist() == [[[10, 30, 50]]]
    assert grads.weight.tolist() == [[[1 * 1 + 2 * 3 + 3 * 5]]]
    assert grads.bias.tolist() == [15]


def test_the_input_gradient_of_the_transpose_is_cut_to_n(integer_backend):
    # output_padding >= stride: a plain conv of grad has more pixels than x.
    x, w, grad = row(1, 2), row(1, 10), row(1, 2, 3, 4, 5, 6, 7)
    settings = {"dilation": 3, "output_padding": 2}
    assert conv(grad, w, dilation=3).tolist() == [[[41, 52, 63, 74]]]
    dx = conv_transpose_input_grad(grad, w, x.shape, **settings, backend=integer_backend)
    assert dx.tolist() == [[[41, 52]]]
    dw = conv_transpose_weight_grad(grad, x, w.shape, **settings, backend=integer_backend)
    assert dw.tolist() == [[[1 * 1 + 2 * 2, 1 * 4 + 2 * 5]]]


def test_the_kernel_size_is_given_and_not_inferred():
    # 2 and 3 taps both give 3 outputs of 7 pixels at stride 2 (and of 8 for 3 taps).
    x, grad = row(1, 2, 3, 4, 5, 6, 7), row(1, 1, 1)
    assert conv_weight_grad(grad, x, (1, 1, 2), stride=2).tolist() == [[[9, 12]]]
    assert conv_weight_grad(grad, x, (1, 1, 3), stride=2).tolist() == [[[9, 12, 15]]]


def test_complex_gradients_conjugate_the_other_factor():
    x, w, grad = row(1 + 2j), row(3 - 1j), row(1j)
    assert conv_input_grad(grad, w, x.shape).item() == 1j * (3 + 1j)
    assert conv_weight_grad(grad, x, w.shape).item() == 1j * (1 - 2j)
    assert conv_transpose_input_grad(grad, w, x.shape).item() == 1j * (3 + 1j)
    assert conv_transpose_weight_grad(grad, x, w.shape).item() == 1j * (1 - 2j)
    assert conv_transpose(x, w).item() == (1 + 2j) * (3 - 1j)  # the transpose itself does not


def test_the_bias_gradient_is_the_sum():
    grad = random_integers((2, 3, 4, 5), "int64", 0)
    assert np.array_equal(conv_bias_grad(grad), grad.sum((0, 2, 3)))
    assert np.array_equal(conv_bias_grad(grad[0], batched=False), grad[0].sum((1, 2)))
    assert np.array_equal(conv_transpose_bias_grad(grad), grad.sum((0, 2, 3)))
    with pytest.raises(ValueError, match=r"^grad "):
        conv_bias_grad(np.ones(3))


def test_a_gradient_of_another_shape_is_refused():
    x, w = np.ones((2, 3, 6, 6)), np.ones((4, 3, 3, 3))
    for shape in ((2, 4, 5, 4), (2, 3, 4, 4), (1, 4, 4, 4), (4, 4, 4)):
        with pytest.raises(ValueError, match=r"^grad "):
            conv_grads(np.ones(shape), x, w)
    y = np.ones((2, 4, 3, 3))
    for shape in ((2, 3, 7, 5), (2, 4, 5, 5), (1, 3, 5, 5), (3, 5, 5)):
        with pytest.raises(ValueError, match=r"^grad "):
            conv_transpose_grads(np.ones(shape), y, w)


# ---------------------------------------------------------------------------------------- the ranks


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_functions_with_the_rank_in_their_name(rank):
    x, w = (
        random_integers((2, 4, *(6, 5, 4)[:rank]), "int64", 0),
        random_integers((6, 2, *(3, 2, 2)[:rank]), "int64", 1),
    )
    named = {name: getattr(loopconv, f"{name}{rank}d") for name in ("conv", "conv_transpose")}
    settings = {"stride": 2, "padding": 1, "groups": 2}
    y = named["conv"](x, w, np.arange(6), **settings)
    assert np.array_equal(y, conv(x, w, np.arange(6), **settings))
    assert np.array_equal(named["conv"](x.tolist(), w.tolist(), **settings), conv(x, w, **settings))
    assert np.array_equal(named["conv_transpose"](y, w, **settings), conv_transpose(y, w, **settings))
    assert named["conv"].__name__ == f"conv{rank}d"
    for other in {1, 2, 3} - {rank}:
        wrong = np.ones((1,) * (other + 2))
        for name, function in named.items():
            with pytest.raises(ValueError, match=rf"w must have {rank + 2} dimensions for {name}{rank}d"):
                function(wrong, wrong)


def test_four_spatial_axes_go_to_the_reference():
    x, w = random_integers((2, 2, 3, 4, 3, 4), "int64", 0), random_integers((3, 2, 2, 3, 1, 2), "int64", 1)
    settings = {"stride": (1, 1, 2, 1), "padding": ((0, 1), 0, 0, 1)}
    C = conv_matrix(w, x.shape, **settings)
    y = conv(x, w, **settings)
    assert np.array_equal(y.ravel(), C @ x.ravel())
    grads = conv_grads(y, x, w, **settings)
    assert np.array_equal(grads.input.ravel(), C.T @ y.ravel())
    assert np.array_equal(conv_transpose(y, w, output_size=x.shape[2:], **settings).ravel(), C.T @ y.ravel())
    assert np.vdot(grads.weight, w) == np.vdot(y, y)  # y is linear in w
    for backend in set(loopconv.backends()) - {"reference"}:
        if loopconv.backends()[backend] == "ready":
            with pytest.raises(
                ValueError, match=f"backend='{backend}' cannot run this call: .* 4; backend='reference'"
            ):
                conv(x, w, backend=backend, **settings)


# ---------------------------------------------------------------------------------------- the dtypes


def test_integers_are_exact(integer_backend):
    x, w = np.full((1, 2, 3), 100, np.int8), np.full((1, 2, 1), 3, np.int8)
    y = conv(x, w, backend=integer_backend)
    assert y.dtype == np.int64
    assert y.tolist() == [[[600, 600, 600]]]  # 88 in int8
    back = conv_transpose(np.full((1, 2, 3), 100, np.int8), np.full((2, 1, 1), 3, np.int8), backend=integer_backend)
    assert back.tolist() == [[[600, 600, 600]]]
    large = conv(np.full((1, 1, 2), 2**53 + 1), np.ones((1, 1, 1), int), backend=integer_backend)
    assert large.tolist() == [[[2**53 + 1] * 2]]  # no detour through float64
    top = conv(np.full((1, 1, 1), 2**64 - 1, np.uint64), np.ones((1, 1, 1), np.uint8), backend=integer_backend)
    assert top.dtype == np.uint64
    assert top.item() == 2**64 - 1


# (x, w) and the dtype of the result
PROMOTION = [
    ("int8", "int8", "int64"),
    ("int8", "uint8", "int64"),
    ("uint8", "uint8", "uint64"),
    ("uint64", "uint8", "uint64"),
    ("uint64", "int64", "float64"),
    ("bool", "bool", "int64"),
    ("bool", "uint8", "uint64"),
    ("bool", "float32", "float32"),
    ("float16", "float16", "float16"),
    ("float16", "float32", "float32"),
    ("int8", "float16", "float16"),
    ("int16", "float16", "float32"),
    ("int64", "float32", "float64"),
    ("float32", "float64", "float64"),
    ("float64", "complex64", "complex128"),
    ("float32", "complex64", "complex64"),
    ("int8", "complex64", "complex64"),
    ("complex64", "complex128", "complex128"),
]


def small_numbers(shape, dtype, seed):
    """0 or 1 for bool, 0 .. 9 for the rest: exact in every dtype, sums of 18 products too."""
    return np.random.default_rng(seed).integers(0, 2 if dtype == "bool" else 10, shape).astype(dtype)


@pytest.mark.parametrize(("x_dtype", "w_dtype", "expected"), PROMOTION + [(b, a, c) for a, b, c in PROMOTION if a != b])
def test_mixed_dtypes_follow_numpy(x_dtype, w_dtype, expected):
    x, w = small_numbers((1, 2, 5, 4), x_dtype, 0), small_numbers((3, 2, 3, 3), w_dtype, 1)
    wide_x, wide_w = x.astype("complex128"), w.astype("complex128")
    y = conv(x, w)
    assert y.dtype == expected
    assert y.dtype.kind in "iu" or y.dtype == np.result_type(x_dtype, w_dtype)
    assert np.array_equal(y, conv(wide_x, wide_w))
    back = conv_transpose(small_numbers((1, 3, 3, 2), x_dtype, 2), w)
    assert back.dtype == expected
    grad_y = small_numbers(y.shape, expected, 3)
    for grad, wide in zip(conv_grads(grad_y, x, w), conv_grads(grad_y.astype("complex128"), wide_x, wide_w)):
        assert grad.dtype == expected
        half_ulp = np.abs(wide) * np.finfo(expected).eps if expected == "float16" else 0
        assert_within(grad.astype("complex128"), wide, half_ulp)


def test_the_bias_takes_part_in_the_promotion():
    x, w = np.ones((1, 1, 2), np.float32), np.ones((1, 1, 1), np.float32)
    assert conv(x, w, np.ones(1)).dtype == np.float64
    assert conv(x, w, np.array([1j], np.complex64)).dtype == np.complex64
    assert conv(x.astype(int), w.astype(int), [0.5]).tolist() == [[[1.5, 1.5]]]
    assert conv_transpose(x, w, np.ones(1)).dtype == np.float64


def test_float16_is_summed_in_float32(backend):
    # In float16 the sum of 2048 and ones stays 2048.
    x = np.ones((1, 101, 1), np.float16)
    x[0, 0] = 2048
    y = conv(x, np.ones((1, 101, 1), np.float16), backend=backend)
    assert y.dtype == np.float16
    assert y.item() == 2148
    assert conv_bias_grad(x).tolist() == [2048] + [1] * 100
    assert conv_bias_grad(x.swapaxes(1, 2)).tolist() == [2148]
    images = np.broadcast_to(x.swapaxes(0, 1), (101, 3, 1))  # NumPy alone sums the first axis in float16
    assert conv_bias_grad(images).tolist() == [2148] * 3
    back = conv_transpose(x, np.ones((101, 1, 1), np.float16), [0.0], backend=backend)
    assert back.dtype == np.float64  # a list of floats is float64
    assert conv_transpose(x, np.ones((101, 1, 1), np.float16), backend=backend).item() == 2148


def test_long_double_and_text_are_refused():
    # On platforms where long double is double it has another character and is refused all the same.
    for x in (np.ones((1, 1, 3), np.longdouble), np.ones((1, 1, 3), object), np.full((1, 1, 3), "a")):
        with pytest.raises(TypeError, match="x must be of an integer dtype, float"):
            conv(x, np.ones((1, 1, 1)))


# ------------------------------------------------------------------------------- arrays of all kinds


def strided(array):
    """The same values with gaps between them, read-only no longer."""
    whole = np.full([2 * n for n in array.shape], 55, array.dtype)
    view = whole[tuple(slice(None, None, 2) for _ in array.shape)]
    view[...] = array
    return view


def unaligned(array):
    """The same values one byte off."""
    view = np.empty(array.nbytes + 1, np.uint8)[1:].view(array.dtype).reshape(array.shape)
    view[...] = array
    assert not view.flags.aligned
    return view


def read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


def reversed_in_memory(array):
    everything = (slice(None, None, -1),) * array.ndim
    return array[everything].copy()[everything]


class Subclass(np.ndarray):
    """An ndarray of a user's own."""


LAYOUTS = {
    "read-only": read_only,
    "non-contiguous": strided,
    "negative-strides": reversed_in_memory,
    "byte-swapped": lambda array: array.astype(array.dtype.newbyteorder("S")),
    "unaligned": unaligned,
    "fortran": np.asfortranarray,
    "list": np.ndarray.tolist,
    "subclass": lambda array: array.copy().view(Subclass),
    "array-interface": memoryview,
}


@pytest.mark.parametrize("dtype", ["float64", "complex128", "int64"])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_any_layout_gives_the_same(layout, backend, dtype):
    takes(backend, dtype)
    # padding=0 and stride 1 hand the arrays to the kernels as they are; padding copies.
    x, w, bias = (random_integers(shape, dtype, i) for i, shape in enumerate([(2, 3, 6, 5), (4, 3, 3, 2), (4,)]))
    for padding in (0, 1):
        settings = {"padding": padding, "backend": backend}
        y = conv(x, w, bias, **settings)
        given = {"x": layout(x), "w": layout(w), "bias": layout(bias), "y": layout(y), "bias3": layout(bias[:3])}
        before = {name: np.array(array) for name, array in given.items()}
        assert np.array_equal(conv(given["x"], given["w"], given["bias"], **settings), y)
        assert np.array_equal(
            conv_transpose(given["y"], given["w"], given["bias3"], **settings),
            conv_transpose(y, w, bias[:3], **settings),
        )
        for actual, expected in zip(
            conv_grads(given["y"], given["x"], given["w"], **settings), conv_grads(y, x, w, **settings)
        ):
            assert type(actual) is np.ndarray
            assert np.array_equal(actual, expected)
        assert all(np.array_equal(before[name], given[name]) for name in given)


def test_broadcast_inputs(backend):
    x = np.broadcast_to(np.float64(2), (2, 3, 4, 4))
    w = np.broadcast_to(np.arange(9.0).reshape(1, 1, 3, 3), (2, 3, 3, 3))
    assert (conv(x, w, backend=backend) == 2 * 3 * 36).all()
    grads = conv_grads(np.broadcast_to(1.0, (2, 2, 2, 2)), x, w, backend=backend)
    assert np.array_equal(grads.weight, np.full((2, 3, 3, 3), 2.0 * 4 * 2))


# ----------------------------------------------------------------------------------------------- out

OUT = {
    "contiguous": lambda array: np.full_like(array, 55),
    "non-contiguous": lambda array: strided(np.full_like(array, 55)),
    "fortran": lambda array: np.asfortranarray(np.full_like(array, 55)),
    "negative-strides": lambda array: np.full_like(array, 55)[::-1, :, ::-1],
    "byte-swapped": lambda array: np.full(array.shape, 55, array.dtype.newbyteorder("S")),
    "unaligned": lambda array: unaligned(np.full_like(array, 55)),
}


def calls_with_out(dtype):
    """(function, arguments, keywords) of every function that takes `out`."""
    shapes = [(2, 4, 6, 5), (6, 2, 3, 2), (2, 6, 3, 5)]
    x, w, y = (random_integers(shape, dtype, seed) for seed, shape in enumerate(shapes))
    settings = {"stride": (2, 1), "padding": ((1, 0), (0, 1)), "groups": 2}
    return [
        (conv, (x, w), settings),
        (conv_input_grad, (y, w, x.shape), settings),
        (conv_weight_grad, (y, x, w.shape), settings),
        (conv_transpose, (y, w), {**settings, "output_padding": (1, 0)}),
        (conv_transpose_input_grad, (x, w, y.shape), settings),
        (conv_transpose_weight_grad, (x, y, w.shape), settings),
    ]


@pytest.mark.parametrize("dtype", ["float64", "float16", "complex64", "int64"])
@pytest.mark.parametrize("make", OUT.values(), ids=OUT)
def test_out_is_filled_and_returned(make, dtype):
    for function, arguments, settings in calls_with_out(dtype):
        expected = function(*arguments, **settings)
        out = make(expected)
        assert function(*arguments, **settings, out=out) is out
        assert np.array_equal(out, expected), function.__name__


def test_out_without_a_batch():
    x, w = random_integers((2, 5), "int64", 0), random_integers((3, 2, 2), "int64", 1)
    out = np.empty((3, 4), np.int64)
    assert conv(x, w, out=out) is out
    assert np.array_equal(out, conv(x, w))


def test_integers_narrower_than_64_bits_need_a_wide_out():
    x, w = np.full((1, 1, 2), 100, np.int8), np.full((1, 1, 1), 100, np.int8)
    assert conv(x, w, out=np.empty((1, 1, 2), np.int64)).tolist() == [[[10000, 10000]]]
    with pytest.raises(TypeError, match="out must have the result's dtype int64"):
        conv(x, w, out=np.empty((1, 1, 2), np.int8))


def refused_outs():
    """(out for the 4 pixels that conv makes of `x`, the error, the message)."""
    x = np.zeros(5)
    yield x, [[0] * 4], TypeError, "must be a NumPy array"
    yield x, np.full((1, 5), 9.0), ValueError, "must have the result's shape"
    yield x, np.full((1, 4), 9.0, np.float32), TypeError, "must have the result's dtype"
    yield x, read_only(np.full((1, 4), 9.0)), ValueError, "must be writable"
    shared = np.lib.stride_tricks.as_strided(np.zeros(1), (1, 4), (8, 0))
    yield x, shared, ValueError, "must have an element of its own"
    yield x, x[None, :4], ValueError, "must not overlap x"
    yield x, x[None, 1:], ValueError, "must not overlap x"


@pytest.mark.parametrize(("x", "out", "error", "message"), [*refused_outs()])
def test_an_out_that_cannot_take_the_result_is_refused_untouched(x, out, error, message):
    before = np.array(out)
    with pytest.raises(error, match=f"out {message}"):
        conv(x[None], np.ones((1, 1, 2)), out=out)
    assert np.array_equal(out, before)


def test_out_may_lie_between_the_inputs_elements():
    both = np.zeros((1, 10))
    x, out = both[:, ::2], both[:, 1::2]
    x[...] = 1
    assert conv(x, np.ones((1, 1, 1)), out=out) is out
    assert both.tolist() == [[1.0] * 10]


# ------------------------------------------------------------------------------------------- empties


def test_no_images(backend):
    x, w = np.zeros((0, 2, 5)), np.ones((3, 2, 2))
    y = conv(x, w, np.ones(3), backend=backend)
    assert y.shape == (0, 3, 4)
    grads = conv_grads(y, x, w, backend=backend)
    assert grads.input.shape == x.shape
    assert np.array_equal(grads.weight, np.zeros(w.shape))
    assert np.array_equal(grads.bias, np.zeros(3))
    assert conv_transpose(y, w, np.ones(2), backend=backend).shape == x.shape
    grads = conv_transpose_grads(x, y, w, backend=backend)
    assert np.array_equal(grads.weight, np.zeros(w.shape))
    assert np.array_equal(grads.bias, np.zeros(2))


def test_no_input_channels_leave_the_bias(backend):
    y = conv(np.zeros((2, 0, 5)), np.zeros((3, 0, 2)), [1.0, 2.0, 3.0], backend=backend)
    assert np.array_equal(y, np.broadcast_to([[[1.0], [2.0], [3.0]]], (2, 3, 4)))
    x = conv_transpose(np.zeros((2, 0, 4)), np.zeros((0, 3, 2)), [1.0, 2.0, 3.0], backend=backend)
    assert np.array_equal(x, np.broadcast_to([[[1.0], [2.0], [3.0]]], (2, 3, 5)))
    dx = conv_input_grad(np.zeros((2, 0, 4)), np.zeros((0, 3, 2)), (2, 3, 5), backend=backend)
    assert np.array_equal(dx, np.zeros((2, 3, 5)))


def test_no_pixels(backend):
    y = conv(np.zeros((1, 2, 0)), np.ones((3, 2, 2)), [1.0, 2.0, 3.0], padding=1, backend=backend)
    assert y.tolist() == [[[1], [2], [3]]]
    x = conv_transpose(np.zeros((1, 2, 0)), np.ones((2, 1, 3)), [5.0], padding=((-1, 0),), backend=backend)
    assert x.tolist() == [[[5, 5, 5]]]
    grad, x, w = np.ones((1, 1, 3)), np.zeros((1, 2, 0)), np.ones((2, 1, 3))
    grads = conv_transpose_grads(grad, x, w, padding=((-1, 0),), backend=backend)
    assert grads.input.shape == (1, 2, 0)
    assert np.array_equal(grads.weight, np.zeros((2, 1, 3)))


# ------------------------------------------------------------------------------------ NaN, backends


def test_inf_and_overflow_do_not_warn(backend):
    x = np.array([[[np.inf, -np.inf, np.nan, 1.0]]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        y = conv(x, np.array([[[1.0, 1.0]]]), [np.inf], backend=backend)
        assert np.array_equal(y, [[[np.nan, np.nan, np.nan]]], equal_nan=True)
        back = conv_transpose(x, np.array([[[0.0, 1.0]]]), backend=backend)
        assert np.array_equal(back, [[[np.nan, np.nan, np.nan, np.nan, 1.0]]], equal_nan=True)
        conv_weight_grad(y, x, (1, 1, 2), backend=backend)
        huge = np.full((1, 2, 3), 1e308)
        assert (conv(huge, np.full((1, 2, 1), 10.0), backend=backend) == np.inf).all()
        assert (conv_transpose(huge, np.full((2, 1, 1), 10.0), backend=backend) == np.inf).all()


def test_an_unknown_backend_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"backend must be None or one of .*numba.*, got 'gpu'"):
        conv(np.ones((1, 1, 3)), np.ones((1, 1, 1)), backend="gpu")


def test_floats_agree_with_the_matrix_to_rounding(backend):
    x, w = random_array((2, 6, 9, 10), "float32", 0), random_array((4, 3, 3, 3), "float32", 1)
    settings = {"stride": 2, "padding": 1, "groups": 2}
    C = conv_matrix(w.astype(float), x.shape, **settings)
    expected, size = C @ x.ravel().astype(float), np.abs(C) @ np.abs(x.ravel())
    y = conv(x, w, **settings, backend=backend)
    tolerance = loopconv.registry.tolerance(geometry.conv(x.shape, w.shape, **settings), "forward", np.float32)
    assert_within(y.ravel(), expected, tolerance * size)
