"""From a Geometry to the textbook loops: pads, views as three spatial axes with groups, and crops.

Every execution has the same three drivers; they differ only in `run`, which runs the loops.
"""

from functools import lru_cache

import numpy as np


def forward(run, geometry, x, w, y, bias=None):
    """y = C x + bias, with `run` the forward loops of one execution."""
    y[...] = 0 if bias is None else per_channel(bias, y.ndim)
    run(padded(geometry, x), *grouped(geometry, w, y), *arguments(geometry))


def adjoint(run, geometry, x, w, y, bias=None):
    """x = C.T y + bias. The loops scatter into a buffer with room for the padding, which is then cropped."""
    whole, inside = windows(geometry)
    direct = is_inside(geometry)
    buffer = x if direct else np.zeros((*x.shape[:2], *geometry.span), x.dtype)
    x[...] = 0 if bias is None else per_channel(bias, x.ndim)
    w, y = grouped(geometry, w, y)
    run(three_axes(buffer, geometry.groups), w, y, *arguments(geometry))
    if not direct:
        x[whole] += buffer[inside]


def weight(run, geometry, x, w, y):
    """w = the form without w."""
    w[...] = 0
    run(padded(geometry, x), *grouped(geometry, w, y), *arguments(geometry))


def per_channel(bias, ndim):
    """`bias` as an array that broadcasts along axis 1 of `ndim`."""
    return bias.reshape(-1, *(1,) * (ndim - 2))


def padded(geometry, x):
    """x (N, G, C, D, H, W) with zeros where windows reach past it; a copy only where there are any."""
    if not is_inside(geometry):
        whole, inside = windows(geometry)
        buffer = np.zeros((*x.shape[:2], *geometry.span), x.dtype)
        buffer[inside] = x[whole]
        x = buffer
    return three_axes(x, geometry.groups)


def is_inside(geometry):
    """Whether every window lies in x, so that it can be read and written as it is."""
    return not any(geometry.pad) and all(span <= n for span, n in zip(geometry.span, geometry.input))


@lru_cache(maxsize=1024)
def windows(geometry):
    """(slices of x, slices of the padded buffer) that name the same pixels."""
    whole, inside = [slice(None)] * 2, [slice(None)] * 2
    for n, span, pad in zip(geometry.input, geometry.span, geometry.pad):
        first, last = max(-pad, 0), min(n, span - pad)
        whole.append(slice(first, max(first, last)))
        inside.append(slice(first + pad, max(first, last) + pad))
    return tuple(whole), tuple(inside)


def three_axes(array, groups):
    """(N, channels, *spatial) as (N, groups, channels / groups, D, H, W), unit axes first; no copy."""
    spatial = array.shape[2:]
    return array.reshape(array.shape[0], groups, array.shape[1] // groups, *(1,) * (3 - len(spatial)), *spatial)


def grouped(geometry, w, y):
    """w (G, K, C, T, R, S) and y (N, G, K, Z, P, Q)."""
    G = geometry.groups
    kernel = (*(1,) * (3 - geometry.rank), *geometry.kernel)
    return w.reshape(G, geometry.k // G, geometry.c // G, *kernel), three_axes(y, G)


@lru_cache(maxsize=1024)
def arguments(geometry):
    """What the loops take after the arrays: (sizes, stride, dilation)."""
    ones = (1,) * (3 - geometry.rank)
    G = geometry.groups
    sizes = (geometry.batch, G, geometry.k // G, geometry.c // G, *ones, *geometry.output, *ones, *geometry.kernel)
    return sizes, (*ones, *geometry.stride), (*ones, *geometry.dilation)
