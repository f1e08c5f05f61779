"""The three contractions on a GPU: which algorithm, its plan, and the launches of the plan.

The arrays of a call are either NumPy's, which are copied to the GPU and the result back, or `foreign.DeviceArray`s.
"""

from functools import lru_cache
from math import prod

import numpy as np

from loopconv.cuda import textbook
from loopconv.cuda.foreign import DeviceArray
from loopconv.cuda.machine import machine
from loopconv.cuda.stages import DTYPES, room_bytes

# What `algorithm=` may say, and the plan it stands for; the first is taken where it says nothing.
PLANS = {
    "forward": {"textbook": textbook.forward_plan},
    "adjoint": {"textbook": textbook.gather_plan, "scatter": textbook.scatter_plan},
    "weight": {"textbook": textbook.weight_plan},
}


def forward(geometry, x, w, y, bias=None, algorithm=None, precision=None):
    """y = C x + bias."""
    _contract("forward", geometry, {"x": x, "w": w, "y": y}, bias, algorithm, precision)


def adjoint(geometry, x, w, y, bias=None, algorithm=None, precision=None):
    """x = C.T y + bias."""
    _contract("adjoint", geometry, {"y": y, "w": w, "x": x}, bias, algorithm, precision)


def weight(geometry, x, w, y, algorithm=None, precision=None):
    """w = the form without w."""
    _contract("weight", geometry, {"x": x, "y": y, "w": w}, None, algorithm, precision)


def _contract(contraction, geometry, arrays, bias, algorithm, precision):
    """Overwrite the last of the arrays."""
    *_, result = arrays.values()
    if prod(result.shape):
        settings = Settings(contraction, geometry, str(result.dtype), algorithm, precision, bias is not None)
        channels = geometry.k if contraction == "forward" else geometry.c
        given = {} if bias is None else {"bias": bias}
        launch(partial(ready, settings), {**given, **arrays}, channels)


def preferred(contraction, geometry, dtype, precision):
    """The algorithm that is expected to be the fastest."""
    return next(iter(PLANS[contraction]))


def algorithms(contraction, geometry):
    """The names that `algorithm=` may have for a call."""
    return tuple(PLANS[contraction])


@lru_cache(maxsize=1024)
def ready(contraction, geometry, dtype, algorithm, precision, device):
    """The plan of a call, on a GPU with all that its kernels need."""
    return Call(PLANS[contraction][algorithm](geometry), dtype, device)


class Call:
    """A plan on a GPU, and the bytes of its rooms."""

    def __init__(self, plan, dtype, device):
        self.plan, self.rooms = plan, room_bytes(plan, dtype)
        self.prepared = machine.Prepared(plan, dtype, device)


def sums(array, axis, out):
    """out = the sums of a DeviceArray over all axes but one."""
    before, channels, after = prod(array.shape[:axis]), array.shape[axis], prod(array.shape[axis + 1 :])
    if channels:
        _launch(_ready_sums(before, channels, after, array.dtype, array.device), {"y": array, "out": out}, channels)


@lru_cache(maxsize=256)
def _ready_sums(before, channels, after, dtype, device):
    return Call(textbook.sums_plan(before, channels, after, DTYPES[dtype][1].name), dtype, device)


# ------------------------------------------------------------------------------------------ the arrays


def _device(array):
    """The GPU to use: that of the array, or for one of NumPy's, the current one."""
    return array.device if type(array) is DeviceArray else machine.current_device()


def _launch(call, arrays, channels):
    """Run a prepared call on the arrays; without a bias it gets zeros for its channels."""
    out = arrays["out"]
    with machine.current(_device(out)):
        if type(out) is DeviceArray:
            _on_arrays(call, arrays, machine.zeros(out.device, channels * 8))
        else:
            _on_copies(call, arrays, machine.zeros(machine.current_device(), channels * 8))


def _on_arrays(call, arrays, zeros):
    """On the stream of the first array, after what the streams of the others were told."""
    stream = next(iter(arrays.values())).stream
    for other in {array.stream for array in arrays.values()} - {stream}:
        machine.follow(stream, other)
    run(call, {"bias": zeros} | {name: machine.address(array) for name, array in arrays.items()}, stream)


def _on_copies(call, arrays, zeros):
    """On copies of NumPy arrays, on the default stream; the result is copied back."""
    stream, addresses = 0, {}
    try:
        for name, array in arrays.items():
            addresses[name] = machine.allocate(array.nbytes, stream)
            if name != "out":
                machine.copy_in(addresses[name], array, stream)
        run(call, {"bias": zeros} | addresses, stream)
        machine.copy_out(arrays["out"], addresses["out"], stream)
    finally:
        for address in addresses.values():
            machine.free(address, stream)


def run(call, addresses, stream):
    """Put all launches on the stream, with rooms that last until they are through."""
    rooms = {}
    try:
        for name, size in call.rooms.items():
            rooms[name] = machine.allocate(size, stream)
        call.prepared.launch(slice(None), addresses | rooms, stream)
    finally:
        for address in rooms.values():
            machine.free(address, stream)
