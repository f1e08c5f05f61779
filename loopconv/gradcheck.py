"""Two tests that need no reference: finite differences, and <f(x), y> = <x, f_adjoint(y)>."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from numpy.typing import ArrayLike


class Deviation(NamedTuple):
    """The element of a passed test that came closest to failing."""

    input: int
    element: tuple[int, ...]
    error: float
    tolerance: float


def gradcheck(
    f: Callable[..., Any],
    inputs: Sequence[ArrayLike],
    gradient: Callable[..., Any],
    *,
    step: float = 6e-6,
    rtol: float = 1e-6,
    seed: int = 0,
) -> Deviation:
    """Compare gradients with central differences of ``L = sum(grad * f(*inputs))`` for a random `grad`.

    Parameters
    ----------
    f : callable
        ``f(*inputs)`` returns an array; `f` must not change its inputs.
    inputs : sequence of array_like
        Where to test; taken in float64, or complex128 where they are complex.
    gradient : callable
        ``gradient(grad, *inputs)`` returns one array per input, or None for inputs not to be tested. A
        single array will do for a single input.
    step : float, optional
        Half the distance of the differences, relative to an element's size where that exceeds 1. The
        default is near ``eps ** (1/3)``, where rounding and curvature err alike.
    rtol : float, optional
        Allowed error, as a fraction of the input's largest gradient, on top of what rounding in `f` explains.
    seed : int, optional
        Of the random `grad`.

    Returns
    -------
    Deviation
        Named tuple ``(input, element, error, tolerance)`` of the element that came closest to failing.

    Raises
    ------
    AssertionError
        Naming the element whose gradient is wrong (NaN included), what was given and what was expected.
    ValueError, TypeError
        If the gradients are not one per input, or have other shapes than the inputs.

    Notes
    -----
    Every element costs two calls of `f`, and four where it is complex: test small arrays. The gradient of a
    complex element is ``dL/dRe + 1j * dL/dIm`` with the real part of the sum as L.

    Examples
    --------
    >>> import numpy as np, loopconv
    >>> x, w = np.ones((1, 5)), np.array([[[1.0, 2.0]]])
    >>> worst = loopconv.gradcheck(loopconv.conv, (x, w), lambda grad, x, w: loopconv.conv_grads(grad, x, w)[:2])
    >>> worst.error < 1e-8
    True
    """
    points = [_double(value) for value in inputs]
    value = np.asarray(f(*points))
    grad = _random(np.random.default_rng(seed), value.shape, value.dtype)
    gradients = _per_input(gradient(grad, *points), points)

    def loss():
        return float(np.vdot(grad, f(*points)).real)

    rounding = 10 * np.finfo(np.float64).eps * float(np.sum(np.abs(grad * value)))
    worst = Deviation(0, (), 0.0, 0.0)
    for number, (point, analytic) in enumerate(zip(points, gradients)):
        if analytic is None:
            continue
        numeric, steps = _differences(loss, point, step)
        tolerances = rtol * np.max(np.abs(numeric), initial=0.0) + rounding / steps
        worst = _compare(number, analytic, numeric, tolerances, worst)
    return worst


def _double(value):
    """A copy in double precision that differences may be taken at."""
    array = np.asarray(value)
    return array.astype(np.result_type(array.dtype, np.float64), order="C", copy=True)


def _random(rng, shape, dtype):
    """Standard normal numbers, complex for complex dtypes."""
    values = rng.standard_normal(shape)
    if np.dtype(dtype).kind == "c":
        values = values + 1j * rng.standard_normal(shape)
    return values.astype(dtype if np.dtype(dtype).kind in "fc" else np.float64)


def _per_input(gradients, points):
    """The gradients as a list with one entry per input, shapes checked."""
    if len(points) == 1 and not isinstance(gradients, (tuple, list)):
        gradients = [gradients]
    if not isinstance(gradients, (tuple, list)) or len(gradients) != len(points):
        given = len(gradients) if isinstance(gradients, (tuple, list)) else type(gradients).__name__
        raise ValueError(f"gradient must return one array or None per input, {len(points)} of them, got {given}")
    gradients = [None if given is None else np.asarray(given) for given in gradients]
    for number, (given, point) in enumerate(zip(gradients, points)):
        if given is not None and given.shape != point.shape:
            raise ValueError(f"gradient must have the shape {point.shape} of input {number}, got shape {given.shape}")
    return gradients


def _differences(loss, point, step):
    """(central differences of loss at every element of point, the half steps taken)."""
    numeric, steps = np.zeros_like(point), np.maximum(np.abs(point), 1.0) * step
    for index in np.ndindex(point.shape):
        here = point[index]
        for unit in (1.0, 1j) if point.dtype.kind == "c" else (1.0,):
            ends = []
            for sign in (1, -1):
                point[index] = here + sign * steps[index] * unit
                ends.append(loss())
            numeric[index] += (ends[0] - ends[1]) / (2 * steps[index]) * unit
        point[index] = here
    return numeric, steps


def _compare(number, analytic, numeric, tolerances, worst):
    """The worse of `worst` and this input's worst element; AssertionError if that one is out of tolerance."""
    for index in np.ndindex(numeric.shape):
        error, tolerance = float(np.abs(analytic[index] - numeric[index])), float(tolerances[index])
        if not error <= tolerance:
            raise AssertionError(
                f"gradient of input {number} is wrong at {index}: got {analytic[index]}, central differences "
                f"give {numeric[index]} (error {error:.2e}, tolerance {tolerance:.2e})"
            )
        if error * worst.tolerance >= worst.error * tolerance:
            worst = Deviation(number, index, error, tolerance)
    return worst


def adjoint_test(
    f: Callable[[np.ndarray], Any],
    f_adjoint: Callable[[np.ndarray], Any],
    input_shape: Sequence[int],
    *,
    dtype: Any = np.float64,
    rtol: float | None = None,
    seed: int = 0,
) -> Deviation:
    """Test that `f_adjoint` is the adjoint of the linear function `f`: ``<f(x), y> == <x, f_adjoint(y)>``.

    Parameters
    ----------
    f, f_adjoint : callable
        Functions of one array.
    input_shape : sequence of int
        Shape of the random x that `f` is given.
    dtype : dtype, optional
        float or complex dtype of x.
    rtol : float, optional
        Allowed difference as a fraction of ``|f(x)| |y| + |x| |f_adjoint(y)|``. The default is what rounding
        in sums of that many elements explains.
    seed : int, optional
        Of the random x and y.

    Returns
    -------
    Deviation
        Its `error` is the difference, its `tolerance` what was allowed; `input` and `element` are 0 and ().

    Raises
    ------
    AssertionError
        Giving both products, if they differ by more (or are NaN).
    ValueError
        If ``f_adjoint(y)`` does not have the shape of x.

    Examples
    --------
    >>> import numpy as np, loopconv
    >>> w = np.ones((1, 1, 3))
    >>> deviation = loopconv.adjoint_test(
    ...     lambda x: loopconv.conv(x, w), lambda y: loopconv.conv_transpose(y, w), (1, 1, 9)
    ... )
    """
    rng = np.random.default_rng(seed)
    x = _random(rng, tuple(input_shape), dtype)
    fx = np.asarray(f(x))
    y = _random(rng, fx.shape, fx.dtype)
    back = np.asarray(f_adjoint(y))
    if back.shape != x.shape:
        raise ValueError(f"f_adjoint must return the shape {x.shape} of x, got shape {back.shape}")
    left, right = complex(np.vdot(y, fx)), complex(np.vdot(back, x))
    if rtol is None:
        rtol = float(np.finfo(x.dtype).eps) * (8 + (x.size + y.size) ** 0.5)
    norm = np.linalg.norm
    tolerance = rtol * float(norm(fx.ravel()) * norm(y.ravel()) + norm(x.ravel()) * norm(back.ravel()))
    error = abs(left - right)
    if not error <= tolerance:
        raise AssertionError(
            f"f_adjoint is not the adjoint of f: <f(x), y> = {left:.6g}, <x, f_adjoint(y)> = {right:.6g} "
            f"(difference {error:.2e}, tolerance {tolerance:.2e})"
        )
    return Deviation(0, (), error, tolerance)
