"""The three contractions on a GPU: which algorithm, its plan, and the launches of the plan.

The arrays of a call are either NumPy's, which are copied to the GPU and the result back, or `foreign.DeviceArray`s.
"""

from functools import lru_cache
from math import prod

import numpy as np

from loopconv.cuda import gpu, textbook
from loopconv.cuda.foreign import DeviceArray, host
from loopconv.cuda.launch import prepared
from loopconv.cuda.stages import DTYPES

# What `algorithm=` may say, and the plan it stands for; the first is taken where it says nothing.
PLANS = {
    "forward": {"textbook": textbook.forward_plan},
    "adjoint": {"textbook": textbook.gather_plan, "scatter": textbook.scatter_plan},
    "weight": {"textbook": textbook.weight_plan},
}


def forward(geometry, x, w, y, bias=None, algorithm=None, precision=None):
    """y = C x + bias."""
    _contract("forward", geometry, {"x": x, "w": w}, y, bias, algorithm, precision)


def adjoint(geometry, x, w, y, bias=None, algorithm=None, precision=None):
    """x = C.T y + bias."""
    _contract("adjoint", geometry, {"y": y, "w": w}, x, bias, algorithm, precision)


def weight(geometry, x, w, y, algorithm=None, precision=None):
    """w = the form without w."""
    _contract("weight", geometry, {"x": x, "y": y}, w, None, algorithm, precision)


def _contract(contraction, geometry, given, out, bias, algorithm, precision):
    if not prod(out.shape):
        return
    dtype, device = str(out.dtype), _device(out)
    name = algorithm or preferred(contraction, geometry, dtype, precision)
    call = ready(contraction, geometry, dtype, name, precision, device)
    channels = geometry.k if contraction == "forward" else geometry.c
    _launch(call, {**given, "out": out, **({} if bias is None else {"bias": bias})}, channels)


def preferred(contraction, geometry, dtype, precision):
    """The algorithm that is expected to be the fastest."""
    return next(iter(PLANS[contraction]))


def algorithms(contraction, geometry):
    """The names that `algorithm=` may have for a call."""
    return tuple(PLANS[contraction])


@lru_cache(maxsize=1024)
def ready(contraction, geometry, dtype, algorithm, precision, device):
    """The plan of a call, on a GPU with all that its kernels need."""
    return prepared(PLANS[contraction][algorithm](geometry), dtype, device)


def sums(array, axis, out):
    """out = the sums of a DeviceArray over all axes but one."""
    before, channels, after = prod(array.shape[:axis]), array.shape[axis], prod(array.shape[axis + 1 :])
    if channels:
        _launch(_ready_sums(before, channels, after, array.dtype, array.device), {"y": array, "out": out}, channels)


@lru_cache(maxsize=256)
def _ready_sums(before, channels, after, dtype, device):
    return prepared(textbook.sums_plan(before, channels, after, DTYPES[dtype][1].name), dtype, device)


# ------------------------------------------------------------------------------------------ the arrays


def _device(array):
    """The GPU to use: that of the array, or for one of NumPy's, the current one."""
    return array.device if type(array) is DeviceArray else gpu.current_device()


def _launch(call, arrays, channels):
    """Run a prepared call; without a bias it gets zeros."""
    out = arrays["out"]
    if gpu.is_simulated():
        _simulate(call, arrays, channels)
    elif type(out) is DeviceArray:
        with gpu.current(out.device):
            _on_arrays(call, arrays, channels)
    else:
        with gpu.current(gpu.current_device()):
            _on_copies(call, arrays, channels)


def _simulate(call, arrays, channels):
    flat = {name: host(array) if type(array) is DeviceArray else array.reshape(-1) for name, array in arrays.items()}
    flat.setdefault("bias", np.zeros(channels, flat["out"].dtype))
    call.run(flat, 0)


def _on_arrays(call, arrays, channels):
    """On the stream of the first array, after what the streams of the others were told."""
    out, stream = arrays["out"], next(iter(arrays.values())).stream
    addresses = {name: array.pointer for name, array in arrays.items()}
    if "bias" not in addresses:
        addresses["bias"] = gpu.zeros(out.device, channels * DTYPES[out.dtype][0].itemsize)
    for other in {array.stream for array in arrays.values()} - {stream}:
        gpu.follow(stream, other)
    call.run(addresses, stream)


def _on_copies(call, arrays, channels):
    """On copies of NumPy arrays, on the default stream; the result is copied back."""
    out, stream, addresses = arrays["out"], 0, {}
    try:
        for name, array in arrays.items():
            addresses[name] = gpu.allocate(array.nbytes, stream)
            if name != "out":
                gpu.copy_in(addresses[name], array, stream)
        zeros = {} if "bias" in arrays else {"bias": gpu.zeros(gpu.current_device(), channels * out.itemsize)}
        call.run({**addresses, **zeros}, stream)
        gpu.copy_out(out, addresses["out"], stream)
    finally:
        for address in addresses.values():
            gpu.free(address, stream)
