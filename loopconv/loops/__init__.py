"""Room 1: the three contractions as textbook loops, one source for four executions.

`forward`, `adjoint` and `weight` are ordinary Python functions. The backend ``python`` calls them,
``cython`` is the same files compiled when the package was built, ``numba`` and ``parallel`` compile
them on first use.
"""

# What the loops say for "these iterations are independent". It is `range` wherever one thread runs
# them; the parallel build puts `numba.prange` in its place (compile.py).
prange = range
