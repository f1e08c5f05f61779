"""The three contractions by `einsum` over strided windows: slow, short, and the judge of all others.

Each takes a geometry (any object with the attributes of `loopconv.geometry.Geometry`; this module
imports NumPy only) and the three arrays, and overwrites the one it is named for:

x (N, C, *input)     w (K, C / groups, *kernel)     y (N, K, *output)

Any number of spatial axes. Floats are computed in float64 or complex128, integers in 64 bits.
"""

import numpy as np


@np.errstate(all="ignore")  # NaN, infinities and overflow are results like others
def forward(geometry, x, w, y, bias=None):
    """y: every output pixel is the product of the weights with its window."""
    g = geometry
    windows = _windows(_wide(_split(x, g)), g.kernel, g.output, g.stride, g.dilation, g.pad)
    result = _contract(windows, "x", _wide(_split(w, g, "w")), "w", "y").reshape(y.shape)
    y[...] = result if bias is None else result + _wide(bias).reshape(-1, *(1,) * g.rank)


@np.errstate(all="ignore")
def adjoint(geometry, x, w, y, bias=None):
    """x: the transposed convolution of y, written as a convolution.

    `y` is spread out with stride - 1 zeros between its pixels, and a stride-1 window of the flipped
    kernel runs over it. This is the costly equivalent of section 4.3 of 'A guide to convolution
    arithmetic', and for that reason independent of the scatter-add that it judges.
    """
    g = geometry
    y = _wide(_split(y, g))
    spread = np.zeros((*y.shape[:3], *(max((o - 1) * s + 1, 0) for o, s in zip(g.output, g.stride))), y.dtype)
    spread[(..., *(slice(None, None, s) for s in g.stride))] = y
    flipped = np.flip(_wide(_split(w, g, "w")), axis=tuple(range(3, 3 + g.rank)))
    before = [d * (k - 1) - p for k, d, p in zip(g.kernel, g.dilation, g.pad)]
    windows = _windows(spread, g.kernel, g.input, (1,) * g.rank, g.dilation, before)
    result = _contract(windows, "y", flipped, "w", "x").reshape(x.shape)
    x[...] = result if bias is None else result + _wide(bias).reshape(-1, *(1,) * g.rank)


@np.errstate(all="ignore")
def weight(geometry, x, w, y):
    """w: every tap is the product of y with the pixels that this tap saw."""
    g = geometry
    windows = _windows(_wide(_split(x, g)), g.kernel, g.output, g.stride, g.dilation, g.pad)
    w[...] = _contract(windows, "x", _wide(_split(y, g)), "y", "w").reshape(w.shape)


# Letters of the leading axes: x (N, G, C), w (G, K, C), y (N, G, K).
_LEADING = {"x": "ngc", "w": "gkc", "y": "ngk"}


def _contract(windows, window_name, other, other_name, result_name):
    """einsum of `windows` (three leading axes, pixels, taps) with `other` into the third array."""
    rank = (windows.ndim - 3) // 2
    pixels, taps = "abdefhij"[:rank], "opqrstuv"[:rank]
    spatial = {window_name: pixels + taps, other_name: pixels, result_name: pixels, "w": taps}
    axes = {name: _LEADING[name] + letters for name, letters in spatial.items()}
    return np.einsum(f"{axes[window_name]},{axes[other_name]}->{axes[result_name]}", windows, other, optimize=True)


def _windows(x, kernel, output, stride, dilation, pad):
    """View of zero-padded x with axes (three leading, *output, *kernel): [.., i, .., j] is x[i*s + j*d - pad]."""
    span = [max((o - 1) * s + (k - 1) * d + 1, 0) for o, s, k, d in zip(output, stride, kernel, dilation)]
    padded = np.zeros((*x.shape[:3], *span), x.dtype)
    for pixel in _inside(x.shape[3:], span, pad):
        padded[pixel[0]] = x[pixel[1]]
    steps = padded.strides
    return np.lib.stride_tricks.as_strided(
        padded,
        (*x.shape[:3], *output, *kernel),
        (*steps[:3], *(b * s for b, s in zip(steps[3:], stride)), *(b * d for b, d in zip(steps[3:], dilation))),
        writeable=False,
    )


def _inside(sizes, span, pad):
    """[(pixels of the padded array, the same pixels of the array)], or [] where they share none."""
    lo = [max(p, 0) for p in pad]
    hi = [min(n + p, m) for n, m, p in zip(sizes, span, pad)]
    if any(b <= a for a, b in zip(lo, hi)):
        return []
    padded = tuple(slice(a, b) for a, b in zip(lo, hi))
    return [((..., *padded), (..., *(slice(a - p, b - p) for a, b, p in zip(lo, hi, pad))))]


def _split(array, geometry, name=""):
    """The channel axis as (groups, channels / groups): x, y (N, G, C, ...) and w (G, K, C, ...)."""
    G = geometry.groups
    if name == "w":
        return array.reshape(G, array.shape[0] // G, *array.shape[1:])
    return array.reshape(array.shape[0], G, array.shape[1] // G, *array.shape[2:])


def _wide(array):
    """Floats in double precision; integers stay."""
    return array.astype(np.result_type(array.dtype, np.float64)) if array.dtype.kind in "fc" else array
