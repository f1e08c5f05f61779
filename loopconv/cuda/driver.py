"""The three contractions on a GPU: which algorithm, its plan, and the launches of the plan.

The arrays of a call are either NumPy's, which are copied to the GPU and the result back, or `foreign.DeviceArray`s.
"""

from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

from loopconv.cuda import plans, textbook, winograd
from loopconv.cuda.foreign import DeviceArray
from loopconv.cuda.machine import machine
from loopconv.cuda.stages import DTYPES, room_bytes

# What `algorithm=` may say of each contraction.
TEXTBOOK = {
    "forward": {"textbook": textbook.forward_plan},
    "adjoint": {"textbook": textbook.gather_plan, "scatter": textbook.scatter_plan},
    "weight": {"textbook": textbook.weight_plan},
}

# What is not for every dtype: atomic additions, and tiles that take all registers in float32.
ONLY = {"scatter": ("float32", "float64"), "winograd2": winograd.STORED}


class Settings(NamedTuple):
    """What decides the plan of a call, besides the GPU and where the arrays are."""

    contraction: str
    geometry: Any
    dtype: str
    algorithm: str | None
    precision: str | None
    has_bias: bool


def forward(geometry, x, w, y, bias=None, algorithm=None, precision=None):
    """y = C x + bias."""
    _contract("forward", geometry, {"x": x, "w": w, "y": y}, y, bias, algorithm, precision)


def adjoint(geometry, x, w, y, bias=None, algorithm=None, precision=None):
    """x = C.T y + bias."""
    _contract("adjoint", geometry, {"y": y, "w": w, "x": x}, x, bias, algorithm, precision)


def weight(geometry, x, w, y, algorithm=None, precision=None):
    """w = the form without w."""
    _contract("weight", geometry, {"x": x, "y": y, "w": w}, w, None, algorithm, precision)


def _contract(contraction, geometry, arrays, result, bias, algorithm, precision):
    """Overwrite `result`, the last of the arrays."""
    if 0 not in result.shape:
        settings = contraction, geometry, str(result.dtype), algorithm, precision, bias is not None
        launch(ready, settings, arrays if bias is None else {"bias": bias, **arrays}, result)


# ------------------------------------------------------------------------------------ which algorithm


def algorithms(contraction, geometry):
    """The names that `algorithm=` may have for a call; without it is taken what is `preferred`."""
    fitting = {"tiled": is_tiled(geometry), "winograd2": is_winograd(geometry)}
    return (*(name for name, fits in fitting.items() if fits), *TEXTBOOK[contraction])


def is_tiled(geometry):
    """Whether there are products to add up, and as many pixels as the tiled kernels can count."""
    return geometry.macs > 0 and 0 not in geometry.input and plans.is_in_reach(geometry)


def is_winograd(geometry):
    """Whether the tuned kernels can count its pixels, and F(2x2, 3x3) takes it."""
    return is_tiled(geometry) and winograd.is_winograd(geometry)


def preferred(settings, capability):
    """The algorithm that is chosen for a call that names none."""
    contraction, geometry, dtype, _, precision, _ = settings
    is_full = dtype == "float32" and precision is None
    is_taken = is_full and is_winograd(geometry) and winograd.is_exact(geometry, contraction)
    if is_taken and winograd.is_faster(geometry, contraction, capability):
        return "winograd2"
    return algorithms(contraction, geometry)[0]


def precisions(contraction, geometry, dtype):
    """The names that ``precision=`` may have for a call."""
    return ("tf32",) if is_tiled(geometry) and str(dtype) == "float32" else ()


def plan_of(settings, aligned, capability):
    """The plan of a call, for arrays that begin at multiples of 16 bytes or not."""
    contraction, geometry, dtype, algorithm, precision, has_bias = settings
    algorithm = algorithm or preferred(settings, capability)
    if dtype not in ONLY.get(algorithm, DTYPES):
        raise ValueError(f"algorithm must not be {algorithm!r} in {dtype}: it is for {', '.join(ONLY[algorithm])}")
    if algorithm != "tiled" and precision is not None:
        raise ValueError(f"precision must be None with algorithm={algorithm!r}, got {precision!r}")
    if algorithm in TEXTBOOK[contraction]:
        return TEXTBOOK[contraction][algorithm](geometry)
    make = winograd.plan if algorithm == "winograd2" else plans.plan
    return make(contraction, geometry, plans.Numbers(dtype, precision, aligned), capability, has_bias)


@lru_cache(maxsize=1024)
def ready(settings, aligned, device):
    """A call with its kernels and its plan on a GPU; `settings` are `Settings`, or a tuple of the same."""
    settings = Settings(*settings)
    g = settings.geometry
    zeros = 0 if settings.has_bias else 8 * (g.k if settings.contraction == "forward" else g.c)
    return Call(plan_of(settings, aligned, machine.capability(device)), settings.dtype, device, zeros)


class Call:
    """A plan on a GPU, the bytes of its rooms, and the zeros that it is passed for a bias that is not there."""

    def __init__(self, plan, dtype, device, zeros=0):
        self.plan, self.rooms = plan, room_bytes(plan, dtype)
        self.launch = machine.Prepared(plan, dtype, device).launch
        reads_bias = zeros and any("bias" in launch.arrays for launch in plan.launches)
        self.bias = {"bias": machine.zeros(device, zeros)} if reads_bias else {}


def sums(array, axis, result):
    """result = the sums of a DeviceArray over all axes but one."""
    sizes = prod(array.shape[:axis]), array.shape[axis], prod(array.shape[axis + 1 :])
    if sizes[1]:
        launch(_ready_sums, (sizes, array.dtype), {"y": array, "bias": result}, result)


@lru_cache(maxsize=256)
def _ready_sums(settings, aligned, device):
    sizes, dtype = settings
    return Call(textbook.sums_plan(*sizes, DTYPES[dtype][1].name), dtype, device)


# ------------------------------------------------------------------------------------------ the arrays


def launch(ready, settings, arrays, result):
    """Run what ``ready(settings, aligned, device)`` gives on the arrays, of which `result` is the last one."""
    if type(result) is DeviceArray:
        with machine.current(result.device):
            _on_arrays(ready, settings, arrays, result)
    else:
        device = machine.current_device()
        with machine.current(device):
            _on_copies(ready(settings, True, device), arrays, result)


def _on_arrays(ready, settings, arrays, result):
    """On the stream of the result, after what the streams of the others were told."""
    stream, others, bits, addresses = result.stream, [], 0, {}
    for name, array in arrays.items():
        addresses[name] = machine.address(array)
        bits |= array.pointer
        if array.queue != result.queue:
            others.append(array.stream)
    if others:
        follow(stream, others)
    run(ready(settings, not bits % 16, result.device), addresses, stream)


def follow(stream, others):
    """What `stream` does from now on comes after what each of the others was told."""
    for other in {*others} - {stream}:
        machine.follow(stream, other)


def _on_copies(call, arrays, result):
    """On copies of NumPy arrays, on the default stream; the result is copied back."""
    stream, addresses = 0, {}
    try:
        for name, array in arrays.items():
            addresses[name] = machine.allocate(array.nbytes, stream)
            if array is not result:
                machine.copy_in(addresses[name], array, stream)
        run(call, addresses, stream)
        machine.copy_out(result, addresses[name], stream)
    finally:
        for address in addresses.values():
            machine.free(address, stream)


def run(call, addresses, stream):
    """Put all launches on the stream, with rooms that last until they are through."""
    rooms = {}
    try:
        for name, size in call.rooms.items():
            rooms[name] = machine.allocate(size, stream)
        call.launch(slice(None), {**call.bias, **addresses, **rooms}, stream)
    finally:
        for address in rooms.values():
            machine.free(address, stream)
