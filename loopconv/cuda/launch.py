"""How the launches of a plan get onto a GPU, or through the simulator in its place.

A kernel's arguments are addresses and nothing else: its sizes are in the plan array, which is on the GPU already. So
passing them costs little, and a launch can be captured in a graph and replayed.
"""

from ctypes import addressof, c_void_p, sizeof
from functools import cache

import numpy as np

from loopconv.cuda import gpu
from loopconv.cuda.stages import DTYPES

# What a block may have without being asked for more.
SHARED_BYTES = 48 << 10


def prepared(plan, dtype, device):
    """The plan with everything that its calls have in common; ``run(addresses, stream)`` is a call."""
    return Simulated(plan, dtype) if gpu.is_simulated() else Prepared(plan, dtype, device)


class Prepared:
    """A plan on one GPU: kernels compiled and loaded, plan arrays copied, rooms measured."""

    def __init__(self, plan, dtype, device):
        from loopconv.cuda.build import compiled

        self.device = device
        self.rooms = {name: size * (of or DTYPES[dtype][1]).itemsize for name, (size, of) in plan.rooms.items()}
        self.numbers = [gpu.kept(device, launch.numbers) for launch in plan.launches]
        self.steps = []
        for launch, numbers in zip(plan.launches, self.numbers):
            kernel = loaded(compiled(launch, plan.rooms, dtype, gpu.capability(device)), device, launch.shared)
            self.steps.append((kernel, launch, numbers.pointer))

    def run(self, addresses, stream):
        """Put all launches on the stream, with rooms that last until they are through. The GPU has to be current."""
        rooms = {}
        try:
            for name, size in self.rooms.items():
                rooms[name] = gpu.allocate(size, stream)
            for kernel, launch, numbers in self.steps:
                given = [rooms[name] if name in rooms else addresses[name] for name in launch.arrays]
                start(kernel, launch, (*given, numbers), stream)
        finally:
            for address in rooms.values():
                gpu.free(address, stream)


def start(kernel, launch, addresses, stream):
    """Launch one kernel. What cannot be launched is said here; what fails while running, by a later call."""
    count = len(addresses)
    values = (c_void_p * count)(*addresses)
    first, step = addressof(values), sizeof(c_void_p)
    pointers = (c_void_p * count)(*range(first, first + count * step, step))
    result = gpu.driver.cuLaunchKernel(
        kernel, launch.grid, 1, 1, launch.block, 1, 1, launch.shared, stream, addressof(pointers), 0
    )
    if result[0]:
        size = f"{launch.grid} blocks of {launch.block} threads and {launch.shared} bytes"
        raise gpu.problem(result[0], f"the launch of {launch.make.__name__} with {size}")


@cache
def loaded(ptx, device, shared):
    """The kernel on a GPU, whose driver assembles it and keeps the result on disk."""
    driver = gpu.driver
    with gpu.current(device):
        doing = f"loading {ptx.name}"
        library = gpu.done(driver.cuLibraryLoadData(ptx.text.encode() + b"\0", [], [], 0, [], [], 0), doing)
        kernel = gpu.done(driver.cuLibraryGetKernel(library, ptx.name.encode()), doing)
        function = gpu.done(driver.cuKernelGetFunction(kernel), doing)
        if shared > SHARED_BYTES:
            attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            gpu.done(driver.cuFuncSetAttribute(function, attribute, shared), f"{shared} bytes of shared memory")
    return function


# -------------------------------------------------------------------------------------------- simulator


class Simulated:
    """A plan in Numba's simulator; its addresses are flat NumPy arrays."""

    def __init__(self, plan, dtype):
        self.plan, self.dtype = plan, dtype

    def run(self, addresses, stream):
        stored, summed = DTYPES[self.dtype]
        rooms = {name: unwritten(size, of or summed) for name, (size, of) in self.plan.rooms.items()}
        for launch in self.plan.launches:
            given = [Flat(rooms[name] if name in rooms else addresses[name].view(stored)) for name in launch.arrays]
            kernel = simulated(launch.make, launch.constants)
            with np.errstate(all="ignore"):  # the GPU does not warn either
                kernel[launch.grid, launch.block, 0, launch.shared](*given, launch.numbers.tolist())


class Flat:
    """An array as kernels see it: numbers at positions. The simulator's own stand-ins take twice the time."""

    def __init__(self, array):
        self.array, self.dtype = array, array.dtype

    def __getitem__(self, i):
        return self.array[i]

    def __setitem__(self, i, value):
        self.array[i] = value


@cache
def simulated(make, constants):
    from numba import cuda

    return cuda.jit(make(*constants), fastmath=False)


def unwritten(size, dtype):
    """An array of NaN, or of the largest integers: nobody may take what was there for zeros."""
    return np.frombuffer(b"\xff" * (size * dtype.itemsize), dtype).copy()
