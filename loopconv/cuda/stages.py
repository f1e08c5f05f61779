"""What a plan says and the launcher does: kernels, the arrays that they are passed, and room for more arrays."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

# name -> (dtype in memory, dtype of the sums)
DTYPES: dict[str, tuple[np.dtype, np.dtype]] = {
    "float32": (np.dtype(np.float32), np.dtype(np.float32)),
    "float64": (np.dtype(np.float64), np.dtype(np.float64)),
    "float16": (np.dtype(np.float16), np.dtype(np.float32)),
    "bfloat16": (np.dtype(np.uint16), np.dtype(np.float32)),
}


class Launch(NamedTuple):
    """One kernel on some of the arrays of a call, by name.

    Attributes
    ----------
    make : callable
        ``make(*constants)`` returns the Python function that is compiled: ``kernel(a, b, ..., plan)``.
    constants : tuple of int and str
        What the maker closes over.
    arrays : tuple of str
        What the kernel is passed, in order: 'x', 'w', 'y', 'bias', or a room's name.
    numbers : int64 array
        Its last argument.
    grid, block : int
        Blocks, and threads of a block, on one axis.
    shared : int
        Bytes of dynamic shared memory.
    resident : int
        Blocks that shall fit one multiprocessor, which is what bounds the registers of a thread.
    """

    make: Callable
    constants: tuple
    arrays: tuple
    numbers: np.ndarray
    grid: int
    block: int
    shared: int = 0
    resident: int = 1


class Plan(NamedTuple):
    """What a call of one geometry launches.

    Attributes
    ----------
    launches : tuple of Launch
        In the order of the stream.
    rooms : dict
        Of arrays that serve during the call: name -> (elements, NumPy dtype, or None for that of the sums).
    """

    launches: tuple
    rooms: dict


def room_bytes(plan, dtype):
    """Bytes of each room of a plan for arrays of `dtype`, a key of DTYPES."""
    return {name: size * (of or DTYPES[dtype][1]).itemsize for name, (size, of) in plan.rooms.items()}
