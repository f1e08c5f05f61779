"""The matrix C of a convolution, written down entry by entry: a second, independent oracle."""

# mypy: disable-error-code="union-attr"
# (as in ops.py)

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from loopconv import arrays, geometry

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from numpy.typing import ArrayLike

    from loopconv.ops import Ints, Padding

FORMATS = ("dense", "csr")


def conv_matrix(
    w: ArrayLike,
    input_shape: Sequence[int],
    *,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    format: str = "dense",
) -> Any:
    """Return the matrix C with ``C @ x.ravel() == conv(x, w, ...).ravel()``.

    Its transpose is the transposed convolution: ``C.T @ y.ravel() == conv_transpose(y, w, ...).ravel()`` for
    the ``output_size`` of `input_shape`. Its conjugate transpose takes gradients back.

    Parameters
    ----------
    w : array_like, shape (K, C / groups, \\*kernel)
        Weights.
    input_shape : sequence of int
        ``x.shape``: (C, \\*input) or (N, C, \\*input).
    stride, padding, dilation, groups
        See `conv`.
    format : {'dense', 'csr'}, optional
        An ndarray, or a `scipy.sparse.csr_array`, which needs SciPy.

    Returns
    -------
    ndarray or scipy.sparse.csr_array, shape (size of the output, size of the input)
        Of the dtype that `conv` computes `w` in.

    Raises
    ------
    TypeError, ValueError
        As `conv`; also for an unknown format.
    ImportError
        If `format` is 'csr' and SciPy is not installed.

    References
    ----------
    Dumoulin and Visin, arXiv:1603.07285, section 4.1.

    Examples
    --------
    >>> import loopconv
    >>> loopconv.conv_matrix([[[1, 2]]], (1, 4))
    array([[1, 2, 0, 0],
           [0, 1, 2, 0],
           [0, 0, 1, 2]])
    """
    (w,) = arrays.accept_of_host(w=w)
    input_shape = geometry.shape_tuple("input_shape", input_shape)
    if not isinstance(format, str) or format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {format!r}")
    g = geometry.conv(
        input_shape, w.shape, stride=stride, padding=padding, dilation=dilation, groups=groups, x_name="input_shape"
    )
    dtype, _ = arrays.dtypes(w)
    rows, columns, values = _entries(g, w.astype(dtype))
    shape = (int(np.prod(g.y_shape)), int(np.prod(g.x_shape)))
    if format == "csr":
        return _csr(rows, columns, values, shape)
    matrix = np.zeros(shape, dtype)
    matrix[rows, columns] = values
    return matrix


def _entries(g, w):
    """(rows, columns, values) of every entry whose tap meets a pixel and not the padding."""
    rank = g.rank

    def along(axis, size):
        """0 .. size-1 on one of the axes (n, k, c, *taps, *pixels)."""
        return np.arange(size).reshape([-1 if a == axis else 1 for a in range(3 + 2 * rank)])

    n, k, c = along(0, g.batch), along(1, g.k), along(2, w.shape[1])
    first = k // max(g.k // g.groups, 1) * w.shape[1]  # the first channel of the group that k is in
    row, column, valid = n * g.k + k, n * g.c + first + c, np.True_
    for a in range(rank):
        r, p = along(3 + a, g.kernel[a]), along(3 + rank + a, g.output[a])
        i = p * g.stride[a] + r * g.dilation[a] - g.pad[a]
        valid = valid & (i >= 0) & (i < g.input[a])
        row, column = row * g.output[a] + p, column * g.input[a] + i
    value = w.reshape(1, *w.shape, *(1,) * rank)
    row, column, value, valid = np.broadcast_arrays(row, column, value, valid)
    return row[valid], column[valid], value[valid]


def _csr(rows, columns, values, shape):
    try:
        from scipy.sparse import csr_array
    except ImportError:
        raise ImportError("format='csr' needs SciPy: pip install scipy, or use format='dense'") from None
    return csr_array((values, (rows, columns)), shape=shape)
