"""What the tests in the simulator and on a GPU share: arrays of a GPU, and the comparison with the reference."""

import numpy as np
from helpers import assert_within, magnitudes, random_array, random_integers

from loopconv import reference, registry
from loopconv.cuda.foreign import DeviceArray, Other
from loopconv.cuda.machine import machine
from loopconv.cuda.stages import DTYPES

RESULT = {"forward": "y", "adjoint": "x", "weight": "w"}
# Half the distance of neighbouring numbers: what is stored in 16 bits is rounded once more than what is summed.
ROUNDING = {"float16": 2**-11, "bfloat16": 2**-8}
# Both factors of a product are rounded to 10 bits after the first; 1 % is for the sums in float32.
TF32 = 2 * 2**-11 * 1.01


class OnGpu:
    """Numbers in memory of a GPU, `offset` elements after where it begins."""

    def __init__(self, numbers, dtype, offset=0):
        self.shape, self.dtype = numbers.shape, dtype
        stored = bits(numbers, dtype)
        self.memory = machine.Kept(0, stored.itemsize * (stored.size + offset))
        self.skipped = stored.itemsize * offset
        with machine.current(0):
            machine.copy_in(self.memory.pointer, np.concatenate([stored.ravel()[:offset], stored.ravel()]), 0)

    @property
    def array(self):
        first = getattr(self.memory.pointer, "ctypes", None)  # NumPy's, in the simulator
        pointer = (first.data if first else self.memory.pointer) + self.skipped
        return DeviceArray(Other, self, pointer, self.shape, self.dtype, 0, 0)

    def numbers(self):
        """In double precision."""
        whole = np.empty(self.memory.nbytes, np.uint8)
        with machine.current(0):
            machine.copy_out(whole, self.memory.pointer, 0)
        stored = whole[self.skipped :].view(DTYPES[self.dtype][0]).reshape(self.shape)
        return values(stored)


def check(contraction, g, dtype, algorithm=None, precision=None, with_bias=False, offset=0):
    """Run one kernel on arrays of `dtype`, a key of DTYPES, that begin `offset` elements after an aligned address.

    Winograd's rounding error is relative to 2 x 2 results together; of integers, its halves and quarters are exact.
    """
    shapes = {name: getattr(g, f"{name}_shape") for name in "xwy"}
    if with_bias:
        shapes["bias"] = (g.k if contraction == "forward" else g.c,)
    is_exact = algorithm == "winograd2"
    make = random_integers if is_exact else random_array
    drawn = {name: make(shape, "float64", seed) for seed, (name, shape) in enumerate(shapes.items())}
    role = RESULT[contraction]
    drawn[role].fill(np.nan)
    given = {name: OnGpu(array, dtype, offset) for name, array in drawn.items()}
    before = {name: array.numbers() for name, array in given.items()}
    expected, size = {n: a.copy() for n, a in before.items()}, magnitudes(before)
    for arrays in (expected, size):
        getattr(reference, contraction)(g, **arrays)
    run = registry.select(contraction, "cuda", g, dtype, algorithm, precision)
    run(g, **{name: array.array for name, array in given.items()})
    allowed = 0 if is_exact else allowance(g, contraction, dtype, precision)
    allowed = allowed * size[role] + ROUNDING.get(dtype, 0) * np.abs(expected[role])
    message = f"{contraction} {algorithm} {precision} {dtype} {offset}"
    assert_within(given[role].numbers(), expected[role], allowed, message)
    for name in set(given) - {role}:
        assert given[name].numbers().tobytes() == before[name].tobytes(), f"{message}: {name} was changed"


def allowance(g, contraction, storage, precision):
    """Error allowed in a result before it is stored, as a share of the magnitudes of its products."""
    if precision == "tf32":
        return TF32
    allowed = registry.tolerance(g, contraction, DTYPES[storage][1])
    # tensor cores add 16 products of 16 bits at a time, and may cut what float32 does not hold where others round
    return allowed + g.terms[contraction] / 16 * 2**-23 if storage in ROUNDING else allowed


# The same for plans that a test has made, on arrays of the host.


def check_plan(run, contraction, g, plan, numbers, bias=None, make=random_array):
    """``run(plan, arrays)`` on NaN-poisoned results and rooms, and compare with the reference: integers are exact."""
    summed = DTYPES[numbers.storage][1]
    role = RESULT[contraction]
    arrays = {name: rounded(make(getattr(g, f"{name}_shape"), "float64", seed), numbers.storage)
              for seed, name in enumerate("xwy")}  # fmt: skip
    added = {} if bias is None else {"bias": rounded(bias, numbers.storage)}
    expected, size = dict(arrays), magnitudes(arrays)
    for given, more in ((expected, added), (size, magnitudes(added))):
        given[role] = np.zeros_like(given[role])
        getattr(reference, contraction)(g, **given, **more)
    memory = {name: bits(array, numbers.storage) for name, array in (arrays | added).items()}
    memory[role] = bits(np.full_like(arrays[role], np.nan), numbers.storage)
    flat = {name: array.reshape(-1) for name, array in memory.items()}
    for name, (count, dtype) in plan.rooms.items():
        dtype = np.dtype(dtype or summed)
        flat[name] = np.full(count * dtype.itemsize, 0xFF, np.uint8).view(dtype)  # NaN in every dtype
    run(plan, flat)
    is_exact = make is random_integers
    error = 0 if is_exact else allowance(g, contraction, numbers.storage, numbers.precision) * size[role]
    error = error + ROUNDING.get(numbers.storage, 0) * np.abs(expected[role])
    assert_within(values(memory[role]), expected[role], error, f"{contraction} of {g} in {numbers}")
    return memory[role]


def bits(array, dtype):
    """`array` as it lies in memory; bfloat16, rounded to the nearest, is uint16."""
    if dtype != "bfloat16":
        return array.astype(dtype)
    whole = array.astype(np.float32).view(np.uint32)
    return np.where(np.isnan(array), 0x7FFF, (whole + 0x7FFF + (whole >> 16 & 1)) >> 16).astype(np.uint16)


def values(memory):
    """What lies in memory, in double precision."""
    return ((memory.astype(np.uint32) << 16).view(np.float32) if memory.dtype == np.uint16 else memory).astype(float)


def rounded(array, dtype):
    return values(bits(array, dtype))


def bias_of(contraction, g):
    return None if contraction == "weight" else random_array((g.k if contraction == "forward" else g.c,), "float64", 3)
