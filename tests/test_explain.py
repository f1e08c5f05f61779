"""trace against the loops themselves and the reference; sizes and pads read backwards, against trying them all."""

import warnings
from itertools import product

import numpy as np
import pytest
from helpers import random_integers

import loopconv
from loopconv import explain, geometry, reference
from loopconv.cases import CASES
from loopconv.loops import adjoint, driver, forward

SMALL = {case.name: case for case in CASES if case.geometry.macs <= 20_000}
TRACED = {case.name: case for case in CASES if case.geometry.macs <= explain.LIMIT}


def traced(case, **values):
    return loopconv.trace(case.op, case.x_shape, case.w_shape, **values, **case.settings)


# ------------------------------------------------------------------------------------------- trace


class Watched:
    """An array of ones that notes which elements the loops read and write, in one list with others."""

    def __init__(self, name, notes):
        self.name, self.notes = name, notes

    def __getitem__(self, index):
        self.notes.append((self.name, index))
        return 1

    def __setitem__(self, index, value):
        pass


def watched_loops(case):
    """(output index, input index, weight index) of every product that the interpreted loops make."""
    g, notes = case.geometry, []
    sizes, stride, dilation = driver.arguments(g)
    loops = forward.forward if case.op == "conv" else adjoint.adjoint
    loops(*(Watched(name, notes) for name in "xwy"), sizes, stride, dilation)
    assert len(notes) == 3 * g.macs  # both factors, and the sum that they are added to
    batched = len(case.x_shape) == len(case.w_shape)
    for i in range(0, len(notes), 3):
        found = dict(notes[i : i + 3])
        n, group, c, *pixels = found["x"]
        pixels = [a - lo for a, lo in zip(pixels[3 - g.rank :], g.pad)]
        if all(0 <= a < size for a, size in zip(pixels, g.input)):
            x = [n, group * (g.c // g.groups) + c, *pixels][not batched :]
            _, _, k, *at = found["y"]
            y = [n, group * (g.k // g.groups) + k, *at[3 - g.rank :]][not batched :]
            group, k, c, *taps = found["w"]
            w = [group * (g.k // g.groups) + k, c, *taps[3 - g.rank :]]
            yield (y, x, w) if case.op == "conv" else (x, y, w)


@pytest.mark.parametrize("name", SMALL)
def test_rows_are_the_products_of_the_loops_in_their_order(name):
    expected = list(watched_loops(SMALL[name]))
    t = traced(SMALL[name])
    assert t.dtype.names == ("output", "input", "weight")
    assert len(t) == len(expected)
    assert [[row["output"].tolist(), row["input"].tolist(), row["weight"].tolist()] for row in t] == [
        [list(map(int, index)) for index in row] for row in expected
    ]


@pytest.mark.parametrize("name", TRACED)
def test_products_add_up_to_the_output(name):
    case = TRACED[name]
    g = case.geometry
    x, w = random_integers(case.x_shape, "int64", 0), random_integers(case.w_shape, "int64", 1)
    t = traced(case, x=x, w=w)
    assert np.array_equal(t["product"], x[tuple(t["input"].T)] * w[tuple(t["weight"].T)])
    shape = g.y_shape if case.op == "conv" else g.x_shape
    expected, y = np.empty(shape, np.int64), np.zeros(shape[len(case.w_shape) - len(case.x_shape) :], np.int64)
    if case.op == "conv":
        reference.forward(g, x.reshape(g.x_shape), w, expected)
    else:
        reference.adjoint(g, expected, w, x.reshape(g.y_shape))
    np.add.at(y, tuple(t["output"].T), t["product"])
    assert np.array_equal(y, expected.reshape(y.shape))


@pytest.mark.parametrize("name", [name for name in SMALL if SMALL[name].op == "conv"])
def test_there_is_a_row_for_every_entry_of_the_matrix(name):
    case = SMALL[name]
    g = case.geometry
    w = 1 + np.arange(np.prod(case.w_shape)).reshape(case.w_shape)
    t = traced(case)
    C = np.zeros((np.prod(g.y_shape), np.prod(g.x_shape)), np.int64)
    batch = np.s_[-len(case.x_shape) :]
    row = np.ravel_multi_index(tuple(t["output"].T), g.y_shape[batch])
    column = np.ravel_multi_index(tuple(t["input"].T), g.x_shape[batch])
    C[row, column] = w[tuple(t["weight"].T)]
    assert np.array_equal(C, loopconv.conv_matrix(w, case.x_shape, **case.settings))
    assert np.count_nonzero(C) == len(t)  # no entry twice


@pytest.mark.parametrize(
    ("x", "w", "dtype"),
    [("int8", "int8", "int64"), ("float16", "float16", "float32"), ("float32", "complex64", "complex64")],
)
def test_products_are_of_the_dtype_that_is_computed_in(x, w, dtype):
    t = loopconv.trace("conv", (1, 2), (1, 1, 1), x=np.full((1, 2), 100, x), w=np.full((1, 1, 1), 100, w))
    assert t["product"].dtype == dtype
    assert t["product"].tolist() == [10_000, 10_000]


def test_products_keep_what_is_not_finite_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        t = loopconv.trace("conv", (1, 3), (1, 1, 1), x=[[np.inf, np.nan, 1e300]], w=[[[0.0]]])
        assert np.isnan(t["product"][:2]).all()
        t = loopconv.trace("conv_transpose", (1, 1), (1, 1, 1), x=[[1e300]], w=[[[1e300]]])
        assert np.isinf(t["product"]).all()


def test_the_limit_is_said(monkeypatch):
    with pytest.raises(
        ValueError, match=r"^input_shape and weight_shape must give at most 1,000,000 products to trace"
    ):
        loopconv.trace("conv", (3, 224, 224), (64, 3, 7, 7))
    monkeypatch.setattr(explain, "LIMIT", 8)
    assert len(loopconv.trace("conv", (1, 5), (1, 1, 2))) == 8
    with pytest.raises(ValueError, match="at most 8 products to trace, got 10 from"):
        loopconv.trace("conv", (1, 6), (1, 1, 2))


@pytest.mark.parametrize(
    ("given", "exception", "message"),
    [
        ({"op": "dilate"}, ValueError, "op must be one of conv, conv_transpose, got 'dilate'"),
        ({"op": None}, ValueError, "op must be one of conv, conv_transpose, got None"),
        ({"input_shape": 5}, TypeError, "input_shape must be a tuple of ints, got 5"),
        ({"input_shape": (1, 5.0)}, TypeError, r"input_shape must be a tuple of ints, got \(1, 5.0\)"),
        ({"input_shape": np.ones((1, 2))}, TypeError, r"input_shape must be a tuple of ints, got array\("),
        ({"input_shape": (1, -5)}, ValueError, r"input_shape must have no negative sizes, got \(1, -5\)"),
        ({"input_shape": (2, 5)}, ValueError, "input_shape must have 1 channels"),
        ({"input_shape": (1, 2)}, ValueError, "weight_shape must fit in the padded input: .* from input_shape"),
        ({"weight_shape": (1, 3)}, ValueError, "weight_shape must have 3 or more dimensions"),
        ({"output_padding": 1}, ValueError, "output_padding must be left out for a conv, which has none, got 1"),
        ({"output_padding": "1"}, TypeError, "output_padding must be an int or one int per axis, got '1'"),
        ({"output_size": 3}, ValueError, "output_size must be left out for a conv, which has none, got 3"),
        ({"op": "conv_transpose", "output_padding": 1}, ValueError, "output_padding must be less than"),
        ({"x": np.ones((1, 5))}, ValueError, "x and w must be given together or not at all, got only x"),
        ({"w": np.ones((1, 1, 3))}, ValueError, "x and w must be given together or not at all, got only w"),
        ({"x": np.ones((1, 4)), "w": np.ones((1, 1, 3))}, ValueError, r"x must have the shape \(1, 5\) that was said"),
        ({"x": np.ones((1, 5)), "w": np.ones((1, 3))}, ValueError, r"w must have the shape \(1, 1, 3\) that was said"),
        ({"x": [["a"] * 5], "w": np.ones((1, 1, 3))}, TypeError, "x must be of an integer dtype"),
        ({"stride": 0}, ValueError, "stride must be at least 1"),
    ],
)
def test_what_cannot_be_traced_is_refused(given, exception, message):
    right = {"op": "conv", "input_shape": (1, 5), "weight_shape": (1, 1, 3)}
    with pytest.raises(exception, match=f"^{message}"):
        loopconv.trace(**(right | given))


# --------------------------------------------------------------------------------------- preimage_sizes


def outputs(kernel, stride, padding, dilation, sizes):
    """{input size: output size} by trying them all."""
    found = {}
    for n in sizes:
        try:
            g = geometry.conv((1, n), (1, 1, kernel), stride=stride, padding=padding, dilation=dilation)
        except ValueError:
            continue
        (found[n],) = g.output
    return found


PADDINGS = (0, 1, 4, [(0, 3)], [(2, 0)], -1, [(1, -2)], "valid", "same", "full")


@pytest.mark.parametrize("padding", PADDINGS, ids=str)
def test_preimage_sizes_are_those_that_give_the_output(padding):
    for kernel, stride, dilation in product((1, 2, 3, 5), (1, 2, 3, 5), (1, 2, 3)):
        found = outputs(kernel, stride, padding, dilation, range(80))
        for output in range(1, 8):
            expected = [n for n, o in found.items() if o == output]
            (sizes,) = loopconv.preimage_sizes(output, kernel, stride, padding, dilation)
            assert list(sizes) == expected, (kernel, stride, dilation, output)


def test_preimage_sizes_by_hand():
    # 5 and 6 pixels, padded by 1, have windows of 3 at 0, 2 and 4.
    assert loopconv.preimage_sizes(3, 3, stride=2, padding=1) == (range(5, 7),)
    assert loopconv.preimage_sizes((3, 2), 3, (2, 1), (1, (0, 2))) == (range(5, 7), range(2, 3))
    assert loopconv.preimage_sizes(2, 3, padding=(1, (0, 2))) == (range(2, 3),) * 2
    assert loopconv.preimage_sizes(1, (1, 3), padding=2) == (range(0), range(0, 0)) == (range(0, 0),) * 2


def test_each_preimage_is_one_output_padding():
    for kernel, stride, dilation, lo, hi in product((1, 3, 4), (1, 2, 4), (1, 3), (0, 1), (0, 2)):
        settings = {"stride": stride, "padding": [(lo, hi)], "dilation": dilation}
        (sizes,) = loopconv.preimage_sizes(7, kernel, **settings)
        back = [
            geometry.conv_transpose((1, 7), (1, 1, kernel), output_padding=op, **settings).input[0]
            for op in range(stride)
        ]
        assert back == list(sizes)


@pytest.mark.parametrize(
    ("arguments", "exception", "message"),
    [
        ((0, 3), ValueError, "output must be at least 1 on every axis, got 0"),
        ((3, 0), ValueError, "kernel must be at least 1 on every axis, got 0"),
        ((3, 3, 0), ValueError, "stride must be at least 1"),
        ((3, 3, 1, "most"), ValueError, "padding must be ints or one of valid, same, full, got 'most'"),
        ((3.5, 3), TypeError, "output must be an integer, got 3.5"),
        (((3, 3), (3, 3, 3)), ValueError, "output must be an int or one int per axis: 3 for this 3-D call, got 2"),
        (((), 3), ValueError, r"output must be an int or one int per axis: 1 for this 1-D call, got 0 in \(\)"),
        (("3", 3), TypeError, "output must be an int or one int per axis, got '3'"),
    ],
)
def test_preimage_sizes_refuses(arguments, exception, message):
    with pytest.raises(exception, match=f"^{message}"):
        loopconv.preimage_sizes(*arguments)


# ---------------------------------------------------------------------------------------- solve_padding

SIZES = list(product(range(1, 8), range(1, 8), (1, 2, 3), (1, 2, 3), (1, 4)))
TOTALS = range(28)  # of padding; windows of these sizes cover at most 6*3 + 9 pixels


def conv_size(n, k, s, d, lo, hi):
    """Output size, 0 where the kernel does not fit."""
    try:
        return geometry.conv((1, n), (1, 1, k), stride=s, padding=[(lo, hi)], dilation=d).output[0]
    except ValueError:
        return 0


def transposed_size(n, k, s, d, total, op):
    try:
        padding = [(0, total)]
        return geometry.conv_transpose(
            (1, n), (1, 1, k), stride=s, padding=padding, dilation=d, output_padding=op
        ).input[0]
    except ValueError:
        return None


def least(totals):
    """The least even one, or the least: which of them `solve_padding` takes."""
    return min(totals, key=lambda total: (total % 2, total), default=None)


def test_solved_padding_gives_the_size_or_none_does():
    refused = 0
    for n, o, k, s, d in SIZES:
        expected = least([total for total in TOTALS if conv_size(n, k, s, d, 0, total) == o])
        if expected is None:
            refused += 1
            with pytest.raises(ValueError, match=f"^output must be at least {conv_size(n, k, s, d, 0, 0)} on spatial"):
                loopconv.solve_padding(n, o, k, s, d)
            continue
        found = loopconv.solve_padding(n, o, k, s, d)
        assert found.padding == ((expected // 2, expected - expected // 2),)
        g = geometry.conv((1, n), (1, 1, k), stride=s, dilation=d, padding=found.padding)
        back = geometry.conv_transpose((1, o), (1, 1, k), stride=s, dilation=d, **found._asdict())
        assert (g.output, back.input) == ((o,), (n,))
    assert 0 < refused < len(SIZES)


def test_solved_padding_of_the_transpose_gives_the_size_or_none_does():
    refused = 0
    for n, o, k, s, d in SIZES:
        pairs = [(t, op) for op in range(max(s, d)) for t in TOTALS if transposed_size(n, k, s, d, t, op) == o]
        if not pairs:
            refused += 1
            with pytest.raises(ValueError, match=r"^output must be at most \d+ on spatial axis 0: .*, got \d+$"):
                loopconv.solve_padding(n, o, k, s, d, transposed=True)
            continue
        expected = least([total for total, op in pairs if op < s])
        if expected is None:
            expected = min(total for total, _ in pairs)
        padding, (op,) = loopconv.solve_padding(n, o, k, s, d, transposed=True)
        assert padding == ((expected // 2, expected - expected // 2),)
        assert (expected, op) in pairs
        if op < s:
            assert conv_size(o, k, s, d, *padding[0]) == n
    assert 0 < refused < len(SIZES)


def test_what_everybody_uses_is_found():
    assert loopconv.solve_padding(28, 28, 3) == (((1, 1),), (0,))
    assert loopconv.solve_padding((224, 224), (112, 112), 7, 2) == (((3, 3), (3, 3)), (1, 1))
    assert loopconv.solve_padding(14, 28, 4, 2, transposed=True) == (((1, 1),), (0,))
    assert loopconv.solve_padding(14, 28, 3, 2, transposed=True) == (((1, 1),), (1,))
    assert loopconv.solve_padding(4, 4, 2) == (((0, 1),), (0,))  # as 'same': the odd pixel at the end
    assert loopconv.solve_padding(0, 1, 1) == (((0, 1),), (0,))


def test_its_answer_is_what_the_functions_take():
    x, w = np.ones((1, 9, 8)), np.ones((2, 1, 3, 4))
    settings = {"stride": 2, "dilation": (1, 2)}
    padding, output_padding = loopconv.solve_padding((9, 8), (5, 7), (3, 4), **settings)
    y = loopconv.conv(x, w, padding=padding, backend="reference", **settings)
    assert y.shape == (2, 5, 7)
    settings |= {"padding": padding, "output_padding": output_padding}
    back = loopconv.conv_transpose(y, w, backend="reference", **settings)
    assert back.shape == x.shape


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        # Without padding 8 pixels have 6 windows of 3.
        ((8, 2, 3), "output must be at least 6 on spatial axis 0: 8 input pixels have that many windows of 3 pixels "
                    "at stride 1 before any padding, got 2"),
        (((3, 8), (3, 2), 3), "output must be at least 6 on spatial axis 1"),
        # 3 pixels scatter to (3-1)*2 + 3 = 7, and output_padding adds at most 1.
        ((3, 9, 3, 2, 1, True), "output must be at most 8 on spatial axis 0: 3 input pixels scatter to 7 before any is "
                                "cropped, and output_padding adds less than max(stride, dilation) = 2, got 9"),
        ((8, 0, 3), "output must be at least 1 on every axis, got 0"),
        ((-1, 4, 3), "input must be at least 0 on every axis, got -1"),
        ((0, 4, 3, 1, 1, True), "input must be at least 1 on every axis, got 0"),
        ((8, 4, 0), "kernel must be at least 1 on every axis, got 0"),
        (((8, 8), (4, 4, 4), 3), "input must be an int or one int per axis: 3 for this 3-D call, got 2 in (8, 8)"),
    ],
)  # fmt: skip
def test_refusals_of_solve_padding(arguments, message):
    with pytest.raises(ValueError) as refusal:  # noqa: PT011 (compared as a whole below)
        loopconv.solve_padding(*arguments)
    assert str(refusal.value).startswith(message)


@pytest.mark.parametrize("transposed", ["yes", 2, None])
def test_a_direction_is_true_or_false(transposed):
    with pytest.raises(TypeError, match=f"^transposed must be True or False, got {transposed!r}$"):
        loopconv.solve_padding(4, 8, 3, 2, transposed=transposed)
