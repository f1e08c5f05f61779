"""What gpu.py offers, on the host: the only GPU of Numba's simulator. Addresses are flat NumPy arrays."""

import warnings
from ctypes import c_char
from functools import cache

import numpy as np

from loopconv.cuda.stages import DTYPES


def capability(device):
    """(major, minor): that of an H100."""
    return 9, 0


class current:
    """``with current(device):`` changes nothing, as there is but one."""

    def __init__(self, device):
        pass

    def __enter__(self):
        pass

    def __exit__(self, *_):
        pass


def current_device():
    return 0


def device_of(pointer):
    return 0


def address(array):
    """The memory of a DeviceArray as a flat NumPy array."""
    return np.frombuffer((c_char * array.nbytes).from_address(array.pointer), DTYPES[array.dtype][0])


def allocate(size, stream):
    """Bytes that are NaN in every dtype: nobody may take what was there for zeros."""
    return np.full(size, 0xFF, np.uint8)


def free(memory, stream):
    pass


def copy_in(memory, array, stream):
    memory[:] = array.reshape(-1).view(np.uint8)


def copy_out(array, memory, stream):
    array.reshape(-1).view(np.uint8)[:] = memory


class Kept:
    """Memory for as long as this object lives."""

    def __init__(self, device, size):
        self.nbytes, self.pointer = size, allocate(size, 0)


def zeros(device, size):
    return np.zeros(size, np.uint8)


def copy(target, source, size, stream):
    target.view(np.uint8)[:size] = source.view(np.uint8)[:size]


def follow(stream, other):
    pass


def wait(stream):
    pass


class Prepared:
    """A plan, as in gpu.py."""

    def __init__(self, plan, dtype, device):
        self.plan, self.dtype = plan, dtype

    def launch(self, part, addresses, stream):
        stored, summed = DTYPES[self.dtype]
        of = {name: of or summed for name, (_, of) in self.plan.rooms.items()}
        for launch in self.plan.launches[part]:
            given = [Flat(addresses[name].view(of.get(name, stored))) for name in launch.arrays]
            kernel = simulated(launch.make, launch.constants)
            with warnings.catch_warnings():  # the GPU does not warn, and errstate is of one thread
                warnings.simplefilter("ignore", RuntimeWarning)
                kernel[launch.grid, launch.block, 0, launch.shared](*given, launch.numbers.tolist())


class Flat:
    """An array as kernels see it: numbers at positions. The simulator's own stand-ins take five times as long."""

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
