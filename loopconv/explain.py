"""A convolution, explained as data: every product of a call, and sizes and pads read backwards."""

# mypy: disable-error-code="union-attr"
# (as in ops.py)

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from loopconv import arrays, geometry

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike

    from loopconv.geometry import Geometry
    from loopconv.ops import Ints, Padding

OPS = ("conv", "conv_transpose")
LIMIT = 1_000_000  # products of one trace, which are about 100 MB


def geometry_of(
    op, x_shape, w_shape, *, output_padding=0, output_size=None, x_name="x", w_name="w", **settings
) -> Geometry:
    """The geometry of a call of `op`, one of OPS, or the error that says what is wrong with it."""
    if not isinstance(op, str) or op not in OPS:
        raise ValueError(f"op must be one of {', '.join(OPS)}, got {geometry.shown(op)}")
    names = {"x_name": x_name, "w_name": w_name}
    if op == "conv_transpose":
        return geometry.conv_transpose(
            x_shape, w_shape, output_padding=output_padding, output_size=output_size, **settings, **names
        )
    g = geometry.conv(x_shape, w_shape, **settings, **names)
    if any(geometry.per_axis("output_padding", output_padding, g.rank, 0)):
        raise ValueError(f"output_padding must be left out for a conv, which has none, got {output_padding}")
    if output_size is not None:
        raise ValueError(f"output_size must be left out for a conv, which has none, got {output_size}")
    return g


# ------------------------------------------------------------------------------------- every product


def trace(
    op: str,
    input_shape: Sequence[int],
    weight_shape: Sequence[int],
    *,
    x: ArrayLike | None = None,
    w: ArrayLike | None = None,
    stride: Ints = 1,
    padding: Padding = 0,
    output_padding: Ints = 0,
    output_size: Ints | None = None,
    dilation: Ints = 1,
    groups: int = 1,
) -> np.ndarray:
    """List every product that a convolution or its transpose adds up, in the order of the loops.

    Parameters
    ----------
    op : {'conv', 'conv_transpose'}
        The call to follow.
    input_shape : sequence of int
        ``x.shape``: (N, C, \\*input) or (C, \\*input).
    weight_shape : sequence of int
        ``w.shape``.
    x, w : array_like, optional
        Arrays of those shapes, both or none: then the products are computed.
    stride, padding, output_padding, output_size, dilation, groups
        See `conv` and `conv_transpose`; a conv has no `output_padding` and no `output_size`.

    Returns
    -------
    ndarray of shape (products,), structured
        One row for every product of a pixel with a tap. The fields 'output', 'input' and 'weight' are the
        indices of what it is added to, of the pixel and of the tap, in the arrays as the caller has them:
        ``y[tuple(row['output'])] += w[tuple(row['weight'])] * x[tuple(row['input'])]``. With `x` and `w`
        there is a field 'product', in the dtype that the loops compute in. Products with padding, which
        are zero, and those that a transposed convolution crops have no row.

    Raises
    ------
    TypeError, ValueError
        As `conv` and `conv_transpose`; also for more than 1,000,000 products, those with padding included.

    Examples
    --------
    >>> import loopconv
    >>> t = loopconv.trace("conv", (1, 3), (1, 1, 2), x=[[1, 2, 3]], w=[[[10, 1]]])
    >>> for row in t:
    ...     print("y", row["output"], "+= w", row["weight"], "* x", row["input"], "=", row["product"])
    y [0 0] += w [0 0 0] * x [0 0] = 10
    y [0 1] += w [0 0 0] * x [0 1] = 20
    y [0 0] += w [0 0 1] * x [0 1] = 2
    y [0 1] += w [0 0 1] * x [0 2] = 3
    """
    input_shape = geometry.shape_tuple("input_shape", input_shape)
    weight_shape = geometry.shape_tuple("weight_shape", weight_shape)
    g = geometry_of(
        op, input_shape, weight_shape, stride=stride, padding=padding, output_padding=output_padding,
        output_size=output_size, dilation=dilation, groups=groups, x_name="input_shape", w_name="weight_shape",
    )  # fmt: skip
    if g.macs > LIMIT:
        raise ValueError(
            f"input_shape and weight_shape must give at most {LIMIT:,} products to trace, got {g.macs:,} from "
            f"{input_shape} and {weight_shape}"
        )
    values = _values(x, w, input_shape, weight_shape)
    indices = _indices(g, op, batched=len(input_shape) == len(weight_shape))
    fields = [(name, np.intp, (len(axes),)) for name, axes in indices.items()]
    rows = np.empty(len(indices["output"][0]), fields + [("product", v.dtype) for v in values[:1]])
    for name, axes in indices.items():
        rows[name] = np.transpose(axes)
    if values:
        pixels, taps = values
        with np.errstate(all="ignore"):  # NaN, infinities and overflow are results like others
            rows["product"] = taps[tuple(indices["weight"])] * pixels[tuple(indices["input"])]
    return rows


def _values(x, w, input_shape, weight_shape):
    """x and w as the loops compute with them; nothing if they are not given."""
    if x is None and w is None:
        return []
    if x is None or w is None:
        raise ValueError(f"x and w must be given together or not at all, got only {'w' if x is None else 'x'}")
    x, w = arrays.accept_of_host(x=x, w=w)
    for name, array, shape in (("x", x, input_shape), ("w", w, weight_shape)):
        if array.shape != shape:
            raise ValueError(f"{name} must have the shape {shape} that was said, got shape {array.shape}")
    _, compute = arrays.dtypes(x, w)
    return [x.astype(compute), w.astype(compute)]


def _indices(g, op, batched):
    """{'output', 'input', 'weight'}: an index array for each of their axes, products in the order of the loops."""
    *lines, q = [f"p{a}" for a in range(g.rank)]  # the last axis of pixels is the innermost loop
    taps = [f"r{a}" for a in range(g.rank)]
    sizes = {"n": g.batch, "g": g.groups, "k": g.k // g.groups, "c": g.c // g.groups}
    sizes |= dict(zip((*lines, q, *taps), (*g.output, *g.kernel)))
    nest = ["n", "g", "k", *lines, "c", *taps, q] if op == "conv" else ["n", "g", "c", "k", *lines, *taps, q]
    i = dict(zip(nest, np.indices([sizes[name] for name in nest]).reshape(len(nest), g.macs)))

    pixels = [i[p] for p in (*lines, q)]
    reached = [p * s + i[r] * d - lo for p, s, r, d, lo in zip(pixels, g.stride, taps, g.dilation, g.pad)]
    inside = np.ones(g.macs, bool)
    for a, n in zip(reached, g.input):
        inside &= (a >= 0) & (a < n)
    k, image = i["g"] * sizes["k"] + i["k"], [i["n"]] * batched
    x, y = [*image, i["g"] * sizes["c"] + i["c"], *reached], [*image, k, *pixels]
    found = {"output": y, "input": x} if op == "conv" else {"output": x, "input": y}
    found["weight"] = [k, i["c"], *(i[r] for r in taps)]
    return {name: [axis[inside] for axis in axes] for name, axes in found.items()}


# --------------------------------------------------------------------------------- sizes, read backwards


def preimage_sizes(
    output: Ints, kernel: Ints, stride: Ints = 1, padding: Padding = 0, dilation: Ints = 1
) -> tuple[range, ...]:
    """List all input sizes of a convolution that give one output size, axis by axis.

    There are `stride` of them, because a convolution rounds down; `output_padding` is how a transposed
    convolution is told which of them to give back.

    Parameters
    ----------
    output : int or sequence of int
        Output pixels, at least 1.
    kernel : int or sequence of int
        Taps.
    stride, padding, dilation
        See `conv`.

    Returns
    -------
    tuple of range
        One for every axis. Any choice of one size per axis gives `output`, and nothing else does. A range is
        empty where `padding` alone makes more windows than `output`.

    Raises
    ------
    TypeError, ValueError
        Naming the argument, what it was, and what would be valid.

    References
    ----------
    Dumoulin and Visin, arXiv:1603.07285, section 4.6.

    Examples
    --------
    >>> import loopconv
    >>> loopconv.preimage_sizes(3, 3, stride=2, padding=1)
    (range(5, 7),)
    """
    return geometry.preimage(output, kernel, stride=stride, padding=padding, dilation=dilation)


class PaddingSolution(NamedTuple):
    """What `solve_padding` found: (lo, hi) pixels for every axis, and output_padding for every axis."""

    padding: tuple[tuple[int, int], ...]
    output_padding: tuple[int, ...]


def solve_padding(
    input: Ints, output: Ints, kernel: Ints, stride: Ints = 1, dilation: Ints = 1, transposed: bool = False
) -> PaddingSolution:
    """Find the padding that makes one size of another.

    Parameters
    ----------
    input, output : int or sequence of int
        Pixels of the call's input and of its output; at least 1 on the small side (the output of `conv`, the
        input of `conv_transpose`), at least 0 on the other.
    kernel : int or sequence of int
        Taps.
    stride, dilation
        See `conv`.
    transposed : bool, optional
        Whether the call is a `conv_transpose`.

    Returns
    -------
    PaddingSolution
        Named tuple ``(padding, output_padding)`` of no negative numbers: the least padding that is the same on
        both sides of an axis, or, where an `output_padding` below `stride` allows none, the least with its odd
        pixel at the end. `conv` takes `padding` alone, `conv_transpose` both, and the one leads back from the
        output of the other (unless `output_padding` had to be `stride` or more, which no `conv` leads back from).

    Raises
    ------
    TypeError, ValueError
        Naming the argument, what it was, and what would be valid; also where only cropping the input, or zeros
        behind the output, would make that size.

    Examples
    --------
    >>> import loopconv
    >>> loopconv.solve_padding(8, 4, 3, stride=2)
    PaddingSolution(padding=((1, 1),), output_padding=(1,))
    >>> loopconv.solve_padding(4, 8, 3, stride=2, transposed=True)
    PaddingSolution(padding=((1, 1),), output_padding=(1,))
    """
    return PaddingSolution(
        *geometry.pads_between(input, output, kernel, stride=stride, dilation=dilation, transposed=transposed)
    )
