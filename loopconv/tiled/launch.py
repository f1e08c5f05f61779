"""How a kernel's units of work get onto threads.

All kernels are ``kernel(arrays, scratch, plan, first, last)``: arrays of one dtype, room to work in, a table of
integers, and the units to do. They return a number, 0 if there is nothing to say.
"""

import threading
from functools import cache, cached_property

import numpy as np
from numba import prange

from loopconv import threads
from loopconv.loops.compile import jit
from loopconv.tiled.simd import next_number
from loopconv.tiled.workspace import LINE

# Pieces of work per thread: a thread that loses its processor for a while leaves the rest to the others.
PIECES = 4

COUNTER = np.dtype(np.int64)

# One call at a time has all threads, and what else is called meanwhile runs on its own: Numba's 'workqueue' layer
# aborts the process when two Python threads enter it.
_all_threads = threading.Lock()


class Kernel:
    """A kernel compiled for the calling thread and, where it is worth it, once more for several."""

    def __init__(self, function, name):
        self.name = name
        # 'contract' is for what is outside of tiles
        self.serial = jit(function, fastmath={"contract"})

    @cached_property
    def spread(self):
        return jit(spread, parallel=True, name=f"{self.name}_spread", kernel=self.serial)


@cache
def compiled(make, *sizes):
    """The kernel that `make(*sizes)` writes."""
    function = make(*sizes)
    return Kernel(function, "_".join([function.__name__, *map(str, sizes)]))


def spread(arrays, scratches, plan, counter, pieces, units):
    """Pieces of the units on as many threads as there are scratches; a thread that is done takes the next piece."""
    said = 0
    for worker in prange(scratches.shape[0]):
        here = 0
        piece = next_number(counter)
        while piece < pieces:
            here += kernel(arrays, scratches[worker], plan, units * piece // pieces, units * (piece + 1) // pieces)  # noqa: F821
            piece = next_number(counter)
        said += here
    return said


def launch(stage, arrays, workspace):
    """Run all units of a stage on as many threads as its multiply-adds are worth; what its kernel says."""
    operands = tuple([arrays[name] for name in stage.arrays])
    dtype = operands[0].dtype
    workers = min(threads.worth(stage.macs), stage.units)
    if workers <= 1 or not _all_threads.acquire(blocking=False):
        scratch = workspace.room("scratch", stage.scratch, dtype)
        return stage.kernel.serial(operands, scratch, stage.numbers, 0, stage.units)
    try:
        size = -(-stage.scratch // LINE) * LINE  # threads do not share a line
        scratches = workspace.room("scratch", workers * size, dtype).reshape(workers, size)
        counter = workspace.room("counter", 1, COUNTER)
        counter[0] = 0
        pieces = min(stage.units, PIECES * workers)
        return stage.kernel.spread(operands, scratches, stage.numbers, counter, pieces, stage.units)
    finally:
        _all_threads.release()
