"""Wrong calls: the error names the argument, says what it was and what would do, and `out` keeps its bytes."""

import inspect
import os
import subprocess
import sys

import numpy as np
import pytest
from helpers import ready

import loopconv
from loopconv import registry, threads
from loopconv.registry import Implementation

RNG = np.random.default_rng(0)
NAN = float("nan")
HUGE = 2**70
SENTINEL = -7.25  # what `out` holds before each call and after

# conv: x (2, 4, 9, 8), w (6, 2, 3, 2) in two groups, y (2, 6, 7, 7).
# conv_transpose at stride 2: x (2, 6, 7, 7), the same w, y (2, 4, 15, 14).
X, W, Y, LONG = (RNG.standard_normal(shape) for shape in ((2, 4, 9, 8), (6, 2, 3, 2), (2, 6, 7, 7), (2, 4, 15, 14)))


def ones(*shape):
    return np.ones(shape)


def _load():
    return lambda *arrays, **bias: None


# A right call of every function; each row below spoils one or two of its arguments.
BASE = {
    "conv": {"x": X, "w": W, "bias": ones(6), "groups": 2},
    "conv_input_grad": {"grad": Y, "w": W, "input_shape": X.shape, "groups": 2},
    "conv_weight_grad": {"grad": Y, "x": X, "weight_shape": W.shape, "groups": 2},
    "conv_bias_grad": {"grad": Y},
    "conv_grads": {"grad": Y, "x": X, "w": W, "groups": 2},
    "conv_transpose": {"x": Y, "w": W, "bias": ones(4), "groups": 2, "stride": 2},
    "conv_transpose_input_grad": {"grad": LONG, "w": W, "input_shape": Y.shape, "groups": 2, "stride": 2},
    "conv_transpose_weight_grad": {"grad": LONG, "x": Y, "weight_shape": W.shape, "groups": 2, "stride": 2},
    "conv_transpose_bias_grad": {"grad": LONG},
    "conv_transpose_grads": {"grad": LONG, "x": Y, "w": W, "groups": 2, "stride": 2},
    "conv_matrix": {"w": W, "input_shape": X.shape[1:], "groups": 2},
    **{f"conv{n}d": {"x": ones(1, 2, *(4,) * n), "w": ones(3, 2, *(2,) * n), "bias": ones(3)} for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": {"x": ones(1, 2, *(4,) * n), "w": ones(2, 3, *(2,) * n)} for n in (1, 2, 3)},
    "set_num_threads": {"n": 1},
    "register": {"implementation": Implementation("forward", "mine", _load)},
}
SPATIAL = [name for name in BASE if "stride" in inspect.signature(getattr(loopconv, name, len)).parameters]
PLAIN = [name for name in SPATIAL if not name.endswith("d") or name.endswith("_grad")]  # not conv1d and so on
TRANSPOSED = [name for name in PLAIN if name.startswith("conv_transpose")]
ARRAYS = {name: [key for key in BASE[name] if key in ("x", "w", "grad", "bias")] for name in BASE}


def function(name):
    return getattr(registry if name == "register" else loopconv, name)


def takes_out(name):
    return name in SPATIAL and "out" in inspect.signature(function(name)).parameters


# ------------------------------------------------------------------------------------------ the table
# (function, arguments that replace right ones, exception, fragments). The message starts with the first
# fragment, which names the argument, and contains the others.

ROWS = []


def row(name, given, exception, *fragments):
    ROWS.append((name, given, exception, fragments))


# integers that are none
NOT_INTEGERS = (1.5, NAN, True, np.True_, 1 + 0j, b"1", np.float64(2), np.array(2.5), (1, 2.0), (1, NAN), (True, 1))
for name in PLAIN:
    for argument in ("stride", "dilation", "padding", "groups", "output_padding", "output_size"):
        if argument not in inspect.signature(function(name)).parameters:
            continue
        for value in NOT_INTEGERS:
            row(name, {argument: value}, TypeError, f"{argument} must be an int", "got ")
        if inspect.signature(function(name)).parameters[argument].default is not None:
            row(name, {argument: None}, TypeError, f"{argument} must be an int", "got None")
        if argument != "padding":
            row(name, {argument: "2"}, TypeError, f"{argument} must be an int", "got '2'")
    for argument in ("stride", "dilation"):
        for value in (0, -1, (1, 0), (-2, 1), np.int64(0)):
            row(name, {argument: value}, ValueError, f"{argument} must be at least 1", f"got {value!r}")
    for argument in ("stride", "dilation", "padding"):
        for value in ((1,), (1, 1, 1), [], [1, 2, 3]):
            row(name, {argument: value}, ValueError, f"{argument} must be an int", "per axis", "2-D", f"in {value!r}")
        row(name, {argument: np.ones((3, 3), int)}, (TypeError, ValueError), f"{argument} must ", "got ")
        row(name, {argument: list(range(1000))}, ValueError, f"{argument} must be an int", "2-D", "got 1000")
        row(name, {argument: np.arange(1, 60)}, ValueError, f"{argument} must be an int", "2-D", "got 59")
    for argument in ("stride", "dilation", "padding", "groups"):
        row(name, {argument: HUGE}, ValueError, argument, str(HUGE))
    for value in (0, -1, np.int64(-3)):
        row(name, {"groups": value}, ValueError, "groups must be at least 1", f"got {value}")
    row(name, {"groups": (2,)}, TypeError, "groups must be an integer", "got (2,)")

    # padding
    for value in ("SAME", "", "reflect", "2"):
        row(name, {"padding": value}, ValueError, "padding must be", "valid, same, full", f"got {value!r}")
    for value in (((1, 2, 3), (1, 1)), ((1, 1), ()), [[1, 2], [3]], ((0, 1), (1,))):
        row(name, {"padding": value}, ValueError, "padding must have (lo, hi) pairs", f"in {value!r}")
    for value in (((1, 2.0), (1, 1)), ("same", "same"), ((1, None), 1), ((0, True), 0)):
        row(name, {"padding": value}, TypeError, "padding must be an integer", "got ")

# shapes given as arguments
for name in PLAIN:
    for argument in ("input_shape", "weight_shape"):
        if argument not in BASE[name]:
            continue
        for value in (None, 5, 2.5, "abc", b"abc", NAN, np.array(3)):
            row(name, {argument: value}, TypeError, f"{argument} must be a tuple of ints", f"got {value!r}")
        right = BASE[name][argument]
        for value in (2.0, NAN, True, np.True_, None, "3", (3,)):
            shape = (*right[:-1], value)
            row(name, {argument: shape}, TypeError, f"{argument} must be a tuple of ints", f"got {shape!r}")
        row(name, {argument: (*right[:-1], -2)}, ValueError, f"{argument} must have no negative sizes", "-2)")
        row(name, {argument: ()}, ValueError, f"{argument} must have", "dimensions", "shape ()")
        row(name, {argument: right[:1]}, ValueError, f"{argument} must have", "dimensions", f"shape {right[:1]}")
        first = f"{argument} must have 4 dim" if argument == "input_shape" else "x must have 6 dim"
        row(name, {argument: (1, 1, *right)}, ValueError, first, "(1, 1, ", "got shape")

# ranks, channels and groups, for the array or the shape that the call has
for name in PLAIN:
    x, w = ("x" if "x" in BASE[name] else "input_shape"), ("w" if "w" in BASE[name] else "weight_shape")

    def of(argument, shape):
        return {argument: tuple(shape) if argument.endswith("shape") else np.ones(shape)}

    C = 6 if name in TRANSPOSED else 4
    row(name, of(x, (4,)), ValueError, f"{x} must have 4 dimensions", "3 (unbatched)", "(6, 2, 3, 2)", "shape (4,)")
    row(name, of(x, (1, 2, C, 9, 8)), ValueError, f"{x} must have 4 dimensions", "shape (1, 2, ")
    row(name, of(x, (2, 5, 9, 8)), ValueError, f"{x} must have {C} channels", "(6, 2, 3, 2)", "got 5", "(2, 5, 9, 8)")
    row(name, of(x, (5, 9, 8)), ValueError, f"{x} must have {C} channels", "got 5", "(5, 9, 8)")
    for shape in ((), (6,), (6, 2)):
        row(name, of(w, shape), ValueError, f"{w} must have 3 or more dimensions", f"got shape {shape}")
        # per-axis settings are right for the weights that were meant: the weights are what is wrong
        given = of(w, shape) | {"stride": (1, 1), "dilation": (1, 1), "padding": (0, 0)}
        row(name, given, ValueError, f"{w} must have 3 or more dimensions", f"got shape {shape}")
    row(name, of(w, (6, 2, 3, 0)), ValueError, f"{w} must have a kernel of at least 1 tap", "(6, 2, 3, 0)")
    row(name, of(w, (6, 2, 0, 2)), ValueError, f"{w} must have a kernel of at least 1 tap", "(6, 2, 0, 2)")
    row(name, {"groups": 4}, ValueError, f"groups must divide the first axis of {w}", "groups=4", "(6, 2, 3, 2)")
    if name not in TRANSPOSED:
        row(name, {"groups": 3}, ValueError, f"{x} must have 6 channels", "groups=3", "got 4", "4, 9, 8)")
        row(name, of(w, (6, 3, 3, 2)), ValueError, f"{x} must have 6 channels", "(6, 3, 3, 2)", "got 4")
        row(name, of(w, (6, 2, 10, 2)), ValueError, f"{w} must fit in the padded input", "axis 0", "10 taps",
            "cover 10 pixels", "got 9 + padding 0 + 0 = 9", x, "4, 9, 8)")  # fmt: skip
        row(name, {"dilation": (1, 9)}, ValueError, f"{w} must fit in the padded input", "axis 1", "dilation 9",
            "cover 10 pixels", "got 8 + padding 0 + 0 = 8")  # fmt: skip
        row(name, {"padding": ((-4, -3), 0)}, ValueError, f"{w} must fit in the padded input", "9 + padding -4 + -3")
    else:
        row(name, of(w, (8, 2, 3, 2)), ValueError, f"{x} must have 8 channels", "(8, 2, 3, 2)", "got 6")

# gradients of the wrong shape
for name in BASE:
    if name not in PLAIN or "grad" not in BASE[name]:
        continue
    right = BASE[name]["grad"].shape
    for axis in (0, 1):
        wrong = tuple(size + (a == axis) for a, size in enumerate(right))
        row(name, {"grad": np.ones(wrong)}, ValueError, "grad must have the output's shape", str(right), str(wrong))
    for axis in (2, 3):
        wrong = tuple(size + 4 * (a == axis) for a, size in enumerate(right))
        row(name, {"grad": np.ones(wrong)}, ValueError, "grad ", str(wrong))
    for wrong in (right[1:], (1, *right)):
        row(name, {"grad": np.ones(wrong)}, ValueError, "grad must have the output's shape", str(right), str(wrong))
    row(name, {"grad": ones(3)}, ValueError, "grad must have", "shape (3,)")
    row(name, {"grad": ones()}, ValueError, "grad must have", "shape ()")
for name in ("conv_bias_grad", "conv_transpose_bias_grad"):
    row(name, {"grad": ones(3)}, ValueError, "grad must have more than 1 dim", "batched=True", "shape (3,)")
    row(name, {"grad": ones(), "batched": False}, ValueError, "grad must have more than 0 dim", "shape ()")
row("conv_input_grad", {"input_shape": (4, 9, 8)}, ValueError, "grad must have the output's shape (6, 7, 7)",
    "got shape (2, 6, 7, 7)")  # fmt: skip
row("conv_weight_grad", {"weight_shape": (6, 2, 3, 3)}, ValueError, "grad must have the output's shape (2, 6, 7, 6)")

# bias
for name, K in (("conv", 6), ("conv_transpose", 4)):
    for bias in (ones(K + 1), ones(1), ones(0), ones(1, K), 2.5):
        shape = np.shape(bias)
        row(name, {"bias": bias}, ValueError, f"bias must have shape ({K},)", "output channel", f"got shape {shape}")
row("conv1d", {"bias": ones(2)}, ValueError, "bias must have shape (3,)", "got shape (2,)")

# output_padding and output_size
for name in TRANSPOSED:
    row(name, {"output_padding": 2}, ValueError, "output_padding must be less than max(stride, dilation) = 2", "got 2")
    row(name, {"output_padding": (0, 3), "stride": 1, "dilation": (1, 3)}, ValueError,
        "output_padding must be less than max(stride, dilation) = 3", "axis 1", "got 3")  # fmt: skip
    for value in (-1, (0, -1)):
        row(name, {"output_padding": value}, ValueError, "output_padding must be at least 0", f"got {value!r}")
    for argument in ("output_padding", "output_size"):
        for value in ((1,), (1, 1, 1), []):
            row(name, {argument: value}, ValueError, f"{argument} must be an int", "2-D", f"in {value!r}")
        row(name, {argument: HUGE}, ValueError, argument, str(HUGE))
    row(name, {"output_size": -15}, ValueError, "output_size must be at least 0", "got -15")
    for value, axis, wrong in (((14, 14), 0, 14), ((17, 14), 0, 17), ((15, 16), 1, 16), (0, 0, 0)):
        sizes = "[15, 16]" if axis == 0 else "[14, 15]"
        row(name, {"output_size": value}, ValueError, f"output_size must be one of {sizes}", f"axis {axis}",
            "output_padding 0 to 1", "7 input pixels", f"got {wrong}")  # fmt: skip
    row(name, {"output_size": 1, "stride": 20}, ValueError, "output_size must be 123 to 142", "got 1")
    row(name, {"output_size": (15, 14), "output_padding": 1}, ValueError, "output_padding must be left out",
        "output_size", "(1, 1)", "(15, 14)")  # fmt: skip
    row(name, {"padding": "same", "output_padding": 1}, ValueError, "output_padding must be left out", "'same'")
    row(name, {"padding": "same", "output_size": (12, 14)}, ValueError, "output_size must be one of [13, 14]",
        "axis 0", "'same'", "stride 2", "got 12")  # fmt: skip
    row(name, {"padding": (0, (9, 8)), "output_padding": 0}, ValueError, "padding must leave an output", "axis 1",
        "9 + 8", "14 pixels", "7 input pixels", "got output size -3")  # fmt: skip
    # no size at all can be reached: the padding is to blame, and there is no list of choices to give
    row(name, {"padding": (0, (9, 8)), "output_size": (15, 0)}, ValueError, "padding must leave an output", "axis 1",
        "9 + 8")  # fmt: skip

# arrays that are none, or that hold what we do not compute with
LONGDOUBLE = np.dtype(np.longdouble)
for name, arguments in ARRAYS.items():
    for argument in arguments:
        right = BASE[name][argument]
        bad = (
            (right.astype(object), "dtype object"),
            (right.astype(str), "dtype <U"),
            (right.astype(bytes), "dtype |S"),
            (np.zeros(right.shape, "M8[s]"), "datetime64[s]"),
            (np.zeros(right.shape, "m8[s]"), "timedelta64[s]"),
            (np.zeros(right.shape, "i4,f8"), "dtype [('f0'"),
            (right.astype(np.longdouble), f"dtype {LONGDOUBLE}"),
            (right.astype(np.clongdouble), f"dtype {np.dtype(np.clongdouble)}"),
        )
        for value, fragment in bad:
            row(name, {argument: value}, TypeError, f"{argument} must be of an integer dtype, float16/32/64",
                fragment, f"shape {right.shape}")  # fmt: skip
        row(name, {argument: "abc"}, TypeError, f"{argument} must be", "dtype <U3")
        row(name, {argument: {1, 2}}, TypeError, f"{argument} must be", "dtype object")
        row(name, {argument: [[1, 2], [3]]}, TypeError, f"{argument} must be an array of numbers", "got list")
        row(name, {argument: np.ma.array(right)}, TypeError, f"{argument} must not be a masked array", "filled")
        if argument != "bias":
            row(name, {argument: None}, TypeError, f"{argument} must be an array of numbers", "None")

# backends
for name in PLAIN:
    if name == "conv_matrix":
        continue
    for value in ("gpu", "", 3, True, ["numba"], np.array(["numba", "cython"])):
        row(name, {"backend": value}, (ValueError, TypeError), "backend must be None or one of ",
            "parallel", "numba", "cython", "reference", "python", f"got {value!r}")  # fmt: skip
for backend in ("parallel", "numba", "cython", "python"):
    given = {"x": ones(1, 1, 2, 2, 2, 2), "w": ones(1, 1, 1, 1, 1, 1), "bias": None, "groups": 1, "backend": backend}
    given["out"] = np.full((1, 1, 2, 2, 2, 2), SENTINEL)
    row("conv", given, ValueError, f"backend={backend!r} cannot run this call", "1 to 3 spatial axes", "has 4")

# one rank only
for n in (1, 2, 3):
    for name in (f"conv{n}d", f"conv_transpose{n}d"):
        for shape in ((3,), (2, 3), (2, 3, *(2,) * (n + 1)), (2, 2, *(2,) * (n - 1))):
            row(name, {"w": np.ones(shape)}, ValueError, f"w must have {n + 2} dimensions for {name}", f"shape {shape}")
        row(name, {"stride": 0}, ValueError, "stride must be at least 1", "got 0")
        row(name, {"x": ones(2)}, ValueError, f"x must have {n + 2} dimensions", "got shape (2,)")

for value in ("coo", "", None, 3, ["csr"], np.array(["csr", "dense"])):
    row("conv_matrix", {"format": value}, (ValueError, TypeError), "format must be one of dense, csr", f"got {value!r}")
for value in (0, -1, np.int64(-2)):
    row("set_num_threads", {"n": value}, ValueError, "n must be at least 1", f"got {value}")
for value in (1.5, NAN, "x", "2", None, True, [2]):
    row("set_num_threads", {"n": value}, TypeError, "n must be an integer", f"got {value!r}")
for value in ("mine", None, Implementation):
    row("register", {"implementation": value}, TypeError, "implementation must be an Implementation", f"{value!r}")
for value in ("sideways", "", None):
    row("register", {"implementation": Implementation(value, "mine", _load)}, (TypeError, ValueError),
        "contraction must be one of forward, adjoint, weight", f"got {value!r}")  # fmt: skip


# ------------------------------------------------------------------------------------------- the tests

RESULTS = {name: function(name)(**BASE[name]) for name in BASE if takes_out(name)}


@pytest.fixture(autouse=True)
def _restore(monkeypatch):
    monkeypatch.setattr(registry, "_table", list(registry._table))
    monkeypatch.setattr(registry, "_loaded", dict(registry._loaded))
    monkeypatch.setattr(threads, "_requested", threads._requested)


def check_message(error, first, *others):
    """One line that can be read, starting with the argument's name and showing what it has to."""
    message = str(error)
    assert message.startswith(first), message
    for fragment in others:
        assert fragment in message, (fragment, message)
    assert "\n" not in message
    assert len(message) <= 400


def label(value):
    text = str(value) if not isinstance(value, np.ndarray) or value.size < 4 else f"{value.dtype}{value.shape}"
    return text.replace(" ", "").replace("\n", "")[:30]


@pytest.mark.parametrize("name", BASE)
def test_calls_that_the_table_spoils_are_right(name):
    function(name)(**BASE[name])


@pytest.mark.parametrize(
    ("name", "given", "exception", "fragments"),
    ROWS,
    ids=[f"{name}-{'-'.join(f'{key}={label(value)}' for key, value in given.items())}" for name, given, *_ in ROWS],
)
def test_wrong_call(name, given, exception, fragments):
    if "backend='cython'" in fragments[0]:
        ready("cython")  # or its message says that it was not built
    arguments = {**BASE[name], **given}
    if name in RESULTS:
        arguments.setdefault("out", np.full_like(RESULTS[name], SENTINEL))
    with pytest.raises(exception) as caught:
        function(name)(**arguments)
    check_message(caught.value, *fragments)
    if name in RESULTS:
        assert (arguments["out"] == SENTINEL).all()


def test_every_gradient_and_both_directions_are_in_the_table():
    functions = {name for name in loopconv.__all__ if name.startswith("conv")}
    assert functions <= {name for name, *_ in ROWS}


# ------------------------------------------------------------------------------------------------ out


def read_only(result):
    out = np.full_like(result, SENTINEL)
    out.flags.writeable = False
    return out


def with_strides(*strides):
    """An `out` of the right shape whose elements share memory."""

    def make(result):
        buffer = np.full(result.size, SENTINEL)
        return np.lib.stride_tricks.as_strided(buffer, result.shape, [*strides, *(8,) * 4][: result.ndim])

    return make


OUT_ROWS = [
    ("flat", np.ravel, ValueError, ("out must have the result's shape {shape}", "got shape ({size},)")),
    ("axis-less", lambda r: r[0].copy(), ValueError, ("out must have the result's shape {shape}", "got shape (")),
    ("axis-more", lambda r: r[None].copy(), ValueError, ("out must have the result's shape {shape}", "got shape (1, ")),
    ("reversed", lambda r: r.T.copy(), ValueError, ("out must have the result's shape {shape}", "got shape (")),
    ("empty", lambda r: r[:0].copy(), ValueError, ("out must have the result's shape {shape}", "got shape (0, ")),
    *(
        (d, lambda r, d=d: r.astype(d), TypeError, ("out must have the result's dtype float64", f"got dtype {d}"))
        for d in ("float32", "float16", "int64", "complex128", "object", "bool")
    ),
    ("list", lambda r: r.tolist(), TypeError, ("out must be a NumPy array", "{shape}", "float64", "got list")),
    ("tuple", lambda r: (r,), TypeError, ("out must be a NumPy array", "{shape}", "float64", "got tuple")),
    ("text", lambda r: "out", TypeError, ("out must be a NumPy array", "{shape}", "float64", "got str")),
    ("number", lambda r: 1.0, TypeError, ("out must be a NumPy array", "{shape}", "float64", "got float")),
    ("false", lambda r: False, TypeError, ("out must be a NumPy array", "{shape}", "float64", "got bool")),
    ("masked", lambda r: np.ma.masked_array(r, True), TypeError, ("out must", "masked")),
    ("read-only", read_only, ValueError, ("out must be writable", "read-only", "{shape}")),
    ("stride-0", with_strides(0, 0, 0, 8), ValueError, ("out must have an element of its own", "strides (0, 0, 0, 8)")),
    ("all-0", with_strides(0, 0, 0, 0), ValueError, ("out must have an element of its own", "strides (0, 0, 0, 0)")),
    ("windows", with_strides(8, 8, 8, 8), ValueError, ("out must have an element of its own", "strides (8, 8, 8, 8)")),
]  # fmt: skip
WITH_OUT = [name for name in PLAIN if name in RESULTS]


def contents(out):
    """A copy of what `out` holds, for any type of it."""
    return np.array(getattr(out, "base", None) if getattr(out, "base", None) is not None else out, copy=True)


@pytest.mark.parametrize("name", WITH_OUT)
@pytest.mark.parametrize(("make", "exception", "fragments"), [r[1:] for r in OUT_ROWS], ids=[r[0] for r in OUT_ROWS])
def test_wrong_out(name, make, exception, fragments):
    result = np.full_like(RESULTS[name], SENTINEL)
    out = make(result)
    before = contents(out)
    with pytest.raises(exception) as caught:
        function(name)(**BASE[name], out=out)
    check_message(caught.value, *(text.format(shape=result.shape, size=result.size) for text in fragments))
    np.testing.assert_array_equal(contents(out), before)


@pytest.mark.parametrize("backend", [None, "python"])
@pytest.mark.parametrize(("name", "argument"), [(name, key) for name in WITH_OUT for key in ARRAYS[name]])
def test_out_that_shares_one_element_with_an_argument(name, argument, backend):
    value, result = BASE[name][argument], RESULTS[name]
    arena = RNG.standard_normal(value.size + result.size - 1)
    before = arena.copy()
    arguments = {**BASE[name], argument: arena[: value.size].reshape(value.shape)}
    out = arena[value.size - 1 :].reshape(result.shape)
    with pytest.raises(ValueError, match=f"^out must not overlap {argument}: ") as caught:
        function(name)(**arguments, out=out, backend=backend)
    check_message(caught.value, "out must not overlap ")
    np.testing.assert_array_equal(arena, before)


def test_out_next_to_an_argument_does_not_overlap():
    arena = np.zeros(X.size + RESULTS["conv"].size)
    arena[: X.size] = X.ravel()
    out = arena[X.size :].reshape(RESULTS["conv"].shape)
    assert loopconv.conv(**{**BASE["conv"], "x": arena[: X.size].reshape(X.shape)}, out=out) is out
    np.testing.assert_array_equal(out, RESULTS["conv"])


def test_out_of_an_integer_result():
    x, w, out = np.ones((1, 1, 5), np.int8), np.ones((1, 1, 3), np.int8), np.full((1, 1, 3), 7, np.int8)
    with pytest.raises(TypeError, match=r"^out must have the result's dtype int64, got dtype int8$"):
        loopconv.conv(x, w, out=out)
    assert (out == 7).all()


# ------------------------------------------------------------------------------------------- the rest


@pytest.mark.parametrize("two", [np.int8(2), np.uint64(2), np.array(2), np.array(2, np.uint8)], ids=repr)
@pytest.mark.parametrize("name", ["conv", "conv_transpose"])
@pytest.mark.parametrize("argument", ["stride", "dilation", "padding", "groups"])
def test_numpy_integers_are_integers(name, argument, two):
    expected = function(name)(**{**BASE[name], argument: 2})
    np.testing.assert_array_equal(function(name)(**{**BASE[name], argument: two}), expected)
    if argument != "groups":
        np.testing.assert_array_equal(function(name)(**{**BASE[name], argument: [two, two]}), expected)


@pytest.mark.parametrize("one", [1.0, True, np.True_, np.float64(1)], ids=repr)
@pytest.mark.parametrize("name", ["conv", "conv_transpose"])
@pytest.mark.parametrize("argument", ["stride", "dilation", "padding", "groups"])
def test_what_equals_a_setting_that_is_kept_is_refused(name, argument, one):
    x, w = np.ones((1, 1, 5, 5)), np.ones((1, 1, 3, 3))
    forms = [lambda n: n, lambda n: (n, n), lambda n: ((n, n), (1, n))]
    for form in forms[: {"groups": 1, "padding": 3}.get(argument, 2)]:
        function(name)(x, w, **{argument: form(1)})
        with pytest.raises(TypeError, match=f"^{argument} must be an integer"):
            function(name)(x, w, **{argument: form(one)})


@pytest.mark.parametrize("one", [1.0, True])
def test_what_equals_a_shape_that_is_kept_is_refused(one):
    grad, w = np.ones((1, 1, 3)), np.ones((1, 1, 3))
    loopconv.conv_input_grad(grad, w, (1, 1, 5))
    with pytest.raises(TypeError, match=r"^input_shape must be a tuple of ints"):
        loopconv.conv_input_grad(grad, w, (1, one, 5))
    loopconv.conv_transpose_input_grad(np.ones((1, 1, 1)), w[..., :1], (1, 1, 1), output_size=(1,))
    with pytest.raises(TypeError, match=r"^output_size must be an integer"):
        loopconv.conv_transpose_input_grad(np.ones((1, 1, 1)), w[..., :1], (1, 1, 1), output_size=(one,))


@pytest.mark.parametrize("code", np.typecodes["All"])
def test_which_dtypes_are_taken(code):
    x = np.zeros((1, 1, 1), code)
    if x.dtype.kind in "biu" or code in "efdFD":
        assert loopconv.conv(x, np.ones((1, 1, 1), np.int8)).shape == (1, 1, 1)
    else:
        with pytest.raises(TypeError, match=r"^x must be of an integer dtype, float"):
            loopconv.conv(x, np.ones((1, 1, 1), np.int8))


def test_a_backend_whose_modules_were_not_built(monkeypatch):
    monkeypatch.setattr(registry, "find_spec", lambda name: None)
    out = np.full_like(RESULTS["conv"], SENTINEL)
    for backend, reason in (("cython", "not built"), ("numba", "not installed"), ("parallel", "not installed")):
        with pytest.raises(ValueError, match=reason) as caught:
            loopconv.conv(**BASE["conv"], out=out, backend=backend)
        check_message(caught.value, f"backend={backend!r} cannot run this call: ")
    assert (out == SENTINEL).all()


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5", " ", "nan"])
@pytest.mark.parametrize("backend", [None, "parallel"])
def test_bad_number_of_threads_in_the_environment(monkeypatch, text, backend):
    monkeypatch.setattr(threads, "_requested", None)
    monkeypatch.setenv("LOOPCONV_NUM_THREADS", text)
    with pytest.raises(ValueError, match=r"^LOOPCONV_NUM_THREADS must be an integer of at least 1") as caught:
        loopconv.get_num_threads()
    check_message(caught.value, "LOOPCONV_NUM_THREADS", f"got {text!r}")
    x, w, out = np.ones((1, 8, 64, 64)), np.ones((8, 8, 3, 3)), np.full((1, 8, 62, 62), SENTINEL)
    with pytest.raises(ValueError, match=r"^LOOPCONV_NUM_THREADS must be"):
        loopconv.conv(x, w, out=out, backend=backend)
    assert (out == SENTINEL).all()


def test_bad_number_of_threads_for_numba_is_named(monkeypatch):
    monkeypatch.setenv("NUMBA_NUM_THREADS", "two")
    with pytest.raises(ValueError, match=r"^NUMBA_NUM_THREADS must be .*'two'"):
        loopconv.get_num_threads()


def test_bad_number_of_threads_in_a_new_process():
    code = "import loopconv; print(loopconv.conv([[1, 2]], [[[1]]])); loopconv.get_num_threads()"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "LOOPCONV_NUM_THREADS": "many"}, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stdout == "[[1 2]]\n"  # too little work for threads
    assert done.stderr.splitlines()[-1].startswith("ValueError: LOOPCONV_NUM_THREADS must be an integer of at least 1")
