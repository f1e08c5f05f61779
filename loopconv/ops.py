"""The public functions: validate, then run one of the three contractions.

A convolution reads `x` and writes `y`; its transpose reads `y` and writes `x`. Both directions, and all
of their gradients, name two of the three arrays of one :class:`~loopconv.geometry.Geometry`, and the
contraction that is run is the one that gives the third.
"""

# mypy: disable-error-code="union-attr"
# (mypy does not follow `x, w = arrays.accept(x=x, w=w)`, which makes ndarrays of array-likes)

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial, wraps
from importlib import import_module
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from loopconv import arrays, geometry, registry

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike

    Ints = int | Sequence[int]
    Padding = int | str | Sequence[int | tuple[int, int]]


class Gradients(NamedTuple):
    """Gradients with respect to the three arguments of a convolution or of its transpose."""

    input: np.ndarray
    weight: np.ndarray
    bias: np.ndarray


class _Form(NamedTuple):
    """A call: its contraction, the names of its two arrays, and which arrays of the form these and the result are."""

    contraction: str
    names: tuple[str, str]
    roles: tuple[str, str]
    result: str


_FORWARD, _ADJOINT = ("forward", ("x", "w"), "y"), ("adjoint", ("y", "w"), "x")
_WEIGHT, _SWAPPED = ("weight", ("y", "x"), "w"), ("weight", ("x", "y"), "w")
# The transpose runs the form backwards.
_CONV, _CONV_INPUT_GRAD, _CONV_WEIGHT_GRAD, _TRANSPOSE, _TRANSPOSE_INPUT_GRAD, _TRANSPOSE_WEIGHT_GRAD = (
    _Form(contraction, names, roles, result)
    for (contraction, roles, result), names in (
        (_FORWARD, ("x", "w")), (_ADJOINT, ("grad", "w")), (_WEIGHT, ("grad", "x")),
        (_ADJOINT, ("x", "w")), (_FORWARD, ("grad", "w")), (_SWAPPED, ("grad", "x")),
    )
)  # fmt: skip


class _Call(NamedTuple):
    """A call of which all but the arrays is settled.

    `shapes` are those of the two arrays and `whole` that of the result as kernels see them, which `ordered` puts into
    the order x, w, y; `dtype` is None where the arrays are on a GPU, and `run` where another backend may be chosen at
    the next call.
    """

    shapes: tuple[tuple[int, ...], ...]
    ordered: Callable[[tuple], tuple]
    whole: tuple[int, ...]
    shape: tuple[int, ...]
    dtype: Any
    compute: Any
    run: Callable[..., None] | None


def _contract(form, g, given, batched, bias=None, out=None, backend=None, algorithm=None, precision=None):
    """The array of `g` that is not among the two `given`, as the user sees it.

    Where a gradient is given, the other factor is conjugated: that of a complex product a*b with
    respect to a is ``grad * conj(b)``.
    """
    first, second = given
    is_plain = backend is None and algorithm is None and precision is None
    is_known = is_plain or geometry.are_told_apart((backend, algorithm, precision))
    shapes, ordered, whole, shape, dtype, compute, run = (_settled if is_known else _settled.__wrapped__)(
        form, g, batched, backend, algorithm, precision, first.dtype, second.dtype, None if bias is None else bias.dtype
    )
    if dtype is None:
        return _gpu_door().contract(form, g, shape, given, bias, out, backend, algorithm, precision)
    if out is not None:
        arrays.check_out(out, shape, dtype, **dict(zip(form.names, given)), bias=bias)
    if form.names[0] == "grad" and compute.kind == "c":
        second = second.conj()
    in_place = out is not None and arrays.is_plain(out, compute)
    result = out.reshape(whole) if in_place else np.empty(whole, compute)
    first, second = arrays.plain(first, shapes[0], compute), arrays.plain(second, shapes[1], compute)
    if run is None:
        run = partial(registry.select(form.contraction, backend, g, compute, algorithm, precision), g)
    x, w, y = ordered((first, second, result))
    if bias is None:
        run(x, w, y)
    else:
        run(x, w, y, bias=arrays.plain(bias, bias.shape, compute))
    if shape is not whole:
        result = result.reshape(shape)
    if out is None:
        return result if dtype is compute else result.astype(dtype, copy=False)
    if not in_place:
        out[...] = result
    return out


@registry.kept
def _settled(form, g, batched, backend, algorithm, precision, *dtypes):
    """The _Call for arrays of these dtypes."""
    whole = g.shapes[form.result]
    shape = whole if batched or form.result == "w" else whole[1:]
    dtype, compute = arrays.promoted(*(given for given in dtypes if given is not None))
    run = None
    if dtype is not None:
        run = registry.settle(form.contraction, backend, g, compute, algorithm, precision)
    roles = (*form.roles, form.result)
    ordered = itemgetter(*map(roles.index, "xwy"))
    return _Call(tuple(g.shapes[role] for role in form.roles), ordered, whole, shape, dtype, compute, run)


@cache
def _gpu_door():
    return import_module("loopconv.cuda.door")


def _is_batched(shape, w_shape):
    return len(shape) == len(w_shape)


def _check_grad(grad, expected, batched):
    expected = expected if batched else expected[1:]
    if grad.shape != expected:
        raise ValueError(f"grad must have the output's shape {expected}, got shape {grad.shape}")


def _check_bias(bias, channels):
    if bias.shape != (channels,):
        raise ValueError(f"bias must have shape ({channels},), one value per output channel, got shape {bias.shape}")


# -------------------------------------------------------------------------------------- convolution


def conv(
    x: ArrayLike,
    w: ArrayLike,
    bias: ArrayLike | None = None,
    *,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    out: np.ndarray | None = None,
    backend: str | None = None,
    algorithm: str | None = None,
    precision: str | None = None,
) -> np.ndarray:
    """Convolve `x` with `w` (the cross-correlation of deep learning: the kernel is not flipped).

    Parameters
    ----------
    x : array_like, shape (N, C, \\*input) or (C, \\*input)
        Input: N images of C channels. Without N, the result has none either.
    w : array_like, shape (K, C / groups, \\*kernel)
        Weights. ``w.ndim - 2`` is the number of spatial axes.
    bias : array_like, shape (K,), optional
        Added to every pixel of its output channel.
    stride : int or sequence of int, optional
        Input pixels between neighbouring windows, at least 1; one for all axes or one per axis.
    padding : int, sequence, or {'valid', 'same', 'full'}, optional
        Zeros around the input, in pixels: one number, one per axis, or a (lo, hi) pair per axis.
        Negative ones crop. 'valid' is 0; 'same' gives ``ceil(n / stride)`` output pixels, an odd pixel going
        to the end; 'full' is the kernel's extent less one on both sides.
    dilation : int or sequence of int, optional
        Input pixels between neighbouring taps, at least 1.
    groups : int, optional
        Channels are cut into this many groups that do not see each other. It divides C and K.
    out : ndarray, optional
        Where to put the result: of its shape and dtype, writable, apart from the inputs.
    backend : str, optional
        A name from `backends`. By default the fastest that takes the case.
    algorithm : {'direct', 'indirect', 'depthwise', 'winograd2', 'winograd4'}, optional
        How the backend 'tiled' sums; by default by what it expects to be fastest. 'direct' has pixels in vectors and
        'indirect' channels; 'depthwise' is for groups of one channel. The other two, F(2x2, RxS) and F(4x4, RxS), are
        for a stride or a dilation, where the kernel divided by the stride, rounded up, has 2 or 3 taps on one or both
        of the last two axes and 1 on the other; 'winograd4' is for 3 or 1, and never chosen by default, as its rounding
        error is about ten times that of the others. The backend 'cuda' has 'tiled'; 'winograd2' for 3x3 taps without
        stride or dilation, not in float64; and 'textbook'.
    precision : {'tf32'}, optional
        Of the products on the backend 'cuda', for float32: 'tf32' rounds their factors to 10 bits, as tensor cores do.

    Returns
    -------
    ndarray, shape (N, K, \\*output) or (K, \\*output)
        ``y[n, k, p] = bias[k] + sum over c, r of w[k, c, r] * x[n, c, p*stride + r*dilation - lo]`` with
        ``(n + lo + hi - dilation*(k-1) - 1) // stride + 1`` pixels on an axis of n pixels and k taps.
        Its dtype follows NumPy's promotion; integers are summed exactly in 64 bits, float16 in float32.

    Raises
    ------
    TypeError, ValueError
        Naming the argument, what it was, and what would be valid. `out` is untouched then.

    References
    ----------
    V. Dumoulin and F. Visin, "A guide to convolution arithmetic for deep learning", arXiv:1603.07285,
    sections 2 and 3.

    Examples
    --------
    >>> import numpy as np, loopconv
    >>> loopconv.conv(np.arange(9).reshape(1, 3, 3), [[[[1, 2], [3, 4]]]])
    array([[[27, 37],
            [57, 67]]])
    """
    x, w, bias = arrays.accept(x=x, w=w, bias=bias)
    g = geometry.conv(x.shape, w.shape, stride, padding, dilation, groups)
    if bias is not None:
        _check_bias(bias, g.k)
    return _contract(_CONV, g, (x, w), x.ndim == w.ndim, bias, out, backend, algorithm, precision)


def conv_input_grad(
    grad: ArrayLike,
    w: ArrayLike,
    input_shape: Sequence[int],
    *,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    out: np.ndarray | None = None,
    backend: str | None = None,
    algorithm: str | None = None,
    precision: str | None = None,
) -> np.ndarray:
    """Gradient of `conv` with respect to its input: ``C.conj().T`` applied to the output's gradient.

    Parameters
    ----------
    grad : array_like, shape (N, K, \\*output) or (K, \\*output)
        Gradient with respect to the output of ``conv(x, w, ...)``.
    w : array_like, shape (K, C / groups, \\*kernel)
        The weights of that call.
    input_shape : sequence of int
        ``x.shape``. Several input sizes give the same output size, so it has to be said.
    stride, padding, dilation, groups
        Those of that call; see `conv`.
    out, backend, algorithm, precision
        See `conv`.

    Returns
    -------
    ndarray, shape `input_shape`
        Zero where no window reached.

    Raises
    ------
    TypeError, ValueError
        As `conv`; also if `grad` does not have the output's shape.

    References
    ----------
    Dumoulin and Visin, arXiv:1603.07285, section 4.
    """
    grad, w = arrays.accept(grad=grad, w=w)
    input_shape = geometry.shape_tuple("input_shape", input_shape)
    g = geometry.conv(input_shape, w.shape, stride, padding, dilation, groups, x_name="input_shape")
    batched = _is_batched(input_shape, w.shape)
    _check_grad(grad, g.y_shape, batched)
    return _contract(_CONV_INPUT_GRAD, g, (grad, w), batched, None, out, backend, algorithm, precision)


def conv_weight_grad(
    grad: ArrayLike,
    x: ArrayLike,
    weight_shape: Sequence[int],
    *,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    out: np.ndarray | None = None,
    backend: str | None = None,
    algorithm: str | None = None,
    precision: str | None = None,
) -> np.ndarray:
    """Gradient of `conv` with respect to its weights.

    Parameters
    ----------
    grad : array_like, shape (N, K, \\*output) or (K, \\*output)
        Gradient with respect to the output of ``conv(x, w, ...)``.
    x : array_like, shape (N, C, \\*input) or (C, \\*input)
        The input of that call.
    weight_shape : sequence of int
        ``w.shape``. Several kernel sizes give the same output size, so it has to be said.
    stride, padding, dilation, groups
        Those of that call; see `conv`.
    out, backend, precision
        See `conv`.
    algorithm : {'outer', 'dots', 'depthwise', 'winograd2'}, optional
        How the backend 'tiled' sums: outer products of channels; dot products along rows, for few channels; rows that
        meet rows, for groups of one channel; or F(2x2, RxS), where `conv` takes 'winograd2'.

    Returns
    -------
    ndarray, shape `weight_shape`
        ``sum over n, p of grad[n, k, p] * conj(x[n, c, p*stride + r*dilation - lo])``.

    Raises
    ------
    TypeError, ValueError
        As `conv`; also if `grad` does not have the output's shape.
    """
    grad, x = arrays.accept(grad=grad, x=x)
    weight_shape = geometry.shape_tuple("weight_shape", weight_shape)
    g = geometry.conv(x.shape, weight_shape, stride, padding, dilation, groups, w_name="weight_shape")
    batched = _is_batched(x.shape, weight_shape)
    _check_grad(grad, g.y_shape, batched)
    return _contract(_CONV_WEIGHT_GRAD, g, (grad, x), batched, None, out, backend, algorithm, precision)


def conv_bias_grad(grad: ArrayLike, *, batched: bool = True) -> np.ndarray:
    """Gradient of `conv` with respect to its bias: the sum over images and pixels.

    Parameters
    ----------
    grad : array_like, shape (N, K, \\*output) or, with ``batched=False``, (K, \\*output)
        Gradient with respect to the output.
    batched : bool, optional
        Whether `grad` has the axis N. Its shape alone does not tell.

    Returns
    -------
    ndarray, shape (K,)

    Raises
    ------
    TypeError, ValueError
        If `grad` is not an array of numbers with those axes.
    """
    (grad,) = arrays.accept(grad=grad)
    axis = 1 if batched else 0
    if grad.ndim <= axis:
        raise ValueError(f"grad must have more than {axis} dimensions with batched={batched}, got shape {grad.shape}")
    dtype, compute = arrays.dtypes(grad)
    if dtype is None:
        return _gpu_door().bias_grad(grad, axis)
    others = tuple(a for a in range(grad.ndim) if a != axis)
    return grad.sum(axis=others, dtype=compute).astype(dtype, copy=False)


def conv_grads(
    grad: ArrayLike,
    x: ArrayLike,
    w: ArrayLike,
    *,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    backend: str | None = None,
    precision: str | None = None,
) -> Gradients:
    """All gradients of ``conv(x, w, bias, ...)``.

    Parameters
    ----------
    grad : array_like, shape (N, K, \\*output) or (K, \\*output)
        Gradient with respect to the output.
    x, w : array_like
        The arguments of that call.
    stride, padding, dilation, groups, backend, precision
        See `conv`.

    Returns
    -------
    Gradients
        Named tuple ``(input, weight, bias)`` of ndarrays, each of its argument's shape.

    Raises
    ------
    TypeError, ValueError
        As `conv_input_grad` and `conv_weight_grad`.
    """
    grad, x, w = arrays.accept(grad=grad, x=x, w=w)
    settings: dict[str, Any] = {
        "stride": stride, "padding": padding, "dilation": dilation, "groups": groups, "backend": backend,
        "precision": precision,
    }  # fmt: skip
    geometry.conv(x.shape, w.shape, stride=stride, padding=padding, dilation=dilation, groups=groups)
    return Gradients(
        conv_input_grad(grad, w, x.shape, **settings),
        conv_weight_grad(grad, x, w.shape, **settings),
        conv_bias_grad(grad, batched=_is_batched(x.shape, w.shape)),
    )


# --------------------------------------------------------------------------- transposed convolution


def conv_transpose(
    x: ArrayLike,
    w: ArrayLike,
    bias: ArrayLike | None = None,
    *,
    stride: Ints = 1,
    padding: Padding = 0,
    output_padding: Ints = 0,
    output_size: Ints | None = None,
    dilation: Ints = 1,
    groups: int = 1,
    out: np.ndarray | None = None,
    backend: str | None = None,
    algorithm: str | None = None,
    precision: str | None = None,
) -> np.ndarray:
    """Scatter-add a kernel scaled by each pixel of `x`: the transpose of `conv`, not its inverse.

    Parameters
    ----------
    x : array_like, shape (N, C_in, \\*input) or (C_in, \\*input)
        Input. Without N, the result has none either.
    w : array_like, shape (C_in, C_out / groups, \\*kernel)
        Weights: the array that a `conv` from C_out to C_in channels takes.
    bias : array_like, shape (C_out,), optional
        Added to every pixel of its output channel.
    stride : int or sequence of int, optional
        Output pixels between the kernels of neighbouring input pixels, at least 1.
    padding : int, sequence, or {'valid', 'same', 'full'}, optional
        Pixels cropped from the output: one number, one per axis, or a (lo, hi) pair per axis. Negative
        ones extend it. With 'same' this is the transpose of a 'same' `conv`, with ``n * stride`` output
        pixels unless `output_size` says another number.
    output_padding : int or sequence of int, optional
        Pixels by which the output is longer at its end, less than ``max(stride, dilation)``. They show
        what the kernels wrote there, or the bias.
    output_size : int or sequence of int, optional
        Spatial size of the output, in place of `output_padding`.
    dilation : int or sequence of int, optional
        Output pixels between neighbouring taps, at least 1.
    groups : int, optional
        Channels are cut into this many groups that do not see each other.
    out, backend, algorithm, precision
        See `conv`.

    Returns
    -------
    ndarray, shape (N, C_out, \\*output) or (C_out, \\*output)
        ``y[n, c, p*stride + r*dilation - lo] += w[k, c, r] * x[n, k, p]`` over all k, p and r, on top of the
        bias; an axis of n pixels becomes ``(n-1)*stride + dilation*(k-1) + 1 - lo - hi + output_padding``.

    Raises
    ------
    TypeError, ValueError
        Naming the argument, what it was, and what would be valid. `out` is untouched then.

    References
    ----------
    Dumoulin and Visin, arXiv:1603.07285, section 4.

    Examples
    --------
    >>> import numpy as np, loopconv
    >>> x = np.arange(4).reshape(1, 2, 2)
    >>> loopconv.conv_transpose(x, x[None])
    array([[[ 0,  0,  1],
            [ 0,  4,  6],
            [ 4, 12,  9]]])
    """
    x, w, bias = arrays.accept(x=x, w=w, bias=bias)
    g = geometry.conv_transpose(x.shape, w.shape, stride, padding, output_padding, output_size, dilation, groups)
    if bias is not None:
        _check_bias(bias, g.c)
    return _contract(_TRANSPOSE, g, (x, w), x.ndim == w.ndim, bias, out, backend, algorithm, precision)


def conv_transpose_input_grad(
    grad: ArrayLike,
    w: ArrayLike,
    input_shape: Sequence[int],
    *,
    stride: Ints = 1,
    padding: Padding = 0,
    output_padding: Ints | None = None,
    output_size: Ints | None = None,
    dilation: Ints = 1,
    groups: int = 1,
    out: np.ndarray | None = None,
    backend: str | None = None,
    algorithm: str | None = None,
    precision: str | None = None,
) -> np.ndarray:
    """Gradient of `conv_transpose` with respect to its input: a convolution with the same weight array.

    Parameters
    ----------
    grad : array_like, shape (N, C_out, \\*output) or (C_out, \\*output)
        Gradient with respect to the output of ``conv_transpose(x, w, ...)``.
    w : array_like, shape (C_in, C_out / groups, \\*kernel)
        The weights of that call.
    input_shape : sequence of int
        ``x.shape``.
    stride, padding, dilation, groups
        Those of that call; see `conv_transpose`.
    output_padding, output_size
        May be left out, since the shape of `grad` says the same; checked where given.
    out, backend, algorithm, precision
        See `conv`.

    Returns
    -------
    ndarray, shape `input_shape`

    Raises
    ------
    TypeError, ValueError
        As `conv_transpose`; also if `grad` does not have the output's shape.
    """
    grad, w = arrays.accept(grad=grad, w=w)
    input_shape = geometry.shape_tuple("input_shape", input_shape)
    g = geometry.conv_transpose_of_grad(
        grad.shape, input_shape, w.shape, stride=stride, padding=padding, output_padding=output_padding,
        output_size=output_size, dilation=dilation, groups=groups, x_name="input_shape",
    )  # fmt: skip
    batched = _is_batched(input_shape, w.shape)
    _check_grad(grad, g.x_shape, batched)
    return _contract(_TRANSPOSE_INPUT_GRAD, g, (grad, w), batched, None, out, backend, algorithm, precision)


def conv_transpose_weight_grad(
    grad: ArrayLike,
    x: ArrayLike,
    weight_shape: Sequence[int],
    *,
    stride: Ints = 1,
    padding: Padding = 0,
    output_padding: Ints | None = None,
    output_size: Ints | None = None,
    dilation: Ints = 1,
    groups: int = 1,
    out: np.ndarray | None = None,
    backend: str | None = None,
    algorithm: str | None = None,
    precision: str | None = None,
) -> np.ndarray:
    """Gradient of `conv_transpose` with respect to its weights.

    Parameters
    ----------
    grad : array_like, shape (N, C_out, \\*output) or (C_out, \\*output)
        Gradient with respect to the output of ``conv_transpose(x, w, ...)``.
    x : array_like, shape (N, C_in, \\*input) or (C_in, \\*input)
        The input of that call.
    weight_shape : sequence of int
        ``w.shape``.
    stride, padding, dilation, groups
        Those of that call; see `conv_transpose`.
    output_padding, output_size
        May be left out, since the shape of `grad` says the same; checked where given.
    out, backend, precision
        See `conv`.
    algorithm : {'outer', 'dots', 'depthwise', 'winograd2'}, optional
        How the backend 'tiled' sums: outer products of channels; dot products along rows, for few channels; rows that
        meet rows, for groups of one channel; or F(2x2, RxS), where `conv` takes 'winograd2'.

    Returns
    -------
    ndarray, shape `weight_shape`
        ``sum over n, p of conj(x[n, k, p]) * grad[n, c, p*stride + r*dilation - lo]``, zero outside `grad`.

    Raises
    ------
    TypeError, ValueError
        As `conv_transpose`; also if `grad` does not have the output's shape.
    """
    grad, x = arrays.accept(grad=grad, x=x)
    weight_shape = geometry.shape_tuple("weight_shape", weight_shape)
    g = geometry.conv_transpose_of_grad(
        grad.shape, x.shape, weight_shape, stride=stride, padding=padding, output_padding=output_padding,
        output_size=output_size, dilation=dilation, groups=groups, w_name="weight_shape",
    )  # fmt: skip
    batched = _is_batched(x.shape, weight_shape)
    _check_grad(grad, g.x_shape, batched)
    return _contract(_TRANSPOSE_WEIGHT_GRAD, g, (grad, x), batched, None, out, backend, algorithm, precision)


def conv_transpose_bias_grad(grad: ArrayLike, *, batched: bool = True) -> np.ndarray:
    """Gradient of `conv_transpose` with respect to its bias: the sum over images and pixels.

    Parameters
    ----------
    grad : array_like, shape (N, C_out, \\*output) or, with ``batched=False``, (C_out, \\*output)
        Gradient with respect to the output.
    batched : bool, optional
        Whether `grad` has the axis N. Its shape alone does not tell.

    Returns
    -------
    ndarray, shape (C_out,)

    Raises
    ------
    TypeError, ValueError
        If `grad` is not an array of numbers with those axes.
    """
    return conv_bias_grad(grad, batched=batched)


def conv_transpose_grads(
    grad: ArrayLike,
    x: ArrayLike,
    w: ArrayLike,
    *,
    stride: Ints = 1,
    padding: Padding = 0,
    output_padding: Ints | None = None,
    output_size: Ints | None = None,
    dilation: Ints = 1,
    groups: int = 1,
    backend: str | None = None,
    precision: str | None = None,
) -> Gradients:
    """All gradients of ``conv_transpose(x, w, bias, ...)``.

    Parameters
    ----------
    grad : array_like, shape (N, C_out, \\*output) or (C_out, \\*output)
        Gradient with respect to the output.
    x, w : array_like
        The arguments of that call.
    stride, padding, output_padding, output_size, dilation, groups, backend, precision
        See `conv_transpose_input_grad`.

    Returns
    -------
    Gradients
        Named tuple ``(input, weight, bias)`` of ndarrays, each of its argument's shape.

    Raises
    ------
    TypeError, ValueError
        As `conv_transpose_input_grad` and `conv_transpose_weight_grad`.
    """
    grad, x, w = arrays.accept(grad=grad, x=x, w=w)
    settings: dict[str, Any] = {
        "stride": stride, "padding": padding, "output_padding": output_padding, "output_size": output_size,
        "dilation": dilation, "groups": groups, "backend": backend, "precision": precision,
    }  # fmt: skip
    geometry.conv_transpose_of_grad(
        grad.shape, x.shape, w.shape, stride=stride, padding=padding, output_padding=output_padding,
        output_size=output_size, dilation=dilation, groups=groups,
    )  # fmt: skip
    return Gradients(
        conv_transpose_input_grad(grad, w, x.shape, **settings),
        conv_transpose_weight_grad(grad, x, w.shape, **settings),
        conv_transpose_bias_grad(grad, batched=_is_batched(x.shape, w.shape)),
    )


# -------------------------------------------------------------------------------- with a rank check

_Function = TypeVar("_Function", bound="Callable[..., np.ndarray]")


def _of_rank(function: _Function, rank: int) -> _Function:
    """`function`, refusing weights of another rank."""

    @wraps(function)
    def checked(x, w, bias=None, **settings):
        (w,) = arrays.accept(w=w)
        if w.ndim != rank + 2:
            raise ValueError(
                f"w must have {rank + 2} dimensions for {checked.__name__} (two of channels, then {rank} of the "
                f"kernel), got shape {w.shape}"
            )
        return function(x, w, bias, **settings)

    checked.__name__ = checked.__qualname__ = f"{function.__name__}{rank}d"
    checked.__doc__ = (
        f"`{function.__name__}` with {rank} spatial {'axis' if rank == 1 else 'axes'}.\n\n    The same arguments, "
        f"result and errors as `{function.__name__}`, and a ValueError for a `w` of another rank.\n    "
    )
    return checked  # type: ignore[return-value]


conv1d = _of_rank(conv, 1)
conv2d = _of_rank(conv, 2)
conv3d = _of_rank(conv, 3)
conv_transpose1d = _of_rank(conv_transpose, 1)
conv_transpose2d = _of_rank(conv_transpose, 2)
conv_transpose3d = _of_rank(conv_transpose, 3)
