"""Arrays of a GPU, whosever they are: PyTorch's, CuPy's, JAX's, Numba's, and others with the CUDA array interface.

Nothing is copied that is contiguous. A result is made by the library whose array came first, with its allocator and for
its stream, and given back as an array of that library.
"""

import sys
from functools import cache
from importlib import import_module
from math import prod

import numpy as np

from loopconv.cuda.machine import machine
from loopconv.cuda.stages import DTYPES

CUDA = 2  # a GPU of NVIDIA, in the numbers of DLPack
ITEMSIZE = {name: stored.itemsize for name, (stored, _) in DTYPES.items()}
LEGACY = 1  # the default stream, in those of DLPack and of the CUDA array interface


class DeviceArray:
    """A contiguous array of a GPU, as the rest of this room sees it.

    Attributes
    ----------
    library : class
        One of those below, whose array it is.
    owner : object
        What the user knows, which keeps the memory.
    pointer, device : int
        Where it is, and on which GPU.
    queue : int or class
        Its stream, or the library that says which it works on now: asked once in a call, not for each array.
    shape : tuple of int
    dtype : str
        A key of DTYPES: bfloat16 is no dtype of NumPy's.
    """

    __slots__ = ("device", "dtype", "library", "owner", "pointer", "queue", "shape")

    def __init__(self, library, owner, pointer, shape, dtype, device, queue):
        self.library, self.owner, self.pointer, self.shape = library, owner, pointer, shape
        self.dtype, self.device, self.queue = dtype, device, queue

    @property
    def stream(self):
        """The stream that its library works on now."""
        return self.queue.stream(self.device) if isinstance(self.queue, type) else self.queue

    @property
    def ndim(self):
        return len(self.shape)

    @property
    def nbytes(self):
        return prod(self.shape) * ITEMSIZE[self.dtype]

    @property
    def __cuda_array_interface__(self):
        """What marks arrays of a GPU for `loopconv.arrays`."""
        stored = DTYPES[self.dtype][0].str
        return {"shape": self.shape, "typestr": stored, "data": (self.pointer, False), "stream": None, "version": 3}


def recognised(name, value):
    """`value` as a DeviceArray, or None if it is no array of a GPU."""
    if type(value) is DeviceArray:
        return value
    array = _library(type(value)).read(name, value)
    if array is not None and array.dtype not in DTYPES:
        raise TypeError(f"{name} must be of dtype {', '.join(DTYPES)} on a GPU, got dtype {array.dtype}")
    return array


def _dense(name, value, is_dense, copy):
    """The array, or a copy without gaps; `out` cannot be one."""
    if is_dense:
        return value
    if name == "out":
        _refuse_gaps(name, "leave it out, and copy the result")
    return copy()


def _refuse_gaps(name, remedy):
    raise ValueError(f"{name} must be contiguous (C order) on a GPU, got an array with other strides; {remedy}")


class Torch:
    """Tensors of PyTorch."""

    @staticmethod
    def read(name, value):
        torch = sys.modules["torch"]
        if not (isinstance(value, torch.Tensor) and value.is_cuda):
            return None
        if value.requires_grad and torch.is_grad_enabled():
            raise TypeError(
                f"{name} must not require a gradient, which loopconv does not record, got a tensor that does; "
                f"pass {name}.detach()"
            )
        value = _dense(name, value, value.is_contiguous(), value.contiguous)
        dtype, device = _torch_dtype(value.dtype), value.get_device()
        return DeviceArray(Torch, value, value.data_ptr(), tuple(value.shape), dtype, device, Torch)

    @staticmethod
    def stream(device):
        return sys.modules["torch"].cuda.current_stream(device).cuda_stream

    @staticmethod
    def make(like, shape):
        owner = sys.modules["torch"].empty(shape, dtype=like.owner.dtype, device=like.owner.device)
        return DeviceArray(Torch, owner, owner.data_ptr(), shape, like.dtype, like.device, Torch)

    @staticmethod
    def give(array):
        return array.owner


class CuPy:
    """Arrays of CuPy."""

    @staticmethod
    def read(name, value):
        cupy = sys.modules["cupy"]
        if not isinstance(value, cupy.ndarray):
            return None
        value = _dense(name, value, value.flags.c_contiguous, lambda: cupy.ascontiguousarray(value))
        return DeviceArray(CuPy, value, value.data.ptr, value.shape, value.dtype.name, value.device.id, CuPy)

    @staticmethod
    def stream(device):
        return sys.modules["cupy"].cuda.get_current_stream().ptr  # of the GPU that is current

    @staticmethod
    def make(like, shape):
        cupy = sys.modules["cupy"]
        with cupy.cuda.Device(like.device):
            owner = cupy.empty(shape, like.owner.dtype)
        return DeviceArray(CuPy, owner, owner.data.ptr, shape, like.dtype, like.device, CuPy)

    @staticmethod
    def give(array):
        return array.owner


class Jax:
    """Arrays of JAX, by DLPack: it has streams of its own, and is told by way of it what to wait for."""

    @staticmethod
    def read(name, value):
        jax = import_module("jax")
        if not isinstance(value, jax.Array) or value.__dlpack_device__()[0] != CUDA:
            return None
        if name == "out":
            raise TypeError("out must be an array that can be written, got one of JAX, which cannot; leave it out")
        view = _view().from_dlpack(value, stream_ptr=LEGACY)
        return DeviceArray(Jax, view, view.ptr, view.shape, value.dtype.name, view.device_id, LEGACY)

    @staticmethod
    def make(like, shape):
        size = prod(shape) * ITEMSIZE[like.dtype]
        memory = machine.Kept(like.device, size)
        buffer = import_module("cuda.core").Buffer.from_handle(memory.pointer, max(size, 1), owner=memory)
        owner = Shared(_view().from_buffer(buffer, shape, dtype=like.owner.dtype), like)
        return DeviceArray(Jax, owner, memory.pointer, shape, like.dtype, like.device, like.stream)

    @staticmethod
    def give(array):
        return import_module("jax").dlpack.from_dlpack(array.owner)


class Shared:
    """Memory of ours as DLPack offers it: whoever takes it has his stream follow the one that the result comes from."""

    def __init__(self, view, like):
        self.view, self.device, self.stream = view, like.device, like.stream

    def __dlpack_device__(self):
        return CUDA, self.device

    def __dlpack__(self, *, stream=None, **wanted):
        if stream is not None and stream != -1:
            with machine.current(self.device):
                machine.follow(stream, self.stream)
        return self.view.__dlpack__(stream=-1, **wanted)


class Other:
    """Numba's arrays, and whatever else has the CUDA array interface; results are Numba's."""

    @staticmethod
    def read(name, value):
        described = getattr(value, "__cuda_array_interface__", None)
        if described is None:
            return None
        dtype, shape, (pointer, read_only) = _dtype(described["typestr"]), described["shape"], described["data"]
        if described.get("mask") is not None:
            raise TypeError(f"{name} must not be a masked array, got one with a mask; pass its data")
        strides = described.get("strides")
        if strides is not None and not _is_contiguous(shape, strides, dtype):
            _refuse_gaps(name, "copy it into a contiguous one")
        if read_only and name == "out":
            raise ValueError(f"out must be writable, got a read-only array of shape {shape}")
        device = machine.device_of(pointer)
        return DeviceArray(Other, value, pointer, shape, dtype, device, described.get("stream") or 0)

    @staticmethod
    def make(like, shape):
        cuda = import_module("numba.cuda")
        with cuda.gpus[like.device]:
            owner = cuda.device_array(shape, DTYPES[like.dtype][0])
        return Other.read("out", owner)

    @staticmethod
    def give(array):
        return array.owner


@cache
def _torch_dtype(dtype):
    return str(dtype).removeprefix("torch.")


@cache
def _dtype(typestr):
    """The name of a dtype; of the other byte order, one that no kernel holds."""
    dtype = np.dtype(typestr)
    return dtype.name if dtype.isnative else str(dtype)


def _is_contiguous(shape, strides, dtype):
    """Whether elements follow each other without gaps; axes of one pixel may have any stride."""
    if 0 in shape or dtype not in DTYPES:
        return True
    step = ITEMSIZE[dtype]
    for n, stride in zip(reversed(shape), reversed(strides)):
        if n != 1 and stride != step:
            return False
        step *= n
    return True


def _view():
    return import_module("cuda.core.utils").StridedMemoryView


@cache
def _library(kind):
    """The class that reads arrays of a type."""
    return LIBRARIES.get(kind.__module__.partition(".")[0], Other)


LIBRARIES = {"torch": Torch, "cupy": CuPy, "jax": Jax, "jaxlib": Jax}
