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
    windows = _windows(_padded(_wide(_split(x, g)), g)[0], g)
    pixels, taps = _letters(g)
    result = np.einsum(f"ngc{pixels}{taps},gkc{taps}->ngk{pixels}", windows, _wide(_split(w, g, "w")), optimize=True)
    result = result.reshape(y.shape)
    y[...] = result if bias is None else result + _wide(bias).reshape(-1, *(1,) * g.rank)


@np.errstate(all="ignore")
def adjoint(geometry, x, w, y, bias=None):
    """x: tap by tap, y goes where `forward` would have read for that tap; what falls on the padding is dropped."""
    g = geometry
    y, w = _wide(_split(y, g)), _wide(_split(w, g, "w"))
    padded, inside, pixels = _padded(np.zeros_like(_split(x, g), dtype=y.dtype), g)
    windows = _windows(padded, g)
    for tap in np.ndindex(*g.kernel):
        windows[(..., *tap)] += np.einsum("ngk...,gkc->ngc...", y, w[(..., *tap)], optimize=True)
    result = np.zeros((*windows.shape[:3], *g.input), y.dtype)
    result[pixels] = padded[inside]
    result = result.reshape(x.shape)
    x[...] = result if bias is None else result + _wide(bias).reshape(-1, *(1,) * g.rank)


@np.errstate(all="ignore")
def weight(geometry, x, w, y):
    """w: every tap is the product of y with the pixels that this tap saw."""
    g = geometry
    windows = _windows(_padded(_wide(_split(x, g)), g)[0], g)
    pixels, taps = _letters(g)
    result = np.einsum(f"ngc{pixels}{taps},ngk{pixels}->gkc{taps}", windows, _wide(_split(y, g)), optimize=True)
    w[...] = result.reshape(w.shape)


def _letters(g):
    """The letters of the pixels' axes and of the taps' axes, for einsum."""
    return "abdefhij"[: g.rank], "opqrstuv"[: g.rank]


def _padded(x, g):
    """(what the windows of x (N, G, C, *input) cover, with zeros around; where x is in it; where that is in x)."""
    reach = [max((o - 1) * s + (k - 1) * d + 1, 0) for o, s, k, d in zip(g.output, g.stride, g.kernel, g.dilation)]
    first = [min(max(p, 0), m) for p, m in zip(g.pad, reach)]
    last = [max(min(n + p, m), a) for n, p, m, a in zip(g.input, g.pad, reach, first)]
    inside = (..., *(slice(a, b) for a, b in zip(first, last)))
    pixels = (..., *(slice(a - p, b - p) if b > a else slice(0, 0) for a, b, p in zip(first, last, g.pad)))
    padded = np.zeros((*x.shape[:3], *reach), x.dtype)
    padded[inside] = x[pixels]
    return padded, inside, pixels


def _windows(padded, g):
    """View (N, G, C, *output, *kernel) of `padded`: element (.., i, .., j) is padded[i*stride + j*dilation]."""
    steps = padded.strides
    return np.lib.stride_tricks.as_strided(
        padded,
        (*padded.shape[:3], *g.output, *g.kernel),
        (*steps[:3], *(b * s for b, s in zip(steps[3:], g.stride)), *(b * d for b, d in zip(steps[3:], g.dilation))),
    )


def _split(array, geometry, name=""):
    """The channel axis as (groups, channels / groups): x, y (N, G, C, ...) and w (G, K, C, ...)."""
    G = geometry.groups
    if name == "w":
        return array.reshape(G, array.shape[0] // G, *array.shape[1:])
    return array.reshape(array.shape[0], G, array.shape[1] // G, *array.shape[2:])


def _wide(array):
    """Floats in double precision; integers stay."""
    return array.astype(np.result_type(array.dtype, np.float64)) if array.dtype.kind in "fc" else array
