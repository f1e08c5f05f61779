"""Time every contraction of every layer on every backend, after checking its result against the reference.

`pytest benchmarks -k tiled` compares the algorithms of that backend, and what it chooses when it is given none. The
backend 'call' is the public function, `conv` or `conv_transpose`, which chooses the backend itself.
"""

import time
from functools import lru_cache, partial

import numpy as np
import pytest

import loopconv
from loopconv import reference, registry

# Above so many multiply-adds, a call on these backends takes seconds.
MOST_MACS = {"python": 1_000_000}
# These spread their rounding errors over tiles of pixels, those that are sums of small products included; so they
# are compared with so many times the largest error allowed.
SPREADING = {"winograd2": 1, "winograd4": 10}
# Each timing has as many rounds as fit into so many seconds, within these limits.
SECONDS, ROUNDS = 0.5, (3, 15)
# A round of a short call repeats it for so many seconds.
ROUND_SECONDS = 0.005

RESULT = {"forward": "y", "adjoint": "x", "weight": "w"}


@lru_cache(maxsize=1)
def operands(g):
    """x, w and y, each filled with random numbers."""
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(getattr(g, f"{name}_shape"), np.float32) for name in "xwy"}


@lru_cache(maxsize=len(RESULT))
def expected(g, contraction):
    """(the contraction, the error allowed in each of its elements)."""

    def of(change):
        arrays = {name: change(array.astype(np.float64)) for name, array in operands(g).items()}
        getattr(reference, contraction)(g, **arrays)
        return arrays[RESULT[contraction]]

    return of(np.copy), registry.tolerance(g, contraction, np.float32) * of(np.abs)


def check(result, value, allowed):
    """Fail where `result` is a NaN or further from `value` than rounding allows."""
    wrong = ~(np.abs(result - value) <= allowed)
    assert not wrong.any(), f"{wrong.sum()} of {wrong.size} elements differ from the reference"


def public_call(case):
    """The public function on this layer: a call without arguments, which returns its result."""
    function, arrays = getattr(loopconv, case.op), operands(case.geometry)
    x = arrays["x" if case.op == "conv" else "y"]
    return lambda: function(x, arrays["w"], **case.settings)


def backend_call(g, contraction, backend, algorithm):
    """One implementation: a call without arguments, which returns its result. Skips where there is none."""
    (row,) = (r for r in registry.implementations() if (r.contraction, r.backend) == (contraction, backend))
    if reason := row.missing() or row.unsupported(g, np.float32):
        pytest.skip(f"{backend}: {reason}")
    if g.macs > MOST_MACS.get(backend, g.macs):
        pytest.skip(f"{backend}: more than {MOST_MACS[backend]:,} multiply-adds")
    run, name = registry.loaded(row), RESULT[contraction]
    given = {**operands(g), name: np.full(getattr(g, f"{name}_shape"), np.nan, np.float32)}
    if algorithm:
        run = partial(run, algorithm=algorithm)

    def call():
        run(g, **given)
        return given[name]

    return call


def test_contraction(case, contraction, backend, algorithm, benchmark):
    g = case.geometry
    call = public_call(case) if backend == "call" else backend_call(g, contraction, backend, algorithm)
    value, allowed = expected(g, contraction)
    if algorithm in SPREADING:
        allowed = SPREADING[algorithm] * np.max(allowed)
    check(call(), value, allowed)  # Numba compiles here

    start = time.perf_counter()
    call()
    seconds = time.perf_counter() - start
    rounds = int(np.clip(SECONDS / seconds, *ROUNDS))
    benchmark.pedantic(call, rounds=rounds, iterations=max(1, int(ROUND_SECONDS / seconds)))
    benchmark.extra_info.update(macs=g.macs, threads=loopconv.get_num_threads())
    if benchmark.stats:
        benchmark.extra_info["gflops"] = 2e-9 * g.macs / benchmark.stats.stats.median
