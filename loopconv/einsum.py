"""A convolution, its transpose and their gradients as one einsum of two factors: a swap of one of them apart."""

# mypy: disable-error-code="union-attr"
# (as in ops.py)

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided

from loopconv import arrays, geometry
from loopconv.explain import geometry_of

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from loopconv.ops import Ints, Padding

# The two factors for every `wrt`, the one that is read in windows first.
FACTORS = {None: ("x", "w"), "input": ("grad", "w"), "weight": ("x", "grad")}


class EinsumSpec(NamedTuple):
    """One call of `numpy.einsum` that is a convolution, its transpose, or a gradient of them.

    ``np.einsum(spec.subscripts, *spec.operands).reshape(spec.shape)`` is the result; the reshape is needed only
    with groups, whose channels are two axes in an einsum. ``print(spec)`` shows it in words.

    Attributes
    ----------
    subscripts : str
        Of `einsum`. The letters are n for images, g for groups, c and k for channels, d h w for pixels of the
        large side, z p q for pixels of the small side, t r s for taps.
    operands : tuple of ndarray
        The two factors, in the dtype that the loops compute in. The first is a strided view of windows.
    names : tuple of str
        What the operands are: 'x_windows' or 'grad_windows', and 'w', 'x' or 'grad'.
    result : str
        'y', 'grad_x' or 'grad_w'.
    shape : tuple of int
        Shape of the result.
    swapped : str or None
        The factor of the forward call whose place 'grad' took, 'x' or 'w'; None for the forward call.
    windows : str
        What an element of the first operand is.
    """

    subscripts: str
    operands: tuple[np.ndarray, ...]
    names: tuple[str, ...]
    result: str
    shape: tuple[int, ...]
    swapped: str | None
    windows: str

    def __str__(self) -> str:
        """The call, its operands, and the factor that was swapped."""
        lines = [f'{self.result} = np.einsum("{self.subscripts}", {", ".join(self.names)})']
        axes = self.subscripts.partition("->")[0].split(",")
        for name, letters, array in zip(self.names, axes, self.operands):
            lines.append(f"  {name}[{','.join(letters)}] has shape {array.shape}, strides {array.strides}")
        lines.append(f"  {self.windows}")
        if self.swapped:
            lines.append(f"  grad is in the place of {self.swapped}; summed over all axes but those of {self.swapped}")
        return "\n".join(lines)


def einsum_spec(
    op: str,
    wrt: str | None,
    x: ArrayLike,
    w: ArrayLike,
    grad: ArrayLike | None = None,
    *,
    stride: Ints = 1,
    padding: Padding = 0,
    output_padding: Ints = 0,
    output_size: Ints | None = None,
    dilation: Ints = 1,
    groups: int = 1,
) -> EinsumSpec:
    """Write a convolution, its transpose, or one of their gradients as one `einsum` of two factors.

    A convolution is a product of x and w, so its gradient with respect to one of them is the same product with
    `grad` in its place, summed over the axes that are left.

    Parameters
    ----------
    op : {'conv', 'conv_transpose'}
        The forward call.
    wrt : {None, 'input', 'weight'}
        None for the forward call itself, or what to differentiate with respect to.
    x, w : array_like
        The arguments of the forward call. Of what is differentiated with respect to, only the shape matters.
    grad : array_like, optional
        Gradient with respect to the output; to be given with a `wrt`, and only then.
    stride, padding, output_padding, output_size, dilation, groups
        See `conv` and `conv_transpose`; a conv has no `output_padding` and no `output_size`.

    Returns
    -------
    EinsumSpec
        Named tuple ``(subscripts, operands, names, result, shape, swapped, windows)``.

    Raises
    ------
    TypeError, ValueError
        As `conv` and `conv_transpose`; also for more than 3 spatial axes.

    Notes
    -----
    Gathering reads windows of the large side at ``p*stride + r*dilation - lo``: ``conv``, and the input gradient
    of ``conv_transpose``. Scattering is written as gathering too, from the small side with ``stride - 1`` zeros
    between its pixels and backwards over the taps, at ``(h + lo - r*dilation) / stride``: ``conv_transpose``, and
    the input gradient of ``conv``. Those zeros are multiplied, so this is for understanding and not for speed.
    Complex factors that stand beside `grad` are conjugated.

    References
    ----------
    Dumoulin and Visin, arXiv:1603.07285, sections 4.1 and 4.5.

    Examples
    --------
    >>> import numpy as np, loopconv
    >>> x, w, grad = np.ones((2, 7)), np.ones((3, 2, 3)), np.ones((3, 3))
    >>> for wrt in (None, "weight", "input"):
    ...     spec = loopconv.einsum_spec("conv", wrt, x, w, None if wrt is None else grad, stride=2)
    ...     print(f"{spec.result:<6}", spec.subscripts, *spec.names)
    y      cqs,kcs->kq x_windows w
    grad_w cqs,kq->kcs x_windows grad
    grad_x kws,kcs->cw grad_windows w
    """
    given = _accepted(wrt, x, w, grad)
    x, w = given["x"], given["w"]
    g = geometry_of(
        op, x.shape, w.shape, stride=stride, padding=padding, output_padding=output_padding,
        output_size=output_size, dilation=dilation, groups=groups,
    )  # fmt: skip
    if g.rank > 3:
        raise ValueError(f"w must have 1 to 3 spatial axes, for which there are letters, got shape {w.shape}")
    batched = x.ndim == w.ndim
    _check_grad(given, op, g, batched)
    return _spec(op, wrt, g, batched, given)


def _accepted(wrt, x, w, grad):
    """The arguments as arrays; 'grad' is among them where there is a `wrt`."""
    if not (wrt is None or isinstance(wrt, str)) or wrt not in FACTORS:
        raise ValueError(f"wrt must be one of {', '.join(map(str, FACTORS))}, got {geometry.shown(wrt)}")
    if (wrt is None) != (grad is None):
        wanted = "left out with wrt=None, the forward call" if wrt is None else f"given with wrt={wrt!r}, got None"
        raise ValueError(f"grad must be {wanted}")
    given = {"x": x, "w": w} if wrt is None else {"x": x, "w": w, "grad": grad}
    return dict(zip(given, arrays.accept_of_host(**given)))


def _check_grad(given, op, g, batched):
    whole = g.y_shape if op == "conv" else g.x_shape
    expected = whole if batched else whole[1:]
    if "grad" in given and given["grad"].shape != expected:
        raise ValueError(f"grad must have the output's shape {expected}, got shape {given['grad'].shape}")


def _factors(wrt, given):
    """The two factors in the dtype that is computed in, and conjugated beside a gradient."""
    factors = {name: given[name] for name in FACTORS[wrt]}
    _, compute = arrays.dtypes(*factors.values())
    return {
        name: np.asarray(array if wrt is None or name == "grad" else array.conj(), compute)
        for name, array in factors.items()
    }


def _spec(op, wrt, g, batched, given):
    """The einsum: windows of one factor, times the other as it is."""
    n, G = "n" * batched, "g" * (g.groups > 1)
    large, small, taps = letters_of(g)
    axes = {"x": f"{n}{G}c{large}", "y": f"{n}{G}k{small}", "w": f"{G}kc{taps}"}  # of the trilinear form
    roles = {"x": "x", "w": "w", "grad": "y"} if op == "conv" else {"x": "y", "w": "w", "grad": "x"}
    windowed, other = FACTORS[wrt]
    swapped = {None: None, "input": "x", "weight": "w"}[wrt]
    result = roles[swapped or "grad"]

    shapes = {"x": g.x_shape, "y": g.y_shape, "w": g.w_shape}
    split = {name: _split(array, roles[name], g, batched) for name, array in _factors(wrt, given).items()}
    if roles[windowed] == "x":
        view, letters, where = _gather(split[windowed], g), f"{n}{G}c{small}{taps}", gathered_at(g)
    else:
        view, letters, where = _spread(split[windowed], g), f"{n}{G}k{large}{taps}", _spread_at(g)
    at = ", ".join((*letters[: -2 * g.rank], *where))
    return EinsumSpec(
        subscripts=f"{letters},{axes[roles[other]]}->{axes[result]}",
        operands=(view, split[other]),
        names=(f"{windowed}_windows", other),
        result=f"grad_{swapped}" if swapped else "y",
        shape=shapes[result] if batched or result == "w" else shapes[result][1:],
        swapped=swapped,
        windows=f"{windowed}_windows[{','.join(letters)}] = {windowed}[{at}], 0 where {windowed} has no such pixel",
    )


def _split(array, role, g, batched):
    """The axis of channels that groups cut as (groups, channels / groups), where there are groups."""
    axis = 0 if role == "w" else int(batched)
    groups = [g.groups] * (g.groups > 1)
    return array.reshape(*array.shape[:axis], *groups, array.shape[axis] // g.groups, *array.shape[axis + 1 :])


# ------------------------------------------------------------------------------------------- windows


def _gather(array, g):
    """View (..., *output, *kernel) of `array` (..., *input): its pixels at ``p*stride + r*dilation - pad``."""
    return _windows(_fitted(array, g.pad, g.span), g.output, g.kernel, g.stride, g.dilation)


def _spread(array, g):
    """View (..., *input, *kernel) of `array` (..., *output): its pixels at ``(h + pad - r*dilation) / stride``."""
    lead, extent = array.shape[: -g.rank], geometry.extents(g.kernel, g.dilation)
    if max(g.stride) > 1:
        spaced = np.zeros((*lead, *(max((o - 1) * s + 1, 0) for o, s in zip(g.output, g.stride))), array.dtype)
        spaced[(..., *(slice(None, None, s) for s in g.stride))] = array
        array = spaced
    first = [e - 1 - lo for e, lo in zip(extent, g.pad)]
    array = _fitted(array, first, [n + e - 1 for n, e in zip(g.input, extent)])
    ends = array[(..., *(slice(e - 1, None) for e in extent))]
    return _windows(ends, g.input, g.kernel, (1,) * g.rank, [-d for d in g.dilation])


def _windows(array, pixels, taps, stride, dilation):
    """View (..., *pixels, *taps): element (.., p, .., r) is ``array[.., p*stride + r*dilation]``."""
    rank = len(taps)
    lead, steps = array.strides[:-rank], array.strides[-rank:]
    return as_strided(
        array,
        (*array.shape[:-rank], *pixels, *taps),
        (*lead, *(b * s for b, s in zip(steps, stride)), *(b * d for b, d in zip(steps, dilation))),
        writeable=False,
    )


def _fitted(array, before, sizes):
    """`array` with `before` zeros before it on every spatial axis (negative ones crop), and `sizes` pixels in all."""
    keep, pads = [], [(0, 0)] * (array.ndim - len(sizes))
    for n, lo, size in zip(array.shape[-len(sizes) :], before, sizes):
        first = min(max(-lo, 0), n)
        last = min(max(size - lo, first), n)
        keep.append(slice(first, last))
        pads.append((zeros := min(max(lo, 0), size), size - zeros - (last - first)))
    array = array[(..., *keep)]
    return np.pad(array, pads) if any(map(any, pads)) else array


# ----------------------------------------------------------------------------------------- in letters


def letters_of(g):
    """(pixels of the large side, pixels of the small side, taps): a letter for every axis, as in the loops."""
    return tuple(letters[3 - g.rank :] for letters in ("dhw", "zpq", "trs"))


def gathered_at(g):
    """For every axis where on the large side a pixel of the small side meets a tap: ``2*p + r - 1``."""
    _, pixels, taps = letters_of(g)
    return [
        _signed(f"{_times(s, p)} + {_times(d, r)}", -lo)
        for s, p, d, r, lo in zip(g.stride, pixels, g.dilation, taps, g.pad)
    ]


def _spread_at(g):
    """For every axis which pixel of the small side a tap brings to one of the large side: ``(h + 1 - r)/2``."""
    pixels, _, taps = letters_of(g)
    texts = [f"{_signed(h, lo)} - {_times(d, r)}" for h, lo, d, r in zip(pixels, g.pad, g.dilation, taps)]
    return [text if s == 1 else f"({text})/{s}" for text, s in zip(texts, g.stride)]


def _times(number, letter):
    return letter if number == 1 else f"{number}*{letter}"


def _signed(text, number):
    return f"{text} {'-' if number < 0 else '+'} {abs(number)}" if number else text
