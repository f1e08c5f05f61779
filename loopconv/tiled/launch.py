"""How a kernel's units of work get onto threads.

All kernels are ``kernel(arrays, scratch, plan, first, last)``: arrays of one dtype, room to work in, a table of
integers, and the units to do. They return a number, 0 if there is nothing to say.
"""

from functools import cache

import numba
import numpy as np
from numba import prange, types
from numba.extending import intrinsic

from loopconv import threads
from loopconv.loops import executions
from loopconv.loops.compile import jit, named
from loopconv.tiled.simd import next_number
from loopconv.tiled.workspace import LINE

# Pieces of work per thread: a thread that loses its processor for a while leaves the rest to the others.
PIECES = 4

COUNTER = np.dtype(np.int64)

# One call at a time has all threads, be it of these kernels or of the textbook loops, and what else is called meanwhile
# runs on its own: Numba's 'workqueue' layer aborts the process when two Python threads enter it.
_all_threads = executions._one_at_a_time


class Kernel:
    """A compiled kernel: `serial` runs it on the calling thread, `address` is where its machine code is."""

    def __init__(self, function):
        self.name = function.__name__
        # 'contract' is for what is outside of tiles
        self.serial = jit(function, fastmath={"contract"})
        self.addresses = {}

    def address(self, arrays, dtype):
        """The address for so many arrays of `dtype`."""
        key = arrays, dtype
        if key not in self.addresses:
            element = numba.from_dtype(dtype)
            array, integers = types.Array(element, 1, "C"), types.Array(types.int64, 1, "C")
            signature = (types.UniTuple(array, arrays), array, integers, types.int64, types.int64)
            self.serial.compile(signature)
            compiled = self.serial.overloads[signature]
            self.addresses[key] = compiled.library.get_pointer_to_function(compiled.fndesc.llvm_func_name)
        return self.addresses[key]


@cache
def compiled(make, *sizes):
    """The kernel that `make(*sizes)` writes."""
    return Kernel(named(*sizes)(make(*sizes)))


@intrinsic
def call(typing, address, arrays, scratch, plan, first, last):
    """Call the kernel at `address`, of which no code is compiled again: linked in, it took 4 to 9 s."""
    arguments = (arrays, scratch, plan, first, last)

    def codegen(context, builder, signature, values):
        kind = context.call_conv.get_function_type(types.int64, arguments)
        kernel = builder.inttoptr(values[0], kind.as_pointer())
        _, result = context.call_conv.call_function(builder, kernel, types.int64, arguments, values[1:])
        return result

    return types.int64(types.int64, *arguments), codegen


def spread(address, arrays, scratches, plan, counter, pieces, units):
    """Pieces of the units on as many threads as there are scratches; a thread that is done takes the next piece."""
    said = 0
    for worker in prange(scratches.shape[0]):
        here = 0
        piece = next_number(counter)
        while piece < pieces:
            first, last = units * piece // pieces, units * (piece + 1) // pieces
            here += call(address, arrays, scratches[worker], plan, first, last)
            piece = next_number(counter)
        said += here
    return said


@cache
def compiled_spread():
    """`spread` for several threads; compiled once for each number of arrays and dtype."""
    return jit(spread, parallel=True, fastmath=set())


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
        address = stage.kernel.address(len(operands), dtype)
        return compiled_spread()(address, operands, scratches, stage.numbers, counter, pieces, stage.units)
    finally:
        _all_threads.release()
