"""What enters and what leaves: array checks, dtype promotion, and the rules for `out`.

Kernels see C-contiguous, aligned, native arrays of one of the six dtypes in COMPUTE, and nothing else. Arrays of a GPU
pass through as what loopconv.cuda.foreign makes of them.
"""

from __future__ import annotations

from functools import cache, lru_cache
from importlib import import_module

import numpy as np
from numpy import ndarray

# By the character of a dtype. float16 is computed in float32, every integer in 64 bits, so that sums of products are
# exact.
COMPUTE = {
    **dict.fromkeys("?bhilq", np.int64),
    **dict.fromkeys("BHILQ", np.uint64),
    "e": np.float32,
    "f": np.float32,
    "d": np.float64,
    "F": np.complex64,
    "D": np.complex128,
}


def accept(**arrays):
    """The arguments as ndarrays of a kind we compute with, or as arrays of a GPU; a bias may be None."""
    for name, value in arrays.items():
        if type(value) is ndarray:
            if value.dtype.char in COMPUTE:
                continue
        elif value is None and name == "bias":
            continue
        arrays[name] = _array(name, value)
    return arrays.values()


def accept_of_host(**arrays):
    """The arguments as ndarrays; those of a GPU are refused."""
    accepted = [*accept(**arrays)]
    for name, array in zip(arrays, accepted):
        if not isinstance(array, np.ndarray):
            raise TypeError(f"{name} must be an array of the host for this function, got one of a GPU; copy it first")
    return accepted


def _array(name, value):
    if type(value) is not np.ndarray:
        if (read := _reader(type(value))) and (on_gpu := read(name, value)):
            return on_gpu
        if value is None:
            raise TypeError(f"{name} must be an array of numbers, got None")
        if isinstance(value, np.ma.MaskedArray):
            raise TypeError(f"{name} must not be a masked array; fill it first, for example {name}.filled(0)")
        try:
            value = np.asarray(value)
        except (ValueError, TypeError) as error:
            raise TypeError(f"{name} must be an array of numbers, got {type(value).__name__}: {error}") from None
    if value.dtype.char not in COMPUTE:
        raise TypeError(
            f"{name} must be of an integer dtype, float16/32/64, complex64/128 or bool, "
            f"got dtype {value.dtype} in shape {value.shape}"
        )
    return value


# What libraries whose arrays may be on a GPU give them.
GPU_PROTOCOLS = ("__cuda_array_interface__", "__dlpack_device__")


@cache
def _reader(kind):
    """``recognised`` of `loopconv.cuda.foreign` for a type whose arrays may be on a GPU, None for others."""
    if not issubclass(kind, np.ndarray) and any(hasattr(kind, protocol) for protocol in GPU_PROTOCOLS):
        return import_module("loopconv.cuda.foreign").recognised
    return None


def dtypes(*arrays):
    """(dtype of the result, dtype to compute in) by NumPy's promotion of all arrays given.

    Integers widen to 64 bits as in `numpy.sum`. Where one is on a GPU, whose dtypes are names, (None, None).
    """
    return promoted(*[array.dtype for array in arrays if array is not None])


@lru_cache(maxsize=256)
def promoted(*given):
    """`dtypes` of arrays of the dtypes given."""
    if any(isinstance(dtype, str) for dtype in given):
        return None, None
    whole = np.result_type(*given)
    compute = np.dtype(COMPUTE[whole.char])
    result = compute if whole.kind in "biu" else whole.newbyteorder("=")
    return (compute if result == compute else result), compute


def check_out(out, shape, dtype, **inputs):
    """Refuse an `out` that cannot take the result, before anything is written to it."""
    if type(out) is not np.ndarray or out.shape != shape or out.dtype != dtype or not out.flags.carray:
        _refuse_unfit(out, shape, dtype)
    for name, array in inputs.items():
        if array is not None and np.may_share_memory(out, array) and np.shares_memory(out, array, max_work=-1):
            raise ValueError(f"out must not overlap {name}: the result would overwrite it while it is read")


def _refuse_unfit(out, shape, dtype):
    if not isinstance(out, np.ndarray):
        raise TypeError(f"out must be a NumPy array of shape {shape} and dtype {dtype}, got {type(out).__name__}")
    if isinstance(out, np.ma.MaskedArray):
        raise TypeError(f"out must not be a masked array; pass its data, for example out.data, got shape {out.shape}")
    if out.shape != shape:
        raise ValueError(f"out must have the result's shape {shape}, got shape {out.shape}")
    if out.dtype.newbyteorder("=") != dtype:
        raise TypeError(f"out must have the result's dtype {dtype}, got dtype {out.dtype}")
    if not out.flags.writeable:
        raise ValueError(f"out must be writable, got a read-only array of shape {out.shape}")
    if not out.flags.c_contiguous and _overlaps_itself(out):
        raise ValueError(
            f"out must have an element of its own for every result, got strides {out.strides} for shape {shape}"
        )


def _overlaps_itself(array):
    """Whether elements may share memory: whether some stride is shorter than what the smaller ones span."""
    span = array.itemsize
    for stride, n in sorted((abs(stride), n) for stride, n in zip(array.strides, array.shape) if n > 1):
        if stride < span:
            return array.size > 1
        span += stride * (n - 1)
    return False


def plain(array, shape, dtype):
    """`array` as kernels want it, copied only where it must be."""
    if array.dtype != dtype or not array.flags.carray:  # `carray` says contiguous, aligned and writable
        array = np.asarray(_Writable(array)) if is_plain(array, dtype) else np.array(array, dtype, order="C")
    return array if array.shape == shape else array.reshape(shape)


class _Writable:
    """The same memory, said to be writable: for Numba a read-only array is a type of its own.

    Kernels do not write their inputs; compiling them anew for such arrays took 5 to 10 s.
    """

    def __init__(self, array):
        self.array = array  # which keeps the memory

    @property
    def __array_interface__(self):
        return {**self.array.__array_interface__, "data": (self.array.ctypes.data, False)}


def is_plain(array, dtype):
    """Whether kernels can read and write `array` as it is."""
    flags = array.flags
    return array.dtype == dtype and flags.c_contiguous and flags.aligned
