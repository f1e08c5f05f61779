"""What `python -m loopconv bench` compares with; each peer is imported when it is asked for, and nowhere else.

A peer is ``peer(case, op, arrays, threads)``: a call without arguments that returns the result of this op of this
layer, or an error that says why there is none. What a user would do once for many calls is done here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from math import prod

import numpy as np

from loopconv.geometry import extents

OPS = ("forward", "input_grad", "weight_grad")
# Which contraction each op of a layer is.
CONTRACTION = {
    "conv": dict(zip(OPS, ("forward", "adjoint", "weight"))),
    "conv_transpose": dict(zip(OPS, ("adjoint", "forward", "weight"))),
}
FORWARD_ONLY = "forward only"

# A peer that needs more for a layer, besides its arrays, is not timed.
MOST_BYTES = 2 << 30


def is_transposed(case) -> bool:
    return case.op == "conv_transpose"


def input_and_grad(case, arrays):
    """(the input of the layer's call, the gradient of its output)."""
    return (arrays["y"], arrays["x"]) if is_transposed(case) else (arrays["x"], arrays["y"])


def each_axis(case) -> dict[str, list[int]]:
    """The settings of the layer's call with a number for each axis."""
    settings = {"output_padding": 0, **case.settings}
    return {name: np.broadcast_to(value, case.geometry.rank).tolist() for name, value in settings.items()}


def _refuse(op, size_bytes=0):
    if op != "forward":
        raise ValueError(FORWARD_ONLY)
    _check_room(size_bytes)


def _check_room(size_bytes):
    if size_bytes > MOST_BYTES:
        raise ValueError(f"it would need {size_bytes / 2**30:.1f} GiB, more than {MOST_BYTES >> 30}")


# ------------------------------------------------------------------------------ deep-learning libraries


def torch_peer(case, op, arrays, threads) -> Callable[[], np.ndarray]:
    """torch.nn.functional, and for the gradients what autograd calls."""
    torch = import_module("torch")
    torch.set_num_threads(threads)
    x, grad, w = (torch.from_numpy(array) for array in (*input_and_grad(case, arrays), arrays["w"]))
    if op == "forward":
        function = getattr(torch.nn.functional, f"{case.op}{case.geometry.rank}d")
        return lambda: function(x, w, **case.settings).numpy()
    each = each_axis(case)
    result = OPS.index(op) - 1
    given = (grad, x, w, None, each["stride"], each["padding"], each["dilation"], is_transposed(case),
             each["output_padding"], case.settings["groups"], [result == 0, result == 1, False])  # fmt: skip
    return lambda: torch.ops.aten.convolution_backward(*given)[result].numpy()


def onnxruntime_peer(case, op, arrays, threads) -> Callable[[], np.ndarray]:
    """A session of one node; it packs the weights when it is made."""
    _refuse(op)
    onnxruntime, x = import_module("onnxruntime"), input_and_grad(case, arrays)[0]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.log_severity_level = 3
    model = onnx_model(case, arrays)
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"x": x})[0]


def openvino_peer(case, op, arrays, threads) -> Callable[[], np.ndarray]:
    """A compiled model of one node, in float32; it packs the weights when it is made."""
    _refuse(op)
    core, x = import_module("openvino").Core(), input_and_grad(case, arrays)[0]
    config = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY",
              "INFERENCE_PRECISION_HINT": "f32"}  # fmt: skip
    request = core.compile_model(core.read_model(onnx_model(case, arrays)), "CPU", config).create_infer_request()
    return lambda: request.infer({0: x}, share_inputs=True, share_outputs=True)[0]


def onnx_model(case, arrays) -> bytes:
    """One Conv or ConvTranspose node whose weights are constants."""
    onnx = import_module("onnx")
    x, y = input_and_grad(case, arrays)
    each = each_axis(case)
    attributes = {
        "strides": each["stride"], "pads": 2 * each["padding"], "dilations": each["dilation"],
        "group": case.settings["groups"], "kernel_shape": case.geometry.kernel,
        **({"output_padding": each["output_padding"]} if is_transposed(case) else {}),
    }  # fmt: skip
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    node = helper.make_node("ConvTranspose" if is_transposed(case) else "Conv", ["x", "w"], ["y"], **attributes)
    inputs, outputs = ([helper.make_tensor_value_info(n, kind, a.shape)] for n, a in (("x", x), ("y", y)))
    graph = helper.make_graph([node], "layer", inputs, outputs, [onnx.numpy_helper.from_array(arrays["w"], "w")])
    opset = helper.make_opsetid("", 17)
    return helper.make_model(graph, opset_imports=[opset], ir_version=8).SerializeToString()


# ---------------------------------------------------------------------------------------------- SciPy


def scipy_peer(case, op, arrays, threads) -> Callable[[], np.ndarray]:
    """scipy.signal.fftconvolve of each input channel with its kernels, added up.

    It has no strides, dilation or channels. So a strided convolution is computed at stride 1 and most of it thrown
    away, a transposed one reads its input with zeros inserted, and dilated kernels have zeros between their taps. For
    most layers this is faster than scipy.signal.correlate2d and scipy.ndimage.correlate of each pair of channels.
    """
    g, (x, result) = case.geometry, input_and_grad(case, arrays)
    # of one input channel, with all output channels of its group: spectra, their product and its transform
    _refuse(op, 4 * x.itemsize * g.batch * result.shape[1] // g.groups * prod(g.span))
    fftconvolve, set_workers = import_module("scipy.signal").fftconvolve, import_module("scipy.fft").set_workers
    run, kernels = (_scipy_transposed, _swapped) if is_transposed(case) else (_scipy_conv, _flipped)
    w = kernels(g, _spread(arrays["w"], g.dilation))

    def call():
        with set_workers(threads):
            return run(g, x, w, fftconvolve)

    return call


def _scipy_conv(g, x, w, fftconvolve):
    return _summed(g, fitted(x, g.pad, g.span), w, partial(fftconvolve, mode="valid"))[_every(g.stride)]


def _scipy_transposed(g, y, w, fftconvolve):
    return fitted(_summed(g, _spread(y, g.stride), w, partial(fftconvolve, mode="full")), [-p for p in g.pad], g.input)


def _flipped(g, w):
    return w[_every([-1] * g.rank)]


def _swapped(g, w):
    """The weights (K, C / G, ...) as (C, K / G, ...): the result's channels come first."""
    K, C = g.k // g.groups, g.c // g.groups
    return w.reshape(g.groups, K, C, *w.shape[2:]).swapaxes(1, 2).reshape(g.c, K, *w.shape[2:])


def _summed(g, source, w, convolve):
    """The sums over input channels of `source` (N, C, ...) for w (K, C / G, ...), group by group."""
    axes = tuple(range(2, 2 + g.rank))
    inputs, outputs = w.shape[1], len(w) // g.groups
    result = []
    for group in range(g.groups):
        kernels = w[group * outputs : (group + 1) * outputs]
        channels = source[:, group * inputs : (group + 1) * inputs]
        total = convolve(channels[:, :1], kernels[None, :, 0], axes=axes)
        for c in range(1, inputs):
            total += convolve(channels[:, c, None], kernels[None, :, c], axes=axes)
        result.append(total)
    return np.concatenate(result, axis=1)


def _every(steps):
    """The slices of every `steps`-th element of the last axes."""
    return (..., *(slice(None, None, step) for step in steps))


def _spread(array, steps):
    """`array` with zeros between the elements of its last axes, which then are `steps` apart."""
    first = array.ndim - len(steps)
    sizes = [(n - 1) * step + 1 for n, step in zip(array.shape[first:], steps)]
    result = np.zeros((*array.shape[:first], *sizes), array.dtype)
    result[_every(steps)] = array
    return result


def fitted(array, before, sizes) -> np.ndarray:
    """`array` with `before` zeros in front on each spatial axis, filled up or cut to `sizes`; negative ones cut."""
    after = [size - n - b for size, n, b in zip(sizes, array.shape[2:], before)]
    widths = [(0, 0), (0, 0), *((max(b, 0), max(a, 0)) for b, a in zip(before, after))]
    padded = np.pad(array, widths) if np.any(widths) else array
    first = [max(-b, 0) for b in before]
    return padded[(slice(None), slice(None), *(slice(a, a + size) for a, size in zip(first, sizes)))]


# ------------------------------------------------------------------------------------- NumPy and BLAS


def im2col_peer(case, op, arrays, threads) -> Callable[[], np.ndarray]:
    """The matrix of all windows, written out, and one product of matrices for each group and image."""
    g = case.geometry
    _check_room(arrays["x"].itemsize * g.batch * g.c // g.groups * prod(g.kernel) * prod(g.output))
    import_module("threadpoolctl").threadpool_limits(threads, user_api="blas")
    run = {"forward": _im2col_forward, "adjoint": _im2col_adjoint, "weight": _im2col_weight}[CONTRACTION[case.op][op]]
    return partial(run, g, **arrays)


def _im2col_forward(g, x, w, y):
    result = np.empty_like(y).reshape(g.batch, g.k, prod(g.output))
    for ks, columns in _columns(g, x):
        result[:, ks] = w[ks].reshape(g.k // g.groups, -1) @ columns
    return result.reshape(y.shape)


def _im2col_weight(g, x, w, y):
    result = np.empty_like(w)
    for ks, columns in _columns(g, x):
        rows = y[:, ks].reshape(g.batch, -1, prod(g.output))
        result[ks] = (rows @ columns.swapaxes(1, 2)).sum(0).reshape(w[ks].shape)
    return result


def _im2col_adjoint(g, x, w, y):
    padded = np.zeros((g.batch, g.c, *g.span), x.dtype)
    for cs, ks in _groups(g):
        matrix = w[ks].reshape(g.k // g.groups, -1).T
        columns = matrix @ y[:, ks].reshape(g.batch, -1, prod(g.output))
        columns = columns.reshape(g.batch, g.c // g.groups, *g.kernel, *g.output)
        windows = _windows(g, padded[:, cs])
        for tap in np.ndindex(*g.kernel):  # within one tap, no two windows overlap
            windows[(..., *tap)] += columns[(slice(None), slice(None), *tap)]
    return fitted(padded, [-p for p in g.pad], g.input)


def _columns(g, x):
    """For each group its channels of y and its matrices (N, C / G * taps, pixels) of windows."""
    padded = fitted(x, g.pad, g.span)
    axes = (0, 1, *range(2 + g.rank, 2 + 2 * g.rank), *range(2, 2 + g.rank))
    for cs, ks in _groups(g):
        yield ks, _windows(g, padded[:, cs]).transpose(axes).reshape(g.batch, -1, prod(g.output))


def _groups(g):
    """For each group the slices of its channels of x and of y."""
    C, K = g.c // g.groups, g.k // g.groups
    return [(slice(i * C, (i + 1) * C), slice(i * K, (i + 1) * K)) for i in range(g.groups)]


def _windows(g, padded):
    """View (N, C, *output, *kernel) of `padded`."""
    axes, sizes = tuple(range(2, 2 + g.rank)), extents(g.kernel, g.dilation)
    view = np.lib.stride_tricks.sliding_window_view(padded, sizes, axes, writeable=padded.flags.writeable)
    return view[_every((*g.stride, *g.dilation))]


PEERS = {
    "torch": torch_peer, "onnxruntime": onnxruntime_peer, "openvino": openvino_peer, "scipy": scipy_peer,
    "im2col": im2col_peer,
}  # fmt: skip
# What has to be installed; NumPy alone does not say how many threads its BLAS uses.
MODULES = {
    "torch": ("torch",), "onnxruntime": ("onnxruntime", "onnx"), "openvino": ("openvino", "onnx"), "scipy": ("scipy",),
    "im2col": ("threadpoolctl",),
}  # fmt: skip
# The others are slow, and have to be asked for.
DEFAULT_PEERS = ("torch", "onnxruntime", "openvino")
# A Fourier transform spreads its rounding errors over all pixels, those that are sums of few products included.
SPREADING = ("scipy",)
