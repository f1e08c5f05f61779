"""The room cuda/: in the simulator, through the assembler, and, with `-m gpu`, on a GPU."""

import os
import re
import shutil
import subprocess
import sys
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from cuda_checks import RESULT, check
from helpers import random_array

import loopconv
from loopconv import geometry, registry
from loopconv.cases import CASES
from loopconv.cuda import gpu
from loopconv.cuda.stages import DTYPES

CAPABILITIES = (8, 0), (9, 0)
X, W = np.ones((1, 1, 6), np.float32), np.ones((1, 1, 3), np.float32)
STATE = loopconv.backends()["cuda"]

needs_compiler = pytest.mark.skipif(
    "numba-cuda is not" in STATE or "libnvvm" in STATE or "bindings" in STATE, reason=f"cannot compile: {STATE}"
)


# ------------------------------------------------------------------------------------------- simulator


@pytest.mark.skipif("numba-cuda is not" in STATE, reason=f"cannot simulate: {STATE}")
def test_what_runs_in_the_simulator():
    tests = Path(__file__).with_name("cuda_in_simulator.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests)]
    environment = {**os.environ, "NUMBA_ENABLE_CUDASIM": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\d+ passed in", done.stdout)


@needs_compiler
@pytest.mark.skipif(not (shutil.which("cc") and sys.platform == "linux"), reason="there is no C compiler for Linux")
@pytest.mark.skipif(STATE == "ready", reason="there is a driver")
def test_the_drivers_side_with_a_stand_in_for_the_driver(tmp_path):
    """Of what an emulated GPU cannot show, the calls of the driver: their arguments, order and errors."""
    source = Path(__file__).with_name("stand_in_driver.c")
    build = ["cc", "-shared", "-fPIC", "-D_GNU_SOURCE", "-o", str(tmp_path / "libcuda.so.1"), str(source), "-ldl"]
    subprocess.run(build, check=True, timeout=60)
    tests = Path(__file__).with_name("cuda_with_stand_in.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env={**os.environ, "LD_LIBRARY_PATH": str(tmp_path)}
    )
    assert done.returncode == 0, done.stdout + done.stderr


# ------------------------------------------------------------------------------------------- assembler

# Bytes of local memory, and of registers spilled there: 64-bit division is a routine that is called.
LOCAL_BYTES = {"make_gather": 80}


@cache
def kernels(capability):
    """{what is compiled: (launch, rooms, dtype)} of everything that the table of cases can launch."""
    from loopconv.cuda import build, driver

    found = {}
    for case, contraction, dtype in product(CASES, registry.CONTRACTIONS, DTYPES):
        for settings, aligned in ways(contraction, case.geometry, dtype, capability):
            plan = driver.plan_of(settings, aligned, capability)
            for launch in plan.launches:
                types = build.memory_types(launch, plan.rooms, dtype)
                found.setdefault((launch.make, launch.constants, types), (launch, plan.rooms, dtype))
    for dtype, (_, summed) in DTYPES.items():
        (launch,) = driver.textbook.sums_plan(2, 3, 4, summed.name).launches
        found[launch.make, launch.constants, dtype] = launch, {}, dtype
    return found


def ways(contraction, g, dtype, capability):
    """All settings of calls of this contraction."""
    from loopconv.cuda import driver, winograd

    for algorithm in driver.algorithms(contraction, g):
        precisions = driver.precisions(contraction, g, dtype) if algorithm == "tiled" else ()
        fits = algorithm != "winograd2" or winograd.fits(contraction, capability)
        if fits and dtype in driver.ONLY.get(algorithm, DTYPES):
            for precision, has_bias, aligned in product((None, *precisions), (False, True), (False, True)):
                yield driver.Settings(contraction, g, dtype, algorithm, precision, has_bias), aligned


@needs_compiler
@pytest.mark.skipif(not shutil.which("ptxas"), reason="ptxas, the assembler, is not on the PATH")
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_textbook_kernels_assemble_without_spills(capability):
    from loopconv.cuda import assembled, build, textbook

    chosen = [kernel for (make, *_), kernel in kernels(capability).items() if make.__module__ == textbook.__name__]
    assert {launch.make.__name__ for launch, *_ in chosen} == {name for name in dir(textbook) if "make_" in name}
    for launch, rooms, dtype in chosen:
        ptx = build.compiled(launch, rooms, dtype, capability)
        registers, stack, spilled = assembled.assemble(ptx.text, capability)
        what = f"{launch.make.__name__} of {dtype}: {stack} bytes of stack, {spilled} spilled"
        assert max(stack, spilled) <= LOCAL_BYTES.get(launch.make.__name__, 0), what
        assert registers * launch.block <= 65536, what


@needs_compiler
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_the_other_kernels_are_in_the_table_that_is_assembled(capability):
    from loopconv.cuda import assembled, textbook

    launched = {make for make, *_ in kernels(capability) if make.__module__ != textbook.__name__}
    assert launched <= {launch.make for launch, *_ in assembled.kernels(capability).values()}
    for launch, *_ in kernels(capability).values():
        assert launch.shared <= 163 << 10  # what a block of compute capability 8.0 may have
        assert 0 < launch.grid < 2**31
        assert launch.block <= 1024


# ------------------------------------------------------------------------------------------ the cache


@pytest.fixture
def fill(monkeypatch, tmp_path):
    """``fill()`` is the PTX of a small kernel by a process that has compiled nothing yet, cached in an empty folder."""
    numba = pytest.importorskip("numba", reason="numba is not installed")
    from loopconv.cuda import build, textbook

    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "cache"))
    (launch, _) = textbook.scatter_plan(geometry.conv(X.shape, W.shape)).launches

    def compiled():
        build._compiled.cache_clear()
        return build.compiled(launch, {}, "float32", (8, 0))

    yield compiled
    build._compiled.cache_clear()


def no_compiler(*_, **__):
    raise AssertionError("compiled again")


@needs_compiler
def test_what_is_compiled_is_kept_on_disk(fill, monkeypatch, tmp_path):
    from loopconv.cuda import build

    first = fill()
    assert f".entry {first.name}(" in first.text
    assert ".target sm_80" in first.text
    (path,) = tmp_path.rglob("*.ptx")
    whole = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(build, "compile_ptx", no_compiler)
        assert fill().name == first.name
        path.write_bytes(whole[:-20])  # as a full disk leaves it
        with pytest.raises(AssertionError, match="compiled again"):
            fill()
    again = fill()
    assert path.read_text() == again.text
    assert fill() == again
    monkeypatch.setattr(build, "source_hash", lambda rooms: "another")
    fill()
    assert len(list(tmp_path.rglob("*.ptx"))) == 2


@needs_compiler
def test_a_folder_that_cannot_be_written(fill, monkeypatch, tmp_path):
    (tmp_path / "cache").write_text("a file")
    monkeypatch.setattr("numba.core.caching.CacheImpl._locator_classes", [])
    assert ".entry" in fill().text
    assert not list(tmp_path.rglob("*.ptx"))


# --------------------------------------------------------------------------------- errors without a GPU


class Driver:
    """A driver that says what it is told to: {call: (status, value)}."""

    def __init__(self, **calls):
        self.calls = calls

    def __getattr__(self, name):
        real = pytest.importorskip("cuda.bindings.driver", reason=STATE)
        if not name.startswith("cu"):
            return getattr(real, name)
        status, *values = self.calls.get(name, (0,))
        return lambda *_: (real.CUresult(status), *values)


@pytest.fixture
def driver_says(monkeypatch):
    """A function that puts a `Driver` in place; it is asked anew whether there is a GPU."""

    def says(**calls):
        for function in (gpu.count, gpu.capability, gpu._handle, gpu._context):
            function.cache_clear()
        monkeypatch.setattr(gpu, "_found", False)
        monkeypatch.setattr(gpu, "_missing_toolkit", lambda: None)
        monkeypatch.setattr(gpu, "driver", Driver(**calls))

    yield says
    for function in (gpu.count, gpu.capability, gpu._handle, gpu._context):
        function.cache_clear()


NO_GPU = [
    ({"cuInit": (100,)}, "the NVIDIA driver finds no GPU"),
    ({"cuDeviceGetCount": (0, 0)}, "the NVIDIA driver finds no GPU"),
    ({"cuInit": (999,), "cuGetErrorString": (0, b"unknown error")},
     "the NVIDIA driver does not start: CUDA_ERROR_UNKNOWN, unknown error"),
    ({"cuDeviceGetCount": (0, 1), "cuDeviceGet": (0, 0), "cuDeviceGetAttribute": (0, 7)},
     "the GPU has compute capability 7.7, the kernels need 8.0"),
]  # fmt: skip


@needs_compiler
@pytest.mark.parametrize(("calls", "reason"), NO_GPU)
def test_why_there_is_no_gpu(calls, reason, driver_says, monkeypatch):
    driver_says(**calls)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert loopconv.backends()["cuda"] == reason
    with pytest.raises(ValueError, match=re.escape(f"backend='cuda' cannot run this call: {reason}") + "$"):
        loopconv.conv(X, W, backend="cuda")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    hidden = " (CUDA_VISIBLE_DEVICES is '')" if "finds" in reason else ""
    assert loopconv.backends()["cuda"] == reason + hidden


@needs_compiler
def test_a_gpu_that_is_there(driver_says):
    driver_says(cuDeviceGetCount=(0, 1), cuDeviceGet=(0, 0), cuDeviceGetAttribute=(0, 9))
    assert loopconv.backends()["cuda"] == "ready"


@needs_compiler
@pytest.mark.skipif(STATE == "ready", reason="there is a GPU")
def test_no_driver():
    reason = "there is no NVIDIA driver (libcuda was not found); a GPU of NVIDIA and its driver are needed"
    if "libcuda" in STATE:
        assert reason == STATE
    with pytest.raises(ValueError, match=re.escape(f"backend='cuda' cannot run this call: {STATE}")):
        loopconv.conv(X, W, backend="cuda")


def test_without_numba_cuda(monkeypatch):
    find = registry.find_spec
    monkeypatch.setattr(registry, "find_spec", lambda name: None if name == "numba_cuda" else find(name))
    monkeypatch.delitem(sys.modules, "numba_cuda", raising=False)
    reason = "numba-cuda is not installed; pip install 'loopconv[cuda]'"
    assert loopconv.backends()["cuda"] == reason
    with pytest.raises(ValueError, match=re.escape(f"backend='cuda' cannot run this call: {reason}")):
        loopconv.conv_transpose(X, W, backend="cuda")


def test_without_the_compiler_library(monkeypatch):
    pathfinder = pytest.importorskip("cuda.pathfinder", reason=STATE)

    def not_found(name):
        raise pathfinder.DynamicLibNotFoundError(f"no {name}")

    monkeypatch.setattr(pathfinder, "load_nvidia_dynamic_lib", not_found)
    reason = "NVIDIA's compiler library libnvvm was not found; pip install 'loopconv[cuda]' brings it"
    assert gpu._missing_toolkit() == reason


def test_precision_is_for_the_backend_that_has_it():
    with pytest.raises(ValueError, match=r"^precision must be None for this call on backend 'numba', got 'tf32'$"):
        loopconv.conv(X, W, backend="numba", precision="tf32")
    with pytest.raises(ValueError, match=r"^precision must be None for this call on backend 'tiled', got 'tf32'$"):
        loopconv.plan_conv(W, input_shape=X.shape, precision="tf32")


FAILURES = [
    (2, MemoryError, "the GPU has no memory left for 12 bytes; free arrays there, or use a smaller batch"),
    (222, RuntimeError, "the GPU could not do it: 12 bytes: CUDA_ERROR_UNSUPPORTED_PTX_VERSION, because; its driver is "
     "older than the compiler: update it, or"),
    (700, RuntimeError, "the GPU could not do it: 12 bytes: CUDA_ERROR_ILLEGAL_ADDRESS, because; an earlier kernel in "
     "this process failed"),
    (1, RuntimeError, "the GPU could not do it: 12 bytes: CUDA_ERROR_INVALID_VALUE, because"),
]  # fmt: skip


@needs_compiler
@pytest.mark.parametrize(("status", "error", "message"), FAILURES)
def test_what_the_driver_reports(status, error, message, driver_says):
    driver_says(cuMemAllocAsync=(status, 0), cuGetErrorString=(0, b"because"))
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        gpu.allocate(12, 0)


@needs_compiler
def test_a_launch_that_fails_says_so_at_the_call(driver_says):
    from loopconv.cuda import textbook

    driver_says(cuLaunchKernel=(701,), cuGetErrorString=(0, b"too many resources"))
    (launch,) = textbook.forward_plan(geometry.conv(X.shape, W.shape)).launches
    message = (
        "the launch of make_forward with 1 blocks of 128 threads and 0 bytes: CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES, too"
    )
    with pytest.raises(RuntimeError, match=re.escape(message)):
        gpu.start(0, launch, (0, 0, 0, 0, 0), 0)


# --------------------------------------------------------------------------------------------- on a GPU

on_gpu = [pytest.mark.gpu, pytest.mark.skipif(STATE != "ready" or gpu.is_simulated(), reason=f"no GPU: {STATE}")]


def gpu_test(function):
    return on_gpu[0](on_gpu[1](function))


@gpu_test
@pytest.mark.parametrize("contraction", registry.CONTRACTIONS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_kernel_on_every_case(case, contraction):
    for dtype in DTYPES:
        for settings, aligned in ways(contraction, case.geometry, dtype, gpu.capability(0)):
            with_bias = settings.has_bias and contraction != "weight"
            check(contraction, case.geometry, dtype, settings.algorithm, settings.precision, with_bias, 1 - aligned)


LARGE = {
    "3x3": geometry.conv((8, 96, 33, 47), (130, 96, 3, 3), padding=1),
    "stride": geometry.conv((4, 64, 57, 57), (64, 64, 3, 3), stride=2, padding=1),
    "pointwise": geometry.conv((4, 128, 28, 28), (256, 128, 1, 1)),
    "volume": geometry.conv((2, 16, 12, 17, 19), (32, 16, 3, 3, 3), padding=1),
    "depthwise": geometry.conv((4, 64, 56, 56), (64, 1, 5, 5), groups=64, stride=2, padding=2),
    "groups": geometry.conv((4, 128, 28, 28), (128, 4, 3, 3), groups=32, padding=1),
    "few pixels": geometry.conv((1, 512, 7, 7), (512, 512, 3, 3), padding=1),
    "long": geometry.conv((2, 32, 100_003), (48, 32, 9), dilation=4),
}


@gpu_test
@pytest.mark.parametrize("contraction", registry.CONTRACTIONS)
@pytest.mark.parametrize("g", LARGE.values(), ids=LARGE)
def test_tuned_kernels_on_larger_arrays(g, contraction):
    for dtype in DTYPES:
        check(contraction, g, dtype)
    check(contraction, g, "float32", precision="tf32")
    from loopconv.cuda import driver

    if "winograd2" in driver.algorithms(contraction, g):
        check(contraction, g, "float32", "winograd2")


@gpu_test
@pytest.mark.parametrize("contraction", registry.CONTRACTIONS)
def test_each_run_gives_the_same_bits(contraction):
    g, role = LARGE["few pixels"], RESULT[contraction]
    arrays = {n: random_array(getattr(g, f"{n}_shape"), "float32", i) for i, n in enumerate("xwy")}
    bits = set()
    for _ in range(5):
        arrays[role].fill(np.nan)
        registry.select(contraction, "cuda", g, np.dtype("float32"))(g, **arrays)
        bits.add(arrays[role].tobytes())
    assert len(bits) == 1


@gpu_test
def test_past_2_to_31_elements():
    torch = pytest.importorskip("torch", reason="makes the large array")
    if torch.cuda.mem_get_info()[0] < 12 << 30:
        pytest.skip("the GPU has less than 12 GiB to spare")
    far = 2**31
    x = torch.zeros(1, 1, far + 1, device="cuda")
    x[0, 0, 0], x[0, 0, -1] = 3, 5
    two, grad = torch.full((1, 1, 1), 2.0, device="cuda"), torch.tensor([[[7.0, 11.0]]], device="cuda")
    assert loopconv.conv(x, two, stride=far).tolist() == [[[6, 10]]]
    assert loopconv.conv_weight_grad(grad, x, (1, 1, 1), stride=far).tolist() == [[[76]]]
    assert loopconv.conv(x, torch.tensor([[[2.0, 10.0]]], device="cuda"), dilation=far).tolist() == [[[56]]]
    back = loopconv.conv_input_grad(grad, two, x.shape, stride=far, out=x)
    assert (back[0, 0, 0].item(), back[0, 0, -1].item(), torch.count_nonzero(back).item()) == (14, 22, 2)


# Names of libraries, and how they take a NumPy array and give one.
LIBRARIES = {
    "torch": (lambda m, a: m.as_tensor(a, device="cuda"), lambda a: a.cpu().numpy()),
    "cupy": (lambda m, a: m.asarray(a), lambda a: a.get()),
    "jax": (lambda m, a: m.device_put(a, m.devices("gpu")[0]), np.asarray),
    "numba.cuda": (lambda m, a: m.to_device(a), lambda a: a.copy_to_host()),
}


@gpu_test
@pytest.mark.parametrize("name", LIBRARIES)
def test_arrays_of_libraries(name):
    module, (put, get) = pytest.importorskip(name, reason=f"{name} is not installed"), LIBRARIES[name]
    x, w, bias = (random_array(shape, "float32", i) for i, shape in enumerate(((2, 3, 9, 8), (4, 3, 3, 3), (4,))))
    right = loopconv.conv(x, w, bias, padding=1)
    for _ in range(20):  # memory that is given back too early would be used again
        y = loopconv.conv(*(put(module, a) for a in (x, w, bias)), padding=1)
        assert type(y).__module__.partition(".")[0].startswith(name.partition(".")[0][:3])
        np.testing.assert_allclose(get(y), right, rtol=1e-4, atol=1e-5)
    grads = loopconv.conv_grads(y, put(module, x), put(module, w), padding=1)
    for gradient, expected in zip(grads, loopconv.conv_grads(right, x, w, padding=1)):
        np.testing.assert_allclose(get(gradient), expected, rtol=1e-3, atol=1e-3)


@gpu_test
def test_streams_and_graphs():
    torch = pytest.importorskip("torch", reason="captures a graph")
    x, w = torch.randn(4, 16, 30, 30, device="cuda"), torch.randn(32, 16, 3, 3, device="cuda")
    plan = loopconv.plan_conv(w, input_shape=x.shape, padding=1)
    out, stream = torch.full_like(plan(x), torch.nan), torch.cuda.Stream()
    right = torch.nn.functional.conv2d(x.double(), w.double(), padding=1)
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10**8)
        assert not stream.query()
        plan(x, out)
        assert not stream.query()  # nobody waited
    stream.synchronize()
    torch.testing.assert_close(out.double(), right, rtol=1e-4, atol=1e-4)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        plan(x, out)
    x.mul_(2)
    out.fill_(torch.nan)
    graph.replay()
    torch.testing.assert_close(out.double(), 2 * right, rtol=1e-4, atol=1e-4)


@gpu_test
def test_out_of_memory():
    with pytest.raises(MemoryError, match=r"^the GPU has no memory left for \d+ bytes; free arrays there"):
        loopconv.conv(np.zeros((1, 1, 1), np.float32), X[:, :, :1], padding=2**40, backend="cuda")
