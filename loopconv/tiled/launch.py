"""How a kernel's units of work get onto threads.

All kernels are ``kernel(arrays, scratch, plan, first, last)``: arrays of one dtype, room to work in, a table of
integers, and the units to do. They return a number, 0 if there is nothing to say.
"""

from functools import cache
from typing import Any, NamedTuple

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


class Build(NamedTuple):
    """A kernel's machine code for one dtype.

    Attributes
    ----------
    run : callable
        Runs it on the calling thread. Numba's dispatcher, which looks at the types of all arguments first, takes 0.9 us
        where this takes 0.5.
    address : int
        Where it is, for `call`.
    """

    run: Any
    address: int


class Kernel:
    """A kernel and its builds by dtype."""

    def __init__(self, function):
        self.name = function.__name__
        # 'contract' is for what is outside of tiles
        self.serial = jit(function, fastmath={"contract"})
        self.builds = {}

    def build(self, arrays, dtype):
        """The build for so many arrays, of which a kernel always takes as many, of `dtype`."""
        build = self.builds.get(dtype)
        if build is None:
            element = numba.from_dtype(dtype)
            array, integers = types.Array(element, 1, "C"), types.Array(types.int64, 1, "C")
            signature = (types.UniTuple(array, arrays), array, integers, types.int64, types.int64)
            run = self.serial.compile(signature)
            compiled = self.serial.overloads[signature]
            address = compiled.library.get_pointer_to_function(compiled.fndesc.llvm_func_name)
            build = self.builds[dtype] = Build(run, address)
        return build


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
    kernel, names, numbers, units, macs, size = stage
    operands = tuple([arrays[name] for name in names])
    dtype = operands[0].dtype
    build = kernel.build(len(operands), dtype)
    workers = threads.worth(macs)
    if workers == 1 or units <= 1 or not _all_threads.acquire(blocking=False):
        return build.run(operands, workspace.room("scratch", size, dtype), numbers, 0, units)
    try:
        workers = min(workers, units)
        size = -(-size // LINE) * LINE  # threads do not share a line
        scratches = workspace.room("scratch", workers * size, dtype).reshape(workers, size)
        counter = workspace.room("counter", 1, COUNTER)
        counter[0] = 0
        pieces = min(units, PIECES * workers)
        return compiled_spread()(build.address, operands, scratches, numbers, counter, pieces, units)
    finally:
        _all_threads.release()
