"""Tests of the room cuda/ in Numba's simulator, which test_cuda.py runs in a process of their own.

The simulator has to be switched on before Numba is imported: NUMBA_ENABLE_CUDASIM=1 pytest tests/cuda_in_simulator.py
"""

import re
import sys
from itertools import product
from math import prod
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from cuda_checks import RESULT, check
from helpers import literal, random_array, random_integers

import loopconv
from loopconv import geometry, registry
from loopconv.cases import CASES
from loopconv.cuda import driver, foreign
from loopconv.cuda.foreign import Other
from loopconv.cuda.machine import machine
from loopconv.cuda.stages import DTYPES


def size(g):
    """Elements of all arrays."""
    return sum(map(prod, (g.x_shape, g.w_shape, g.y_shape)))


BY_NAME = {case.name: case for case in CASES}
# A simulated thread takes 0.1 ms and more, and a product 10 us; widths of vectors are nothing to these kernels.
SMALL = [
    name for name, case in BY_NAME.items()
    if case.geometry.macs < 4000 and size(case.geometry) < 900 and not name.startswith("width")
] + ["3d-all"]  # fmt: skip
FEW = ("crop", "t-stride-over-kernel", "same-stride-dilation")
WAYS = [(c, name) for c in registry.CONTRACTIONS for name in driver.TEXTBOOK[c]]


def test_the_simulator_is_on():
    assert loopconv.backends()["cuda"] == "ready"
    assert machine.__name__.endswith("simulator")


# ------------------------------------------------------------------------------------ textbook kernels


@pytest.mark.parametrize("name", SMALL)
def test_textbook_kernels_on_the_cases(name):
    for contraction, algorithm in WAYS:
        check(contraction, BY_NAME[name].geometry, "float32", algorithm, with_bias=contraction != "weight")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FEW)
def test_textbook_kernels_in_every_dtype(name, dtype):
    for contraction, algorithm in WAYS:
        if dtype in driver.ONLY.get(algorithm, DTYPES):
            check(contraction, BY_NAME[name].geometry, dtype, algorithm, offset=1)


def test_tiled_kernels_through_the_driver():
    g = BY_NAME["stride-2"].geometry
    for contraction in registry.CONTRACTIONS:
        assert driver.algorithms(contraction, g)[0] == "tiled"
        check(contraction, g, "float32", with_bias=contraction != "weight")


@pytest.mark.parametrize(("contraction", "algorithm"), WAYS)
def test_nan_and_inf_come_out_where_the_sum_has_them(contraction, algorithm):
    g = geometry.conv((1, 2, 7, 8), (2, 1, 2, 1), stride=(3, 2), padding=((1, 0), (-1, 1)), groups=2)
    role = RESULT[contraction]
    marked = 0
    for seed, (name, value) in enumerate(product(sorted(set("xwy") - {role}), (np.nan, np.inf))):
        arrays = {n: random_integers(getattr(g, f"{n}_shape"), "float32", i) for i, n in enumerate("xwy")}
        at = tuple(np.random.default_rng(seed).integers(arrays[name].shape).tolist())
        arrays[name][at] = value
        expected = literal(contraction, g, **arrays).astype("float32")
        marked += np.count_nonzero(~np.isfinite(expected))
        arrays[role].fill(np.nan)
        registry.select(contraction, "cuda", g, np.dtype("float32"), algorithm)(g, **arrays)
        assert np.array_equal(arrays[role], expected, equal_nan=True), f"{value} in {name}{at}"
    assert marked


# ------------------------------------------------------------------------------------ public functions

X, W, BIAS = (random_array(shape, "float32", seed) for seed, shape in enumerate(((2, 4, 6, 5), (6, 2, 3, 2), (6,))))
SETTINGS = {"stride": 2, "padding": 1, "groups": 2}
CALL = {**SETTINGS, "algorithm": "textbook"}  # which is faster in the simulator
Y = loopconv.conv(X, W, BIAS, **SETTINGS)


class Foreign:
    """An array of some library that only has the CUDA array interface; in the simulator, memory is the host's."""

    def __init__(self, array, **described):
        self.array, self.described = array, described

    @property
    def __cuda_array_interface__(self):
        a = self.array
        whole = {"shape": a.shape, "typestr": a.dtype.str, "data": (a.ctypes.data, False), "version": 3}
        return whole | {"strides": None if a.flags.c_contiguous else a.strides} | self.described


@pytest.fixture
def host_memory(monkeypatch):
    """`Foreign` results: Numba's arrays have no CUDA array interface in the simulator."""
    monkeypatch.setattr(
        Other, "make", lambda like, shape: Other.read("made", Foreign(np.full(shape, np.nan, like.dtype)))
    )


def test_numpy_arrays_are_copied_both_ways():
    result = loopconv.conv(X, W, BIAS, backend="cuda", **CALL)
    assert type(result) is np.ndarray
    np.testing.assert_allclose(result, Y, rtol=1e-4, atol=1e-5)
    out = np.full((*Y.shape[:-1], 2 * Y.shape[-1]), np.nan, "float32")[..., ::2]
    assert loopconv.conv(X, W, BIAS, out=out, backend="cuda", **CALL) is out
    assert np.array_equal(out, result)
    assert np.array_equal(loopconv.conv(X[0], W, BIAS, backend="cuda", **CALL), result[0])


@pytest.mark.usefixtures("host_memory")
def test_arrays_of_a_gpu_give_arrays_of_a_gpu():
    x, w, bias = Foreign(X), Foreign(W), Foreign(BIAS)
    result = loopconv.conv(x, w, bias, **CALL)
    assert type(result) is Foreign
    assert np.array_equal(result.array, loopconv.conv(X, W, BIAS, backend="cuda", **CALL))
    out = Foreign(np.full(Y.shape, np.nan, "float32"))
    assert loopconv.conv(x, w, bias, out=out, backend="cuda", **CALL) is out
    assert np.array_equal(out.array, result.array)
    grads = {
        "input": loopconv.conv_input_grad(result, w, X.shape, **CALL),
        "weight": loopconv.conv_weight_grad(result, x, W.shape, **CALL),
        "bias": loopconv.conv_bias_grad(result),
    }
    for name, right in loopconv.conv_grads(result.array, X, W, **SETTINGS)._asdict().items():
        np.testing.assert_allclose(grads[name].array, right, rtol=1e-4, atol=1e-4)
    back = loopconv.conv_transpose(Foreign(result.array[0]), w, **CALL)
    right = loopconv.conv_transpose(result.array[0], W, **SETTINGS)
    np.testing.assert_allclose(back.array, right, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("host_memory")
def test_a_plan_on_a_gpu():
    x, w, bias = Foreign(X), Foreign(W.copy()), Foreign(BIAS)
    for algorithm in ("textbook", "tiled"):
        settings = {**SETTINGS, "algorithm": algorithm}
        plan = loopconv.plan_conv(w, bias, input_shape=X.shape, **settings)
        expected = loopconv.conv(X, W, BIAS, backend="cuda", **settings)
        w.array.fill(0)  # it keeps copies
        assert isinstance(plan, loopconv.Plan)
        assert (plan.algorithm, plan.dtype, plan.output_shape) == (algorithm, "float32", Y.shape)
        assert plan.nbytes >= W.nbytes + BIAS.nbytes
        assert plan(x).array.tobytes() == expected.tobytes()
        out = Foreign(np.full(Y.shape, np.nan, "float32"))
        assert plan(x, out) is out
        assert out.array.tobytes() == expected.tobytes()
        w.array[:] = W
    assert repr(plan) == "<plan_conv (2, 4, 6, 5) -> (2, 6, 3, 3), float32, tiled>"
    with pytest.raises(TypeError, match=r"^x must be an array of the GPU, as the plan's weights are, got ndarray$"):
        plan(X)
    with pytest.raises(ValueError, match=r"^x must have the plan's input shape \(2, 4, 6, 5\), got shape \(4, 6, 5\)$"):
        plan(Foreign(X[0]))


def read_only(array):
    return Foreign(array, data=(array.ctypes.data, True))


REFUSED = [
    (
        {"w": W},
        TypeError,
        "w must be on the GPU like x, got an array of the host; copy it to the GPU, or x to the host",
    ),
    ({"x": X}, TypeError, "x must be on the GPU like w, got an array of the host"),
    ({"bias": list(BIAS)}, TypeError, "bias must be on the GPU like x, got an array of the host"),
    ({"out": Y.copy()}, TypeError, "out must be an array of the GPU like the others, got ndarray"),
    ({"w": Foreign(W.astype(float))}, TypeError, "w must be of dtype float32 like x on a GPU, got dtype float64"),
    ({"x": Foreign(X.astype(int))}, TypeError, "x must be of dtype float32, float64, float16, bfloat16 on a GPU, got"),
    (
        {"x": Foreign(X.astype(">f4"))},
        TypeError,
        "x must be of dtype float32, float64, float16, bfloat16 on a GPU, got dtype >f4",
    ),
    ({"x": Foreign(X[:, :, ::-1])}, ValueError, "x must be contiguous (C order) on a GPU, got an array with other str"),
    ({"x": Foreign(X, mask=X)}, TypeError, "x must not be a masked array"),
    ({"x": Foreign(X[:, :3])}, ValueError, "x must be contiguous"),
    ({"x": Foreign(X[:, :3].copy())}, ValueError, "x must have 4 channels"),
    (
        {"bias": Foreign(BIAS[:5])},
        ValueError,
        "bias must have shape (6,), one value per output channel, got shape (5,)",
    ),
    (
        {"out": Foreign(Y[:1].copy())},
        ValueError,
        "out must have the result's shape (2, 6, 3, 3), got shape (1, 6, 3, 3)",
    ),
    ({"out": Foreign(Y.astype(float))}, TypeError, "out must be of dtype float32 like x on a GPU, got dtype float64"),
    ({"out": read_only(Y.copy())}, ValueError, "out must be writable, got a read-only array of shape (2, 6, 3, 3)"),
    (
        {"backend": "tiled"},
        ValueError,
        "backend must be None or 'cuda' for arrays of a GPU, got 'tiled'; copy them to the",
    ),
    (
        {"algorithm": "winograd2"},
        ValueError,
        "algorithm must be None or one of tiled, textbook for this call on backend",
    ),
    (
        {"precision": "fp8"},
        ValueError,
        "precision must be None or one of tf32 for this call on backend 'cuda', got 'fp8'",
    ),
]


@pytest.mark.usefixtures("host_memory")
@pytest.mark.parametrize(("change", "error", "message"), REFUSED)
def test_what_is_refused(change, error, message):
    given = {"x": Foreign(X), "w": Foreign(W), "bias": Foreign(BIAS), **SETTINGS, **change}
    with pytest.raises(error, match=re.escape(message)):
        loopconv.conv(**given)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"precision": "tf32", "algorithm": "textbook"},
            "precision must be None with algorithm='textbook', got 'tf32'",
        ),
        (
            {"precision": "tf32", "dtype": "float64"},
            "precision must be None for this call on backend 'cuda', got 'tf32'",
        ),
        (
            {"algorithm": "scatter", "dtype": "float16"},
            "algorithm must not be 'scatter' in float16: it is for float32, float64",
        ),
    ],
)
@pytest.mark.usefixtures("host_memory")
def test_choices_that_do_not_go_together(settings, message):
    dtype = settings.get("dtype", "float32")
    x, w, settings = Foreign(Y.astype(dtype)), Foreign(W.astype(dtype)), {**settings}
    settings.pop("dtype", None)
    with pytest.raises(ValueError, match=re.escape(message)):
        loopconv.conv_transpose(x, w, **SETTINGS, **settings)


def test_functions_that_are_of_the_host():
    with pytest.raises(
        TypeError, match=r"^w must be an array of the host for this function, got one of a GPU; copy it first"
    ):
        loopconv.conv_matrix(Foreign(W), (4, 6, 5), groups=2)


@pytest.mark.usefixtures("host_memory")
def test_an_output_over_the_input_is_refused():
    memory = np.ones(64, np.float32)
    x, out = Foreign(memory[:36].reshape(1, 1, 6, 6)), Foreign(memory[20:36].reshape(1, 1, 4, 4))
    with pytest.raises(ValueError, match=r"^out must not overlap x: the result would overwrite it while it is read$"):
        loopconv.conv(x, Foreign(np.ones((1, 1, 3, 3), np.float32)), out=out)


def test_arrays_of_two_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(machine, "device_of", lambda pointer: int(pointer == W.ctypes.data))
    with pytest.raises(ValueError, match=r"^w must be on GPU 0 like x, got an array on GPU 1$"):
        loopconv.conv(Foreign(X), Foreign(W), **SETTINGS)


@pytest.mark.parametrize("dtype", ["int32", "complex64"])
def test_dtypes_of_numpy_arrays_that_no_kernel_holds(dtype):
    with pytest.raises(
        ValueError, match=r"^backend='cuda' cannot run this call: the GPU's kernels hold float32, float64, "
    ):
        loopconv.conv(X.astype(dtype), W.astype(dtype), backend="cuda", **SETTINGS)


def test_float16_of_numpy_is_computed_in_float32():
    x, w = X.astype("float16"), W.astype("float16")
    result = loopconv.conv(x, w, backend="cuda", **CALL)
    assert result.dtype == np.float16
    np.testing.assert_allclose(result, loopconv.conv(x, w, **SETTINGS), rtol=2e-3, atol=1e-3)


def test_numpy_arrays_go_to_no_gpu_unasked(monkeypatch):
    monkeypatch.setattr(driver, "launch", None)
    loopconv.conv(X, W, **SETTINGS)
    with pytest.raises(TypeError):
        loopconv.conv(X, W, backend="cuda", **SETTINGS)


# ------------------------------------------------------------------------------ the libraries, by stand-ins


class Tensor:
    """As much of torch.Tensor as is asked for."""

    is_cuda, requires_grad, dtype, device = True, False, "torch.bfloat16", "cuda:1"

    def __init__(self, shape, contiguous=True):
        self.shape, self.contiguous_, self.memory = shape, contiguous, np.zeros(shape, np.uint16)

    def is_contiguous(self):
        return self.contiguous_

    def contiguous(self):
        return Tensor(self.shape)

    def get_device(self):
        return 1

    def data_ptr(self):
        return self.memory.ctypes.data

    __dlpack_device__ = __cuda_array_interface__ = None


Tensor.__module__ = "torch"


@pytest.fixture
def torch(monkeypatch):
    module = ModuleType("torch")
    module.Tensor, module.is_grad_enabled = Tensor, lambda: True
    module.cuda = SimpleNamespace(current_stream=lambda device: SimpleNamespace(cuda_stream=70 + device))
    module.empty = lambda shape, dtype, device: Tensor(shape)
    monkeypatch.setitem(sys.modules, "torch", module)
    return module


@pytest.mark.usefixtures("torch")
def test_tensors_of_torch():
    tensor = Tensor((2, 3))
    array = foreign.recognised("x", tensor)
    assert (array.pointer, array.shape, array.dtype) == (tensor.data_ptr(), (2, 3), "bfloat16")
    assert (array.device, array.stream, array.nbytes) == (1, 71, 12)
    made = array.library.make(array, (4, 5))
    assert type(array.library.give(made)) is Tensor
    assert (made.shape, made.dtype, made.device, made.stream) == ((4, 5), "bfloat16", 1, 71)
    scattered = Tensor((2, 3), contiguous=False)
    assert foreign.recognised("x", scattered).pointer != scattered.data_ptr()
    with pytest.raises(ValueError, match=r"^out must be contiguous"):
        foreign.recognised("out", scattered)
    tensor.is_cuda = False
    assert foreign.recognised("x", tensor) is None


def test_tensors_that_want_a_gradient(torch):
    tensor = Tensor((2, 3))
    tensor.requires_grad = True
    with pytest.raises(TypeError, match=r"^x must not require a gradient, .*; pass x\.detach\(\)$"):
        foreign.recognised("x", tensor)
    torch.is_grad_enabled = lambda: False
    assert foreign.recognised("x", tensor).pointer == tensor.data_ptr()
