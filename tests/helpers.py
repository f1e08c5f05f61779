"""What several tests share: operands, the one comparison, and the trilinear form as literal loops."""

from itertools import product

import numpy as np
import pytest

import loopconv
from loopconv import geometry, registry

# What kernels are given: every dtype they compute in.
DTYPES = tuple(np.dtype(name) for name in ("float32", "float64", "complex64", "complex128", "int64", "uint64"))


def ready(backend):
    """The backend's name, or a skip that says why this machine cannot run it."""
    state = loopconv.backends()[backend]
    if state != "ready":
        pytest.skip(f"{backend}: {state}")
    return backend


def takes(backend, dtype):
    """The backend's name, or a skip that says why it does not compute in `dtype`."""
    g = geometry.conv((1, 1, 3), (1, 1, 2))
    for row in registry.implementations():
        if row.backend == backend and (reason := row.unsupported(g, np.dtype(dtype))):
            pytest.skip(f"{backend}: {reason}")
    return backend


def random_array(shape, dtype, seed):
    """Normal floats and complex numbers; integers below 100 in size, negative ones too where there are any."""
    dtype, rng = np.dtype(dtype), np.random.default_rng(seed)
    if dtype.kind in "iu":
        return rng.integers(0 if dtype.kind == "u" else -100, 100, shape).astype(dtype)
    values = rng.standard_normal(shape)
    if dtype.kind == "c":
        values = values + 1j * rng.standard_normal(shape)
    return values.astype(dtype)


def random_integers(shape, dtype, seed):
    """Integers of -9 .. 9 (of both parts, where complex): their sums of products are exact in every dtype."""
    dtype, rng = np.dtype(dtype), np.random.default_rng(seed)
    values = rng.integers(0 if dtype.kind == "u" else -9, 10, shape)
    if dtype.kind == "c":
        values = values + 1j * rng.integers(-9, 10, shape)
    return values.astype(dtype)


def unwritten(shape, dtype):
    """An array whose cells are recognised if nobody writes them: NaN, or 77 for integers."""
    return np.full(shape, np.nan if np.dtype(dtype).kind in "fc" else 77, dtype)


def magnitudes(arrays):
    """The dict `arrays` with absolute values: what rounding errors are measured against."""
    return {name: np.abs(array) for name, array in arrays.items()}


def assert_within(actual, expected, tolerance, message=""):
    """Every ``|actual - expected| <= tolerance``, which no NaN passes; the message names the worst element."""
    assert actual.shape == expected.shape, f"{message}: shape {actual.shape}, expected {expected.shape}"
    error = np.abs(actual - expected)
    tolerance = np.broadcast_to(tolerance, error.shape)
    bad = ~(error <= tolerance)
    if bad.any():
        excess = np.where(np.isnan(error), np.inf, error - tolerance)
        at = tuple(int(i) for i in np.unravel_index(np.argmax(np.where(bad, excess, -np.inf)), bad.shape))
        raise AssertionError(
            f"{message}: {np.count_nonzero(bad)} of {bad.size} elements are wrong, the worst at {at}: "
            f"{actual[at]}, expected {expected[at]} within {tolerance[at]}"
        )


def literal(contraction, g, x, w, y):
    """The contraction left out of ``T = sum y[n,k,p] * w[k,c,r] * x[n,c,p*stride + r*dilation - pad]``.

    Term by term in Python's own numbers, so that integers are exact and NaN is met by nothing but the terms
    that have it. Padding is read as zeros (forward, weight); what is written to it is dropped (adjoint).
    """
    x, w, y = (array.astype(object) for array in (x, w, y))
    result = {"forward": y, "adjoint": x, "weight": w}[contraction]
    result[...] = 0
    for k, c in product(range(g.k), range(g.c // g.groups)):
        channel = k // (g.k // g.groups) * (g.c // g.groups) + c
        for n, *indices in product(*map(range, (g.batch, *g.output, *g.kernel))):
            p, r = tuple(indices[: len(g.output)]), tuple(indices[len(g.output) :])
            i = tuple(a * s + b * d - lo for a, s, b, d, lo in zip(p, g.stride, r, g.dilation, g.pad))
            inside = all(0 <= a < size for a, size in zip(i, g.input))
            pixel = x[(n, channel, *i)] if inside else 0
            if contraction == "forward":
                y[(n, k, *p)] += w[(k, c, *r)] * pixel
            elif contraction == "weight":
                w[(k, c, *r)] += y[(n, k, *p)] * pixel
            elif inside:
                x[(n, channel, *i)] += w[(k, c, *r)] * y[(n, k, *p)]
    return result
