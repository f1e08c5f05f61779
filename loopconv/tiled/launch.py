"""How a kernel's units of work get onto threads.

All kernels are ``kernel(arrays, scratch, plan, first, last)``: arrays of one dtype, room to work in, a table of
integers, and the units to do. Of the room, the first number is zero at the first call of a stage, and what a thread
leaves there is there at its next. They return a number, 0 if there is nothing to say.
"""

from functools import cache
from operator import itemgetter

from numba import types

from loopconv.loops.compile import built, jit, named
from loopconv.tiled.linked import ARRAY, TABLE, build_links, signature
from loopconv.tiled.team import team
from loopconv.tiled.workspace import LINE


class Kernel:
    """A kernel and its builds by dtype."""

    def __init__(self, function):
        self.name, self.function = function.__name__, function
        # 'contract' is for what is outside of tiles
        self.serial = jit(function, fastmath={"contract"})
        self.builds = {}

    def build(self, arrays, dtype):
        """The build for so many arrays, of which a kernel always takes as many, of `dtype`."""
        if build := self.builds.get(dtype):
            return build
        build_links(self.function, dtype)
        array, *others = signature(dtype, ARRAY, TABLE, None, None)
        self.builds[dtype] = built(self.serial, (types.UniTuple(array, arrays), array, *others))
        return self.builds[dtype]


@cache
def compiled(make, *sizes):
    """The kernel that `make(*sizes)` writes."""
    return Kernel(named(*sizes)(make(*sizes)))


class SmallCall:
    """Stages that one thread does, with all but the arrays of these names at hand: `launch` took a third of a call."""

    def __init__(self, stages, names, rooms, dtype):
        at = {name: number for number, name in enumerate([*names, *rooms])}
        self.rooms = [(name, size, dtype) for name, size in rooms.items()]
        self.stages = [
            (
                kernel.build(len(taken), dtype).run,
                itemgetter(*map(at.get, taken)),
                numbers,
                units,
                ("scratch", size, dtype),
            )
            for kernel, taken, numbers, units, size, _ in stages
        ]

    def run(self, workspace, *arrays):
        """Run them on arrays in the order of the names; False if some say something."""
        kept = workspace.kept
        for room in self.rooms:
            array = kept.get(room)
            arrays += (workspace.room(*room) if array is None else array,)
        for kernel, operands, numbers, units, room in self.stages:
            scratch = kept.get(room)
            if scratch is None:
                scratch = workspace.room(*room)
            scratch[0] = 0
            if kernel(operands(arrays), scratch, numbers, 0, units):
                return False
        return True


def launch(stage, arrays, workspace, workers=1, before=(), own=()):
    """Run all units of a stage on up to so many threads, those of the team; what its kernel says.

    Each thread does the stages `before` for itself. The arrays that these write have room for all threads; `own` has
    the size of each thread's, by name.
    """
    kernel, names, numbers, units, size, _ = stage
    operands = tuple([arrays[name] for name in names])
    dtype = operands[0].dtype
    build = kernel.builds.get(dtype) or kernel.build(len(operands), dtype)
    if workers == 1 or (units <= 1 and not before):
        scratch = workspace.room("scratch", size, dtype)
        scratch[0] = 0
        return build.run(operands, scratch, numbers, 0, units)
    workers = min(workers, units)
    size = apart(size)
    scratches = workspace.room("scratch", workers * size, dtype).reshape(workers, size)
    if not before:
        return team.run(build.address, operands, scratches, numbers, units)
    names = *names, *(name for other in before for name in other.arrays)
    shares = [(apart(own[name]), own[name]) if name in own else (0, arrays[name].size) for name in names]
    first = [
        (other.kernel.build(2, dtype).address, [arrays[name] for name in other.arrays], other.numbers, other.units)
        for other in before
    ]
    return team.run(build.address, operands, scratches, numbers, units, first, shares)


def apart(size):
    """From one thread's elements to the next one's, so that they do not share a line of the cache."""
    return -(-size // LINE) * LINE
