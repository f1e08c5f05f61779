"""What holds for every geometry, on geometries that nobody chose.

Operands are integers of -9 .. 9, in floats too: all sums are exact, and every comparison is for equality.
"""

import numpy as np
import pytest
from helpers import random_integers, ready
from hypothesis import given, settings
from hypothesis import strategies as st

from loopconv import conv, conv_grads, conv_matrix, conv_transpose, conv_transpose_grads, registry

# The same examples in every run, and none kept on disk.
examples = settings(derandomize=True, deadline=None, database=None, max_examples=200)
every_backend = pytest.mark.parametrize("backend", [name for name in registry.backends() if name != "reference"])


@st.composite
def calls(draw, max_rank=3, max_stride=4):
    """(shape of x, shape of w, keywords) of a valid `conv`."""
    rank = draw(st.integers(1, max_rank))
    groups = draw(st.integers(1, 3))
    batch, c, k = draw(st.integers(1, 2)), draw(st.integers(1, 2)), draw(st.integers(1, 3))
    sizes, kernel, stride, dilation, padding = [], [], [], [], []
    for _ in range(rank):
        taps, d = draw(st.integers(1, 4 if rank < 3 else 2)), draw(st.integers(1, 3 if rank < 3 else 2))
        lo, hi = draw(st.integers(-3, 4)), draw(st.integers(-3, 4))
        extent = d * (taps - 1) + 1
        least = max(extent - lo - hi, 0)
        sizes.append(draw(st.integers(least, least + 6)))
        kernel.append(taps)
        stride.append(draw(st.integers(1, max_stride)))
        dilation.append(d)
        padding.append((lo, hi))
    keywords = {"stride": tuple(stride), "padding": tuple(padding), "dilation": tuple(dilation), "groups": groups}
    return (batch, c * groups, *sizes), (k * groups, c, *kernel), keywords


def operands(call, dtype="float64"):
    """x, w and y = conv(x, w)'s shape filled with other numbers."""
    x_shape, w_shape, keywords = call
    x, w = random_integers(x_shape, dtype, 0), random_integers(w_shape, dtype, 1)
    return x, w, random_integers(conv(x, w, **keywords).shape, dtype, 2)


def leftover(call):
    """The output_size that makes `conv_transpose` the transpose of this `conv`, and its output_padding."""
    x_shape, w_shape, keywords = call
    sizes, kernel = x_shape[2:], w_shape[2:]
    output_padding = tuple(
        (n + lo + hi - d * (k - 1) - 1) % s
        for n, k, s, d, (lo, hi) in zip(sizes, kernel, keywords["stride"], keywords["dilation"], keywords["padding"])
    )
    return sizes, output_padding


@every_backend
@examples
@given(call=calls())
def test_every_backend_gives_what_the_reference_gives(call, backend):
    ready(backend)
    x, w, y = operands(call)
    keywords, (sizes, _) = call[2], leftover(call)
    assert np.array_equal(conv(x, w, backend=backend, **keywords), conv(x, w, backend="reference", **keywords))
    there = conv_transpose(y, w, output_size=sizes, backend=backend, **keywords)
    assert np.array_equal(there, conv_transpose(y, w, output_size=sizes, backend="reference", **keywords))
    for one, other in zip(
        conv_grads(y, x, w, backend=backend, **keywords), conv_grads(y, x, w, backend="reference", **keywords)
    ):
        assert np.array_equal(one, other)


@examples
@given(call=calls(max_rank=2))
def test_the_matrix_agrees(call):
    x, w, y = operands(call)
    C = conv_matrix(w, x.shape, **call[2])
    assert np.array_equal(conv(x, w, **call[2]).ravel(), C @ x.ravel())
    assert np.array_equal(conv_transpose(y, w, output_size=leftover(call)[0], **call[2]).ravel(), C.T @ y.ravel())


@examples
@given(call=calls())
def test_the_form_is_one_number(call):
    """<conv(x, w), y> = <x, conv_transpose(y, w)> = <w, weight gradient>: T(x, w, y), whoever is left out."""
    x, w, y = operands(call, "int64")
    T = np.vdot(conv(x, w, **call[2]), y)
    grads = conv_grads(y, x, w, **call[2])
    assert np.vdot(x, conv_transpose(y, w, output_size=leftover(call)[0], **call[2])) == T
    assert np.vdot(x, grads.input) == T
    assert np.vdot(w, grads.weight) == T
    grads = conv_transpose_grads(x, y, w, **call[2])
    assert np.vdot(y, grads.input) == T
    assert np.vdot(w, grads.weight) == T


@examples
@given(call=calls())
def test_complex_gradients_are_adjoint(call):
    x, w, y = operands(call, "complex128")
    T = np.vdot(y, conv(x, w, **call[2]))  # vdot conjugates its first argument
    grads = conv_grads(y, x, w, **call[2])
    assert np.vdot(grads.input, x) == T
    assert np.vdot(grads.weight, w) == T


@examples
@given(call=calls())
def test_output_padding_names_the_same_size(call):
    x, w, y = operands(call)
    sizes, output_padding = leftover(call)
    by_padding = conv_transpose(y, w, output_padding=output_padding, **call[2])
    assert by_padding.shape == x.shape
    assert np.array_equal(by_padding, conv_transpose(y, w, output_size=sizes, **call[2]))


@examples
@given(call=calls(), data=st.data())
def test_conv_takes_every_size_of_the_transpose_back(call, data):
    _, w, y = operands(call)
    output_padding = tuple(data.draw(st.integers(0, s - 1)) for s in call[2]["stride"])
    extents = [d * (k - 1) + 1 for d, k in zip(call[2]["dilation"], w.shape[2:])]
    wanted = [
        (n - 1) * s + e - lo - hi + op
        for n, s, e, (lo, hi), op in zip(y.shape[2:], call[2]["stride"], extents, call[2]["padding"], output_padding)
    ]
    if min(wanted) < 0:
        with pytest.raises(ValueError, match="padding must leave an output"):
            conv_transpose(y, w, output_padding=output_padding, **call[2])
        return
    x = conv_transpose(y, w, output_padding=output_padding, **call[2])
    assert x.shape[2:] == tuple(wanted)
    assert conv(x, w, **call[2]).shape == y.shape


@examples
@given(call=calls())
def test_gradients_have_their_arguments_shapes(call):
    x, w, y = operands(call, "float32")
    for grads, shapes in (
        (conv_grads(y, x, w, **call[2]), (x.shape, w.shape, w.shape[:1])),
        (conv_transpose_grads(x, y, w, **call[2]), (y.shape, w.shape, x.shape[1:2])),
    ):
        assert tuple(grad.shape for grad in grads) == shapes
        assert {grad.dtype for grad in grads} == {np.dtype("float32")}


@examples
@given(call=calls(), a=st.integers(-5, 5), b=st.integers(-5, 5))
def test_conv_is_linear_in_both(call, a, b):
    x, w, _ = operands(call, "int64")
    x2, w2 = random_integers(x.shape, "int64", 3), random_integers(w.shape, "int64", 4)
    y = conv(x, w, **call[2])
    assert np.array_equal(conv(a * x + b * x2, w, **call[2]), a * y + b * conv(x2, w, **call[2]))
    assert np.array_equal(conv(x, a * w + b * w2, **call[2]), a * y + b * conv(x, w2, **call[2]))


@examples
@given(call=calls())
def test_a_shift_by_the_stride_shifts_the_output_by_a_pixel(call):
    x, w, _ = operands(call)
    y = conv(x, w, **call[2])
    for axis, (n, s) in enumerate(zip(y.shape[2:], call[2]["stride"])):
        if n < 2:
            continue
        padding = list(call[2]["padding"])
        padding[axis] = (padding[axis][0] - s, padding[axis][1])
        shifted = conv(x, w, **{**call[2], "padding": tuple(padding)})
        assert np.array_equal(shifted, np.delete(y, 0, axis=2 + axis))


@examples
@given(call=calls())
def test_a_stride_keeps_every_so_many_th_pixel(call):
    x, w, _ = operands(call)
    dense = conv(x, w, **{**call[2], "stride": 1})
    kept = dense[(..., *(slice(None, None, s) for s in call[2]["stride"]))]
    assert np.array_equal(conv(x, w, **call[2]), kept)


@examples
@given(call=calls())
def test_a_dilated_kernel_is_one_with_zeros(call):
    x, w, _ = operands(call)
    extents = (d * (k - 1) + 1 for d, k in zip(call[2]["dilation"], w.shape[2:]))
    spread = np.zeros((*w.shape[:2], *extents))
    spread[(..., *(slice(None, None, d) for d in call[2]["dilation"]))] = w
    assert np.array_equal(conv(x, w, **call[2]), conv(x, spread, **{**call[2], "dilation": 1}))


@examples
@given(call=calls())
def test_padding_is_zeros_around_and_crops(call):
    x, w, _ = operands(call)
    padded = np.pad(x, [(0, 0), (0, 0), *((max(lo, 0), max(hi, 0)) for lo, hi in call[2]["padding"])])
    crop = tuple(
        slice(max(-lo, 0), n + max(lo, 0) + max(hi, 0) - max(-hi, 0))
        for n, (lo, hi) in zip(x.shape[2:], call[2]["padding"])
    )
    # Where lo crops more than there is and hi pads it again, NumPy has no slice to say so.
    if all(0 <= a.start <= a.stop for a in crop):
        assert np.array_equal(conv(x, w, **call[2]), conv(padded[(..., *crop)], w, **{**call[2], "padding": 0}))


@examples
@given(call=calls())
def test_groups_do_not_see_each_other(call):
    x, w, _ = operands(call)
    groups, alone = call[2]["groups"], {**call[2], "groups": 1}
    parts = [conv(a, b, **alone) for a, b in zip(np.split(x, groups, axis=1), np.split(w, groups, axis=0))]
    assert np.array_equal(conv(x, w, **call[2]), np.concatenate(parts, axis=1))


@examples
@given(call=calls())
def test_images_do_not_see_each_other(call):
    x, w, y = operands(call)
    sizes = leftover(call)[0]
    for n in range(len(x)):
        assert np.array_equal(conv(x, w, **call[2])[n], conv(x[n], w, **call[2]))
        assert np.array_equal(
            conv_transpose(y, w, output_size=sizes, **call[2])[n],
            conv_transpose(y[n], w, output_size=sizes, **call[2]),
        )
