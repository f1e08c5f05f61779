"""What a plan tells the launcher."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Launch(NamedTuple):
    """One kernel on some of the arrays of a call, by name."""

    make: Callable  # maker of the kernel: make(*constants) returns the Python function
    constants: tuple  # literal ints and strings that the maker closes over
    arrays: tuple  # names of what it is passed: "x" "w" "y" "bias" "out" or a room's name, in order
    numbers: np.ndarray  # int64: the one plan array, its last argument
    grid: int  # blocks, one-dimensional
    block: int  # threads of a block
    shared: int = 0  # bytes of dynamic shared memory
    resident: int = 1  # blocks that shall fit one multiprocessor: launch_bounds=(block, resident)


class Plan(NamedTuple):
    """The launches of one call."""

    launches: tuple  # in stream order
    rooms: dict  # name -> (number of elements, NumPy dtype or None for the compute dtype)
