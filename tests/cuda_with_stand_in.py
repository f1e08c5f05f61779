"""The driver's side of the room cuda/ against a stand-in for NVIDIA's driver, which test_cuda.py builds and loads.

Memory of its GPU is the host's, and launches are looked at here: which calls are made, with what, in which order. In
the last tests the kernels are run, by ptx_machine.py.
"""

import ctypes
import gc
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import product
from threading import Barrier
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from cuda.core import Buffer
from cuda.core.utils import StridedMemoryView
from cuda_checks import TF32, check
from helpers import assert_within, random_array
from ptx_machine import Memory, compiled

import loopconv
from loopconv import geometry, registry
from loopconv.cases import CASES
from loopconv.cuda import driver, gpu
from loopconv.cuda.foreign import Other
from loopconv.cuda.stages import DTYPES

LIBRARY = ctypes.CDLL("libcuda.so.1")
LIBRARY.stand_in_calls.restype = ctypes.c_char_p
LIBRARY.stand_in_live.restype = ctypes.c_long
LIBRARY.stand_in_code.restype = ctypes.c_char_p
LIBRARY.stand_in_memory.restype = ctypes.c_size_t
LAUNCHED = ctypes.CFUNCTYPE(
    None, ctypes.c_char_p, *[ctypes.c_uint] * 3, ctypes.c_void_p, ctypes.POINTER(ctypes.POINTER(ctypes.c_void_p))
)

X, W, BIAS = (random_array(shape, "float32", seed) for seed, shape in enumerate(((2, 3, 9, 8), (4, 3, 3, 3), (4,))))
MORE = np.concatenate([W, W])  # result channels that tiles are for
SETTINGS = {"padding": 1, "algorithm": "textbook"}
Y = loopconv.conv(X, W, BIAS, padding=1)


def forgotten():
    """The calls since this was last asked, line by line."""
    calls = LIBRARY.stand_in_calls().decode().splitlines()
    LIBRARY.stand_in_forget()
    return calls


@pytest.fixture(autouse=True)
def kernels():
    """The launches, which compute what the textbook kernel of forward does."""
    seen = []

    def launched(name, grid, block, shared, stream, arguments):
        seen.append((name.decode(), grid, block, shared, stream))
        if "forward" in seen[-1][0]:
            x, w, bias, y = (view(arguments[i][0], a) for i, a in enumerate((X, W, BIAS, Y)))
            y[...] = loopconv.conv(x, w, bias, padding=1)
            assert np.array_equal(view(arguments[4][0], np.zeros(7, np.int64)), [2, 1, 4, 3, 1, 9, 8])

    function = LAUNCHED(launched)
    LIBRARY.stand_in_launched(function)
    forgotten()
    yield seen
    LIBRARY.stand_in_launched(LAUNCHED())


def view(address, like):
    size = like.nbytes
    return np.frombuffer((ctypes.c_char * size).from_address(address), like.dtype).reshape(like.shape)


class Foreign:
    """An array of some library that works on `stream`."""

    def __init__(self, array, stream=7):
        self.array, self.stream = np.ascontiguousarray(array), stream

    @property
    def __cuda_array_interface__(self):
        a = self.array
        memory = {"data": (a.ctypes.data, False), "stream": self.stream, "version": 3}
        return {"shape": a.shape, "typestr": a.dtype.str, **memory}


def test_the_stand_in_is_a_gpu():
    assert loopconv.backends()["cuda"] == "ready"
    assert (gpu.count(), gpu.capability(1), gpu.driver_version()) == (2, (9, 0), "13.0")
    assert gpu.description(1) == "Stand-in 1, compute capability 9.0, 2 GiB"


def test_numpy_arrays(kernels):
    y = loopconv.conv(X, W, BIAS, backend="cuda", **SETTINGS)
    np.testing.assert_array_equal(y, Y)
    (name, grid, block, shared, stream) = kernels[0]
    assert "forward" in name
    assert (grid, block, shared, stream) == (-(-Y.size // 128), 128, 0, None)
    forgotten()
    live = LIBRARY.stand_in_live()
    loopconv.conv(X, W, BIAS, backend="cuda", **SETTINGS)
    assert LIBRARY.stand_in_live() == live
    sizes = [a.nbytes for a in (BIAS, X, W)]
    copies = [line for size in sizes for line in (f"alloc {size} on 0", f"in {size} on 0")]
    end = [f"alloc {Y.nbytes} on 0", "launch on 0", f"out {Y.nbytes} on 0", "wait 0", *["free on 0"] * 4]
    assert forgotten() == ["push 0", *copies, *end, "pop"]


def test_arrays_of_a_gpu_are_neither_copied_nor_waited_for(kernels):
    x, w, bias, out = (Foreign(a) for a in (X, W, BIAS, np.full_like(Y, np.nan)))
    loopconv.conv(x, w, bias, out=out, **SETTINGS)
    forgotten()
    out.array.fill(np.nan)
    assert loopconv.conv(x, w, bias, out=out, **SETTINGS) is out
    np.testing.assert_array_equal(out.array, Y)
    assert forgotten() == ["push 0", "launch on 7", "pop"]
    x.stream = 8
    loopconv.conv(x, w, bias, out=out, **SETTINGS)
    assert forgotten() == ["push 0", "record on 8", "7 follows", "launch on 7", "pop"]


def test_tuned_kernels_get_their_rooms_and_shared_memory(kernels):
    x, w, out = Foreign(X), Foreign(MORE), Foreign(np.zeros((2, 8, 9, 8), np.float32))
    loopconv.conv(x, w, out=out, padding=1)
    kernels.clear()
    forgotten()
    loopconv.conv(x, w, out=out, padding=1)
    names = [name for name, *_ in kernels]
    assert len(names) > 1
    assert all(stream == 7 for *_, stream in kernels)
    assert [re.sub(r"\d+ on", "n on", call) for call in forgotten()] == [
        "push 0", "alloc n on 7", *["launch on 7"] * len(names), "free on 7", "pop",
    ]  # fmt: skip


@pytest.mark.parametrize("algorithm", ["textbook", "tiled"])
def test_a_plan_only_launches(algorithm, kernels):
    plan = loopconv.plan_conv(Foreign(W), Foreign(BIAS), input_shape=X.shape, padding=1, algorithm=algorithm)
    x, out = Foreign(X), Foreign(np.zeros_like(Y))
    forgotten()
    kernels.clear()
    assert plan(x, out) is out
    assert not any("pack" in name for name, *_ in kernels)  # done when the plan was made
    assert set(forgotten()) == {"push 0", "launch on 7", "pop"}
    x.stream = out.stream = 5  # its buffers are busy on the other stream
    plan(x, out)
    assert forgotten()[:4] == ["push 0", "record on 7", "5 follows", "launch on 5"]
    x.stream = out.stream = 99  # which is being captured, and cannot wait for what is outside
    plan(x, out)
    assert forgotten() == ["push 0", *["launch on 99"] * len({name for name, *_ in kernels}), "pop"]


def test_threads_do_not_share_the_arguments_of_a_launch():
    given = [(Foreign(X * (1 + i)), Foreign(np.zeros_like(Y))) for i in range(4)]
    w, bias = Foreign(W), Foreign(BIAS)
    plan = loopconv.plan_conv(w, bias, input_shape=X.shape, **SETTINGS)
    meeting = Barrier(len(given), timeout=60)

    def launched(name, grid, block, shared, stream, arguments):
        meeting.wait()  # now all of them are launching
        view(arguments[3][0], Y)[...] = view(arguments[0][0], X).sum()

    def calls(x, out):
        for call in (plan, partial(loopconv.conv, w=w, bias=bias, **SETTINGS)) * 3:
            call(x, out=out)
            assert (out.array == x.array.sum()).all()

    function = LAUNCHED(launched)
    LIBRARY.stand_in_launched(function)
    with ThreadPoolExecutor(len(given)) as threads:
        for done in [threads.submit(calls, *pair) for pair in given]:
            done.result()
    LIBRARY.stand_in_launched(LAUNCHED())


def test_another_implementation_is_taken_at_once(monkeypatch):
    x, w, out = Foreign(X), Foreign(W), Foreign(np.zeros_like(Y))
    loopconv.conv(x, w, out=out, padding=1)
    monkeypatch.setattr(registry, "_table", list(registry._table))
    monkeypatch.setattr(registry, "_loaded", dict(registry._loaded))
    seen = []
    registry.register(registry.Implementation("forward", "cuda", lambda: lambda g, x, w, y: seen.append(y.owner)))
    loopconv.conv(x, w, out=out, padding=1)
    assert seen == [out]
    registry.on_gpu.cache_clear()


def test_arrays_that_begin_anywhere(kernels):
    plan = loopconv.plan_conv(Foreign(W), input_shape=X.shape, padding=1)
    memory = np.zeros(X.size + 1, np.float32)
    x, out = Foreign(X), Foreign(np.zeros_like(Y))
    x.array = memory[1:].reshape(X.shape)
    assert plan(x, out) is out
    assert loopconv.conv(x, Foreign(W), out=out, padding=1) is out


def test_out_of_memory():
    x, w, out = Foreign(X), Foreign(MORE), Foreign(np.zeros((2, 8, 9, 8), np.float32))
    loopconv.conv(x, w, out=out, padding=1)
    live = LIBRARY.stand_in_live()
    LIBRARY.stand_in_fail(2)
    with pytest.raises(
        MemoryError, match=r"^the GPU has no memory left for \d+ bytes; free arrays there, or use a small"
    ):
        loopconv.conv(x, w, out=out, padding=1)
    assert LIBRARY.stand_in_live() == live
    assert loopconv.conv(x, w, out=out, padding=1) is out


def test_a_launch_that_fails():
    x, w, bias, out = (Foreign(a) for a in (X, W, BIAS, np.zeros_like(Y)))
    loopconv.conv(x, w, bias, out=out, **SETTINGS)
    LIBRARY.stand_in_fail(701)
    with pytest.raises(
        RuntimeError, match="launch of make_forward with 5 blocks of 128 threads and 0 bytes: CUDA_ERROR_L"
    ):
        loopconv.conv(x, w, bias, out=out, **SETTINGS)


def test_a_driver_that_is_older_than_the_compiler():
    gpu.loaded.cache_clear()
    driver.ready.cache_clear()
    x, w, out = Foreign(X), Foreign(W), Foreign(np.zeros_like(Y))
    gpu.zeros(0, 64)  # or its memory would be what fails
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu, "kept", lambda device, source: LIBRARY.stand_in_fail(222))
        with pytest.raises(
            RuntimeError, match=r"CUDA_ERROR_UNSUPPORTED_PTX_VERSION, .*; its driver is older than the comp"
        ):
            loopconv.conv(x, w, out=out, **SETTINGS)


class JaxArray:
    """What JAX's arrays have: DLPack, in which the other side says which of its streams has to wait."""

    def __init__(self, view):
        self.view, self.dtype = view, view.dtype

    def __dlpack_device__(self):
        return self.view.__dlpack_device__()

    def __dlpack__(self, *, stream, **wanted):
        assert stream == 1  # the default one, on which kernels are launched
        return self.view.__dlpack__(stream=-1, **wanted)


JaxArray.__module__ = "jaxlib.xla_extension"


def jax_array(array):
    memory = gpu.kept(0, array)
    buffer = Buffer.from_handle(memory.pointer, array.nbytes, owner=memory)
    return JaxArray(StridedMemoryView.from_buffer(buffer, array.shape, dtype=array.dtype))


def test_arrays_of_jax(monkeypatch):
    jax = ModuleType("jax")
    jax.Array = JaxArray
    jax.dlpack = SimpleNamespace(from_dlpack=lambda made: JaxArray(StridedMemoryView.from_dlpack(made, stream_ptr=33)))
    monkeypatch.setitem(sys.modules, "jax", jax)
    x, w, bias = map(jax_array, (X, W, BIAS))
    loopconv.conv(x, w, bias, **SETTINGS)
    gc.collect()
    live = LIBRARY.stand_in_live()
    forgotten()
    y = loopconv.conv(x, w, bias, **SETTINGS)
    assert type(y) is JaxArray
    np.testing.assert_array_equal(view(y.view.ptr, Y), Y)
    calls = forgotten()
    assert calls[-4:] == ["push 0", "record on 1", "33 follows", "pop"]  # JAX's stream waits, and nobody else
    assert not any("wait" in call for call in calls)
    assert LIBRARY.stand_in_live() == live + 1
    del y
    gc.collect()
    assert LIBRARY.stand_in_live() == live
    with pytest.raises(
        TypeError, match=r"^out must be an array that can be written, got one of JAX, which cannot; leave it"
    ):
        loopconv.conv(x, w, bias, out=x, **SETTINGS)


def test_the_other_gpu_is_current_again_afterwards():
    with gpu.current(1):
        assert gpu.current_device() == 1
        with gpu.current(1):
            assert forgotten() == ["push 1"]  # and not twice
        assert gpu.current_device() == 1
    assert gpu.current_device() == 0  # the first, as there is none


def test_the_bias_gradient(kernels, monkeypatch):
    def make(like, shape):
        return Other.read("made", Foreign(np.zeros(shape, like.dtype)))

    monkeypatch.setattr(Other, "make", make)
    result = loopconv.conv_bias_grad(Foreign(Y))
    assert type(result) is Foreign
    assert result.array.shape == (4,)
    assert [(grid, block, stream) for _, grid, block, _, stream in kernels] == [(4, 128, 7)]


# ------------------------------------------------------------------------------------ with the kernels' work


@pytest.fixture
def at_work(kernels):
    """Kernels that do what their PTX says, with the memory of the GPU that their arguments are in."""

    def launched(name, grid, block, shared, stream, arguments):
        kernel = compiled(LIBRARY.stand_in_code().decode())
        addresses = [arguments[i][0] for i in range(len(kernel.translation.parameters))]
        kernel.run_at(addresses, [memory_at(address) for address in addresses], grid, block, shared)
        kernels.append((name.decode(), grid, block, shared, stream))

    function = LAUNCHED(launched)
    LIBRARY.stand_in_launched(function)
    yield kernels
    LIBRARY.stand_in_launched(LAUNCHED())


def memory_at(address):
    first = ctypes.c_uint64(address)
    size = LIBRARY.stand_in_memory(ctypes.byref(first))
    assert size
    return Memory(first.value, size, True)


@pytest.mark.parametrize("settings", [{}, {"algorithm": "textbook"}, {"precision": "tf32"}], ids=str)
def test_numpy_arrays_are_convolved(settings, at_work):
    sizes = {"padding": 1, "stride": (2, 1)}
    g, y = geometry.conv(X.shape, W.shape, **sizes), loopconv.conv(X, W, BIAS, **sizes)
    for contraction, function, arrays in (
        ("forward", loopconv.conv, (X, W, BIAS)),
        ("adjoint", loopconv.conv_transpose, (y, W, BIAS[:3])),
        ("adjoint", loopconv.conv_input_grad, (y, W, X.shape)),
        ("weight", loopconv.conv_weight_grad, (y, X, W.shape)),
    ):
        at_work.clear()
        got = function(*arrays, **sizes, **settings, backend="cuda")
        assert at_work
        expected = function(*(a.astype(float) if isinstance(a, np.ndarray) else a for a in arrays), **sizes)
        size = function(*(np.abs(a) if isinstance(a, np.ndarray) else a for a in arrays), **sizes)
        allowed = TF32 if "precision" in settings else registry.tolerance(g, contraction, np.dtype(np.float32))
        assert_within(got, expected, allowed * size, function.__name__)


@pytest.mark.parametrize("contraction", registry.CONTRACTIONS)
@pytest.mark.parametrize("name", ["3d-all"])
def test_arrays_of_a_gpu_are_convolved(name, contraction, at_work):
    (g,) = (case.geometry for case in CASES if case.name == name)
    for dtype, algorithm, offset in product(DTYPES, driver.algorithms(contraction, g), (0, 1)):
        if dtype in driver.ONLY.get(algorithm, DTYPES):
            check(contraction, g, dtype, algorithm, None, contraction != "weight", offset)
