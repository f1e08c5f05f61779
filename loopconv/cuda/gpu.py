"""The driver's side: whether there is a GPU, memory, streams, and what its errors mean. Numba is not imported here."""

import os
import sys
from array import array
from contextlib import contextmanager, nullcontext
from functools import cache
from importlib import import_module
from struct import Struct

import numpy as np

try:
    from cuda.bindings import driver
except ImportError:  # without the extra `cuda`; missing() says so
    driver = None

# The oldest that the kernels are compiled for: bfloat16 and asynchronous copies begin with it.
LEAST_CAPABILITY = (8, 0)

INSTALL = "pip install 'loopconv[cuda]'"


def is_simulated():
    """Whether Numba's simulator stands in for the GPU, which has to be said before Numba is imported."""
    config = sys.modules.get("numba.core.config")
    return bool(config.ENABLE_CUDASIM) if config else os.environ.get("NUMBA_ENABLE_CUDASIM", "0") not in ("", "0")


_found = False


def missing():
    """Why no kernel can run here; None where one can."""
    global _found
    if not (_found or is_simulated()):
        if reason := _missing_toolkit() or _missing_device():
            return reason
        _found = True
    return None


def _missing_toolkit():
    """What of the compiler is not there."""
    try:
        from cuda.pathfinder import load_nvidia_dynamic_lib
    except ImportError:
        return f"the CUDA bindings for Python are not installed; {INSTALL}"
    try:
        load_nvidia_dynamic_lib("nvvm")
    except RuntimeError:
        return f"NVIDIA's compiler library libnvvm was not found; {INSTALL} brings it"
    return None


def _missing_device():
    """What of driver and GPU is not there."""
    try:
        status = driver.cuInit(0)[0]
    except RuntimeError:
        return "there is no NVIDIA driver (libcuda was not found); a GPU of NVIDIA and its driver are needed"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    hidden = "" if visible is None else f" (CUDA_VISIBLE_DEVICES is {visible!r})"
    if status == driver.CUresult.CUDA_ERROR_NO_DEVICE or (not status and not count()):
        return f"the NVIDIA driver finds no GPU{hidden}"
    if status:
        return f"the NVIDIA driver does not start: {_name(status)}"
    if all(capability(device) < LEAST_CAPABILITY for device in range(count())):
        return f"the GPU has compute capability {_dotted(capability(0))}, the kernels need {_dotted(LEAST_CAPABILITY)}"
    return None


def _dotted(version):
    return ".".join(map(str, version))


# ----------------------------------------------------------------------------------------------- errors


def done(result, doing):
    """What a call of the driver returned besides its status, or the error that the status means."""
    if result[0]:
        raise problem(result[0], doing)
    return result[1] if len(result) == 2 else None


def problem(status, doing):
    """The error to raise: which call it was, what the driver said, and what can be done."""
    if status == driver.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
        return MemoryError(f"the GPU has no memory left for {doing}; free arrays there, or use a smaller batch")
    remedy = REMEDIES.get(status.name, "")
    return RuntimeError(f"the GPU could not do it: {doing}: {_name(status)}{remedy}")


REMEDIES = {
    "CUDA_ERROR_UNSUPPORTED_PTX_VERSION": "; its driver is older than the compiler: update it, or install "
    "an nvidia-nvvm of the CUDA version that nvidia-smi shows",
    "CUDA_ERROR_ILLEGAL_ADDRESS": "; an earlier kernel in this process failed, after which it has to be started again",
    "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED": "; make the first call, which compiles, before the capture",
}


def _name(status):
    known, text = driver.cuGetErrorString(status)
    return status.name if known or text is None else f"{status.name}, {text.decode()}"


# ---------------------------------------------------------------------------------------------- devices


@cache
def count():
    return done(driver.cuDeviceGetCount(), "counting GPUs")


@cache
def capability(device):
    """(major, minor)"""
    of, prefix = driver.CUdevice_attribute, "CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_"
    return tuple(
        done(driver.cuDeviceGetAttribute(getattr(of, prefix + part), _handle(device)), f"asking GPU {device}")
        for part in ("MAJOR", "MINOR")
    )


def description(device):
    """Name, compute capability and memory, in words."""
    name = done(driver.cuDeviceGetName(256, _handle(device)), f"asking GPU {device}")
    size = done(driver.cuDeviceTotalMem(_handle(device)), f"asking GPU {device}")
    text = name.split(b"\0")[0].decode()
    return f"{text}, compute capability {_dotted(capability(device))}, {size / 2**30:.0f} GiB"


def clocks(device):
    """Hz of the processors, Hz of the memory, and bits of its bus: the most that the GPU is made for."""
    of = driver.CUdevice_attribute
    names = of.CU_DEVICE_ATTRIBUTE_CLOCK_RATE, of.CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE
    khz = [done(driver.cuDeviceGetAttribute(name, _handle(device)), f"asking GPU {device}") for name in names]
    width = driver.cuDeviceGetAttribute(of.CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH, _handle(device))
    return 1e3 * khz[0], 1e3 * khz[1], done(width, f"asking GPU {device}")


def driver_version():
    """The CUDA version that the driver supports, as text."""
    number = done(driver.cuDriverGetVersion(), "asking the driver")
    return f"{number // 1000}.{number % 1000 // 10}"


@cache
def _handle(device):
    return done(driver.cuDeviceGet(device), f"asking for GPU {device}")


@cache
def _context(device):
    """The address of the context that all libraries share."""
    return int(done(driver.cuDevicePrimaryCtxRetain(_handle(device)), f"starting GPU {device}"))


def current(device):
    """``with current(device):`` is on that GPU, and afterwards on the one from before."""
    context = _context(device)
    return STAYS if int(done(driver.cuCtxGetCurrent(), "asking")) == context else changed(context)


STAYS = nullcontext()


@contextmanager
def changed(context):
    """The same for a context that is not the current one."""
    done(driver.cuCtxPushCurrent(context), "changing to another GPU")
    try:
        yield
    finally:
        done(driver.cuCtxPopCurrent(), "changing back")


def current_device():
    """Number of the GPU that this thread works with, the first one if it has none yet."""
    status, device = driver.cuCtxGetDevice()
    return 0 if status else int(device)


ORDINAL = driver and driver.CUpointer_attribute.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL


def device_of(pointer):
    """Number of the GPU whose memory that is; arrays without elements have none."""
    if count() == 1:
        return 0
    if not pointer:
        return current_device()
    status, device = driver.cuPointerGetAttribute(ORDINAL, pointer)
    if status:
        raise problem(status, "asking whose memory an array is in")
    return device


# ------------------------------------------------------------------------------------ memory and streams


def address(given):
    """Where a DeviceArray is."""
    return given.pointer


def allocate(size, stream):
    """The address of `size` bytes, there for what the stream does from now on; nothing waits."""
    status, pointer = driver.cuMemAllocAsync(size or 1, stream)
    if status:
        raise problem(status, f"{size} bytes")
    return int(pointer)


def free(pointer, stream):
    """Give back what `allocate` gave, once the stream has got there."""
    (status,) = driver.cuMemFreeAsync(pointer, stream)
    if status:
        raise problem(status, "giving memory back")


def copy_in(pointer, source, stream):
    """Copy a contiguous NumPy array to the GPU."""
    if source.nbytes:
        done(driver.cuMemcpyHtoDAsync(pointer, source.ctypes.data, source.nbytes, stream), "copying to the GPU")


def copy_out(target, pointer, stream):
    """Copy to a contiguous NumPy array, and wait for it."""
    if target.nbytes:
        done(driver.cuMemcpyDtoHAsync(target.ctypes.data, pointer, target.nbytes, stream), "copying from the GPU")
        wait(stream)


def copy(target, source, size, stream):
    """Copy bytes from one address to another."""
    if size:
        done(driver.cuMemcpyDtoDAsync(target, source, size, stream), "copying on the GPU")


class Kept:
    """Memory on a GPU for as long as this object lives, whichever streams use it; giving it back waits for them."""

    def __init__(self, device, size):
        self.device, self.nbytes = device, size
        with current(device):
            self.pointer = int(done(driver.cuMemAlloc(max(size, 1)), f"{size} bytes"))

    def __del__(self):
        # at the end of the process the driver may be gone already
        if getattr(self, "pointer", 0) and not sys.is_finalizing():
            with current(self.device):
                driver.cuMemFree(self.pointer)


def kept(device, source):
    """A NumPy array on a GPU; waits until it is there."""
    memory = Kept(device, source.nbytes)
    with current(device):
        copy_in(memory.pointer, source, 0)
        wait(0)
    return memory


_zeros: dict[int, list[Kept]] = {}


def zeros(device, size):
    """The address of at least `size` bytes that are 0: the bias of calls without one."""
    made = _zeros.setdefault(device, [])
    if not made or made[-1].nbytes < size:
        made.append(kept(device, np.zeros(max(2 * size, 1 << 16), np.uint8)))  # captured graphs may read the others
    return made[-1].pointer


def wait(stream):
    """Wait for all that the stream was told."""
    done(driver.cuStreamSynchronize(stream), "waiting for the GPU")


def follow(stream, other):
    """What `stream` does from now on comes after what `other` was told so far; the host does not wait.

    Work that is captured in a graph cannot wait for work outside; whoever replays the graph sees to that.
    """
    if _is_captured(stream) and not _is_captured(other):
        return
    flags = driver.CUevent_flags.CU_EVENT_DISABLE_TIMING
    event = done(driver.cuEventCreate(flags), "ordering streams")
    done(driver.cuEventRecord(event, other), "ordering streams")
    done(driver.cuStreamWaitEvent(stream, event, 0), "ordering streams")
    done(driver.cuEventDestroy(event), "ordering streams")


def _is_captured(stream):
    none = driver.CUstreamCaptureStatus.CU_STREAM_CAPTURE_STATUS_NONE
    return done(driver.cuStreamIsCapturing(stream), "asking about a stream") != none


# ---------------------------------------------------------------------------------------------- launches


class Prepared:
    """A plan on one GPU: its kernels loaded, its plan arrays copied. Arguments are addresses and nothing else."""

    def __init__(self, plan, dtype, device):
        compiled = import_module("loopconv.cuda.build").compiled
        self.numbers = [kept(device, launch.numbers) for launch in plan.launches]
        self.steps = [
            (loaded(compiled(launch, plan.rooms, dtype, capability(device)), device, launch.shared), launch)
            for launch in plan.launches
        ]
        self.names = tuple(dict.fromkeys(name for launch in plan.launches for name in launch.arrays))
        self.write = Struct(f"{len(self.names)}Q").pack_into
        self.spare = []

    def launch(self, part, addresses, stream):
        """Put a part of the launches, a slice, on the stream. The GPU has to be current."""
        try:
            arguments = self.spare.pop()  # of which no other thread has hold now
        except IndexError:
            arguments = Arguments(self)
        self.write(arguments.values, 0, *[addresses[name] for name in self.names])
        for kernel, launch, pointers in arguments.steps[part]:
            start(kernel, launch, pointers, stream)
        self.spare.append(arguments)


class Arguments:
    """The arguments of all launches of a plan, and for each launch the address of the pointers to its own.

    The driver copies them while it is called, so that the next call writes its own in their place.
    """

    def __init__(self, prepared):
        names, tables = prepared.names, [numbers.pointer for numbers in prepared.numbers]
        self.values = array("Q", [0] * len(names) + tables)
        first, _ = self.values.buffer_info()
        place = {name: first + 8 * i for i, name in enumerate((*names, *range(len(tables))))}
        self.lists = [
            array("Q", [place[name] for name in (*launch.arrays, i)]) for i, (_, launch) in enumerate(prepared.steps)
        ]
        self.steps = [(*step, each.buffer_info()[0]) for step, each in zip(prepared.steps, self.lists)]


def start(kernel, launch, pointers, stream):
    """Launch one kernel. What cannot be launched is said here; what fails while running, by a later call."""
    (status,) = driver.cuLaunchKernel(kernel, launch.grid, 1, 1, launch.block, 1, 1, launch.shared, stream, pointers, 0)
    if status:
        size = f"{launch.grid} blocks of {launch.block} threads and {launch.shared} bytes"
        raise problem(status, f"the launch of {launch.make.__name__} with {size}")


# Bytes of shared memory that a block may have without being asked for more.
SHARED_BYTES = 48 << 10


@cache
def loaded(ptx, device, shared):
    """The kernel on a GPU, whose driver assembles it and keeps the result on disk."""
    with current(device):
        doing = f"loading {ptx.name}"
        library = done(driver.cuLibraryLoadData(ptx.text.encode() + b"\0", [], [], 0, [], [], 0), doing)
        kernel = done(driver.cuLibraryGetKernel(library, ptx.name.encode()), doing)
        function = done(driver.cuKernelGetFunction(kernel), doing)
        if shared > SHARED_BYTES:
            attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            done(driver.cuFuncSetAttribute(function, attribute, shared), f"{shared} bytes of shared memory")
    return function
