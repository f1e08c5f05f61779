"""What a plan says and the launcher does: kernels, the arrays that they are passed, and room for more arrays."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

# name -> (dtype in memory, dtype of the sums)
DTYPES = {
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
        What the kernel is passed, in order: 'x', 'w', 'y', 'bias', 'out', or a room's name.
    numbers : int64 array
        Its last argument.
    grid, block : int
        Blocks, and threads of a block, on one axis.
    shared : int
        Bytes of dynamic shared memory.
    registers : int
        Most per thread, so that enough blocks fit a multiprocessor; 0 leaves it to the assembler.
    """

    make: Callable
    constants: tuple
    arrays: tuple
    numbers: np.ndarray
    grid: int
    block: int
    shared: int = 0
    registers: int = 0


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
