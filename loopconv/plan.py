"""Plans: convolutions with fixed weights, which are packed or transformed once."""

# mypy: disable-error-code="union-attr"
# (mypy does not follow `w, bias = arrays.accept(w=w, bias=bias)`, which makes ndarrays of array-likes)

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

import numpy as np

from loopconv import arrays, geometry, registry

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike

    from loopconv.ops import Ints, Padding


class Plan:
    """A `conv` or `conv_transpose` with fixed weights, made by `plan_conv` and `plan_conv_transpose`.

    Attributes
    ----------
    input_shape, output_shape : tuple of int
        Of the arrays that a call takes and gives.
    dtype : numpy.dtype
        Of those arrays, float32 or float64; on a GPU its name, float16 or bfloat16 too.
    algorithm : str
        See `conv`. Left out, what is fastest once the weights are prepared, which may be another than in a plain call.
    nbytes : int
        Bytes that the plan keeps: weights as given and packed, and buffers.

    Notes
    -----
    A plan keeps copies of its weights and bias. Several threads may call it at the same time; then it keeps buffers for
    each call that is under way.
    """

    def __init__(self, name, contraction, g, w, bias, batched, algorithm, precision):
        registry.select(contraction, "tiled", g, w.dtype, algorithm, precision)  # or the reason why not
        self._name = name
        self._prepared = import_module("loopconv.tiled.prepared").Prepared(contraction, g, w, bias, algorithm)
        self._shapes = (g.x_shape, g.y_shape) if contraction == "forward" else (g.y_shape, g.x_shape)
        self.input_shape, self.output_shape = (shape if batched else shape[1:] for shape in self._shapes)
        self.dtype = w.dtype

    @property
    def algorithm(self) -> str:
        return self._prepared.algorithm

    @property
    def nbytes(self) -> int:
        return self._prepared.nbytes

    def __call__(self, x: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Run the planned call.

        Parameters
        ----------
        x : ndarray of `input_shape` and `dtype`
            Copied where it is not contiguous.
        out : ndarray of `output_shape` and `dtype`, optional
            Where to put the result. With a contiguous `x` and `out`, nothing is allocated after the first call.

        Returns
        -------
        ndarray of `output_shape` and `dtype`
            `out` where it was given.

        Raises
        ------
        TypeError, ValueError
            Naming the argument, what it was, and what would be valid. `out` is untouched then.
        """
        if not isinstance(x, np.ndarray):
            raise TypeError(f"x must be a NumPy array of the plan's dtype {self.dtype}, got {type(x).__name__}")
        if x.dtype != self.dtype:
            raise TypeError(f"x must have the plan's dtype {self.dtype}, got dtype {x.dtype}")
        if x.shape != self.input_shape:
            raise ValueError(f"x must have the plan's input shape {self.input_shape}, got shape {x.shape}")
        if out is not None:
            arrays.check_out(out, self.output_shape, self.dtype, x=x)
        given, made = self._shapes
        in_place = out is not None and arrays.is_plain(out, self.dtype)
        result = out.reshape(made) if in_place else np.empty(made, self.dtype)
        self._prepared.run(arrays.plain(x, given, self.dtype), result)
        if out is None:
            return result.reshape(self.output_shape)
        if not in_place:
            out[...] = result.reshape(self.output_shape)
        return out

    def __repr__(self) -> str:
        return f"<{self._name} {self.input_shape} -> {self.output_shape}, {self.dtype}, {self.algorithm}>"


def plan_conv(
    w: ArrayLike,
    bias: ArrayLike | None = None,
    *,
    input_shape: Sequence[int],
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    algorithm: str | None = None,
    precision: str | None = None,
) -> Plan:
    """Plan calls of `conv` that have the same weights and the same input shape.

    Parameters
    ----------
    w : array_like of float32 or float64, or array of a GPU, shape (K, C / groups, \\*kernel)
        Weights. Their dtype is that of the calls, whose arrays are on the GPU if the weights are.
    bias : array_like, shape (K,), optional
        Added to every pixel of its output channel.
    input_shape : sequence of int
        (N, C, \\*input) or (C, \\*input), the shape of `x` in the calls.
    stride, padding, dilation, groups, algorithm, precision
        See `conv`.

    Returns
    -------
    Plan
        ``plan(x, out=None)`` gives what ``conv(x, w, bias, algorithm=plan.algorithm, ...)`` gives, with the same bits.

    Raises
    ------
    TypeError, ValueError
        As `conv`; also if `w` is of another dtype.

    Examples
    --------
    >>> import numpy as np, loopconv
    >>> w = np.ones((4, 3, 3, 3), np.float32)
    >>> plan = loopconv.plan_conv(w, input_shape=(3, 32, 32), padding=1)
    >>> plan(np.ones((3, 32, 32), np.float32))[0, 0, :3]
    array([12., 18., 18.], dtype=float32)
    """
    w, bias = arrays.accept(w=w, bias=bias)
    input_shape = geometry.shape_tuple("input_shape", input_shape)
    g = geometry.conv(
        input_shape, w.shape, stride=stride, padding=padding, dilation=dilation, groups=groups, x_name="input_shape"
    )
    return _plan("plan_conv", "forward", g, g.k, w, bias, input_shape, algorithm, precision)


def plan_conv_transpose(
    w: ArrayLike,
    bias: ArrayLike | None = None,
    *,
    input_shape: Sequence[int],
    stride: Ints = 1,
    padding: Padding = 0,
    output_padding: Ints = 0,
    output_size: Ints | None = None,
    dilation: Ints = 1,
    groups: int = 1,
    algorithm: str | None = None,
    precision: str | None = None,
) -> Plan:
    """Plan calls of `conv_transpose` that have the same weights and the same input shape.

    Parameters
    ----------
    w : array_like of float32 or float64, or array of a GPU, shape (C_in, C_out / groups, \\*kernel)
        Weights. Their dtype is that of the calls, whose arrays are on the GPU if the weights are.
    bias : array_like, shape (C_out,), optional
        Added to every pixel of its output channel.
    input_shape : sequence of int
        (N, C_in, \\*input) or (C_in, \\*input), the shape of `x` in the calls.
    stride, padding, output_padding, output_size, dilation, groups, algorithm, precision
        See `conv_transpose`.

    Returns
    -------
    Plan
        ``plan(x, out=None)`` gives what ``conv_transpose(x, w, bias, algorithm=plan.algorithm, ...)`` gives, with the
        same bits.

    Raises
    ------
    TypeError, ValueError
        As `conv_transpose`; also if `w` is of another dtype.
    """
    w, bias = arrays.accept(w=w, bias=bias)
    input_shape = geometry.shape_tuple("input_shape", input_shape)
    g = geometry.conv_transpose(
        input_shape, w.shape, stride=stride, padding=padding, output_padding=output_padding, output_size=output_size,
        dilation=dilation, groups=groups, x_name="input_shape",
    )  # fmt: skip
    return _plan("plan_conv_transpose", "adjoint", g, g.c, w, bias, input_shape, algorithm, precision)


def _plan(name, contraction, g, channels, w, bias, input_shape, algorithm, precision):
    if bias is not None and bias.shape != (channels,):
        raise ValueError(f"bias must have shape ({channels},), one value per output channel, got shape {bias.shape}")
    batched = len(input_shape) == w.ndim
    if arrays.dtypes(w, bias)[0] is None:
        make = import_module("loopconv.cuda.prepared").GpuPlan
        return make(name, contraction, g, w, bias, batched, algorithm, precision)
    return Plan(name, contraction, g, *_copies(w, bias), batched, algorithm, precision)


def _copies(w, bias):
    """Copies of the weights and the bias, of the dtype of the weights."""
    dtype = w.dtype.newbyteorder("=")
    if dtype not in (np.float32, np.float64):
        raise TypeError(f"w must be of dtype float32 or float64 for a plan, got dtype {w.dtype} in shape {w.shape}")
    if bias is not None and np.result_type(w, bias) != dtype:
        raise TypeError(f"bias must be of a dtype that fits into w's {dtype}, got dtype {bias.dtype}")
    return np.array(w, dtype, order="C"), None if bias is None else np.array(bias, dtype, order="C")
