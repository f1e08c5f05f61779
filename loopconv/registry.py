"""The one table of implementations; dispatch, tests, `check` and benchmarks all read it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from importlib import import_module
from importlib.util import find_spec
from math import prod, sqrt
from typing import Any

import numpy as np

from loopconv import threads
from loopconv.geometry import Geometry

CONTRACTIONS = ("forward", "adjoint", "weight")


def _nothing(*_):
    return None


def _always(_):
    return True


def _none(*_):
    return ()


@dataclass(frozen=True)
class Implementation:
    """One contraction on one backend.

    Attributes
    ----------
    contraction : {'forward', 'adjoint', 'weight'}
    backend : str
        What users write after ``backend=``.
    load : callable
        ``load()`` imports what is needed and returns ``run(geometry, x, w, y, bias=None)``, which
        overwrites one of the arrays with the contraction of the other two: y, x or w in turn. ``bias`` is
        passed to forward and adjoint only. The arrays are C-contiguous, of the shapes that `geometry`
        names, and all of the same dtype: float32/64, complex64/128, int64 or uint64.
    missing : callable
        ``missing()`` says why this machine cannot run it; None where it can.
    unsupported : callable
        ``unsupported(geometry, dtype)`` says why it does not take a case; None where it does.
    worthwhile : callable
        ``worthwhile(geometry)``: whether ``backend=None`` should pick it when it could.
    algorithms : callable
        ``algorithms(geometry)``: names that ``algorithm=`` may have for a call, each a value of a keyword
        `algorithm` of `run`.
    precisions : callable
        ``precisions(geometry, dtype)``: the same for ``precision=``.
    settle : callable, optional
        ``settle(geometry, dtype, **keywords)`` returns `run` without its geometry and keywords, to be kept. For rows
        whose `missing`, `unsupported` and `worthwhile` say the same at each call.
    """

    contraction: str
    backend: str
    load: Callable[[], Callable[..., None]]
    missing: Callable[[], str | None] = _nothing
    unsupported: Callable[[Geometry, Any], str | None] = _nothing
    worthwhile: Callable[[Geometry], bool] = _always
    algorithms: Callable[[Geometry], tuple[str, ...]] = _none
    precisions: Callable[[Geometry, Any], tuple[str, ...]] = _none
    settle: Callable[..., Callable[..., None]] | None = None


# In the order of preference: backend=None takes the first that can and is worthwhile.
_table: list[Implementation] = []
_loaded: dict[tuple[str, str], Callable[..., None]] = {}
_choices: list[Any] = []


def kept(choice):
    """`choice`, whose results are kept until the table changes."""
    _choices.append(lru_cache(maxsize=256)(choice))
    return _choices[-1]


def forget() -> None:
    """Drop what is kept of choices between the rows."""
    for choice in _choices:
        choice.cache_clear()


def register(implementation: Implementation, *, first: bool = False) -> None:
    """Add an implementation, at the end of the table or in front, in place of one of the same name.

    Parameters
    ----------
    implementation : Implementation
    first : bool, optional
        Prefer it over all others when a call names no backend.
    """
    if not isinstance(implementation, Implementation):
        raise TypeError(f"implementation must be an Implementation, got {implementation!r}")
    if implementation.contraction not in CONTRACTIONS:
        raise ValueError(f"contraction must be one of {', '.join(CONTRACTIONS)}, got {implementation.contraction!r}")
    name = implementation.contraction, implementation.backend
    _loaded.pop(name, None)
    forget()
    _table[:] = [row for row in _table if (row.contraction, row.backend) != name]
    _table.insert(0 if first else len(_table), implementation)


def implementations() -> tuple[Implementation, ...]:
    """All rows of the table, in order of preference."""
    return tuple(_table)


def backends() -> dict[str, str]:
    """Return every backend's name and its state on this machine.

    Returns
    -------
    dict
        In order of preference; the value is ``'ready'``, or the reason why the backend cannot run.
    """
    return {row.backend: row.missing() or "ready" for row in _table}


def select(
    contraction: str, backend: str | None, geometry: Geometry, dtype, algorithm: str | None = None, precision=None
) -> Callable[..., None]:
    """The function that runs `contraction`: the preferred one, or that of `backend` or `algorithm`, or a ValueError."""
    row = _row(contraction, backend, geometry, dtype, algorithm)
    if algorithm is None and precision is None:
        return loaded(row)
    return partial(loaded(row), **_wanted(row, geometry, dtype, algorithm, precision))


def settle(contraction, backend, geometry, dtype, algorithm, precision) -> Callable[..., None] | None:
    """``run(x, w, y, bias=None)`` for all such calls, where the same row is chosen for each: one that says so, and is
    asked for, or first.
    """
    row = _row(contraction, backend, geometry, dtype, algorithm)
    if row.settle is None or (backend is None and row is not next(r for r in _table if r.contraction == contraction)):
        return None
    return row.settle(geometry, dtype, **_wanted(row, geometry, dtype, algorithm, precision))


def _row(contraction, backend, geometry, dtype, algorithm):
    """The row of `backend`, or the first that takes the call; or a ValueError."""
    if backend is not None:
        return _named(contraction, backend, geometry, dtype)
    for row in _table:
        takes = row.contraction == contraction and row.worthwhile(geometry) and not row.unsupported(geometry, dtype)
        if takes and not row.missing() and (algorithm is None or row.algorithms(geometry)):
            return row
    raise ValueError(_why_none(contraction, geometry, dtype, algorithm))


@kept
def on_gpu(contraction, geometry, dtype, algorithm, precision):
    """`select` for arrays that are on a GPU, so that there is one for good: kept, as it took 1 to 2 of 20 us."""
    return select(contraction, "cuda", geometry, dtype, algorithm, precision)


def _wanted(row, geometry, dtype, algorithm, precision):
    """The keywords of `run` that were given, or the ValueError that says what they may be."""
    wanted = {}
    if algorithm is not None:
        wanted["algorithm"] = algorithm, row.algorithms(geometry)
    if precision is not None:
        wanted["precision"] = precision, row.precisions(geometry, dtype)
    for name, (value, names) in wanted.items():
        if value not in names:
            valid = f"None or one of {', '.join(names)}" if names else "None"
            raise ValueError(f"{name} must be {valid} for this call on backend {row.backend!r}, got {value!r}")
    return {name: value for name, (value, _) in wanted.items()}


def _named(contraction, backend, geometry, dtype):
    """The row of `backend`, or the ValueError that says why it does not run this call."""
    for row in _table if isinstance(backend, str) else ():
        if row.backend == backend and row.contraction == contraction:
            break
    else:
        names = [row.backend for row in _table if row.contraction == contraction]
        raise ValueError(f"backend must be None or one of {', '.join(names)}, got {backend!r}")
    if reason := row.missing() or row.unsupported(geometry, dtype):
        raise ValueError(f"backend={backend!r} cannot run this call: {reason}")
    return row


def _why_none(contraction, geometry, dtype, algorithm):
    if algorithm is None:
        return f"backend=None found no backend for {contraction} of {geometry} in {dtype}"
    return f"algorithm must be None for this call, which no backend with algorithms takes, got {algorithm!r}"


def loaded(row: Implementation) -> Callable[..., None]:
    """The row's function, loaded once."""
    name = row.contraction, row.backend
    run = _loaded.get(name)
    if run is None:
        run = _loaded[name] = row.load()
    return run


def tolerance(geometry: Geometry, contraction: str, dtype) -> float:
    """Rounding error allowed per element, as a fraction of the same contraction of absolute values.

    A sum of n products rounds at random by about ``eps * sqrt(n)`` of the sum of their magnitudes at
    most; 2 is for the product and the bias, and complex products count double. Integers are exact.
    """
    dtype = np.dtype(dtype)
    if dtype.kind in "iu":
        return 0.0
    return (2 + sqrt(geometry.terms[contraction])) * float(np.finfo(dtype).eps) * (2 if dtype.kind == "c" else 1)


# ------------------------------------------------------------------------------- the built-in rows

# Below this many multiply-adds, waking the threads costs about what they save. Two threads against one, in us:
# 18 and 10 at 9,000 multiply-adds, 33 and 37 at 83,000, 64 and 96 at 187,000, 118 and 277 at 452,000.
PARALLEL_MACS = 200_000


def is_parallel_worthwhile(contraction: str, geometry: Geometry) -> bool:
    """Enough work for more than one thread, and more than one plane or pair of channels to share out."""
    g = geometry
    tasks = {"forward": g.batch * g.k, "adjoint": g.batch * g.c, "weight": g.k * g.c // g.groups}[contraction]
    enough = g.macs >= PARALLEL_MACS and tasks > 1
    return enough and threads.get_num_threads() > 1 and not threads.in_forked_child()


def _loops_unsupported(geometry, dtype):
    if geometry.rank > 3:
        return f"the loops take 1 to 3 spatial axes, this call has {geometry.rank}; backend='reference' takes any"
    return None


def _parallel_unsupported(geometry, dtype):
    threads.check()  # a bad LOOPCONV_NUM_THREADS has to be known before anything is written
    return _loops_unsupported(geometry, dtype)


# Phases of the adjoint's result, prod(stride): each has a line in its tables, and a plan of so many takes half a second
# to make. Longer strides are left to the textbook loops.
TILED_PHASES = 1024

TILED_DTYPES = frozenset(map(np.dtype, (np.float32, np.float64)))


def _tiled_unsupported(contraction, geometry, dtype):
    if reason := _tiled_reason(contraction, geometry, dtype):
        return reason
    threads.check()
    return None


@lru_cache(maxsize=1024)
def _tiled_reason(contraction, geometry, dtype):
    if contraction == "adjoint" and prod(geometry.stride) > TILED_PHASES:
        return f"the tiles take strides of up to {TILED_PHASES} pixels in all, this call has {geometry.stride}"
    if reason := _loops_unsupported(geometry, dtype):
        return reason
    if np.dtype(dtype) not in TILED_DTYPES:
        return f"the tiles hold float32 or float64, this call computes in {np.dtype(dtype)}"
    return None


def _missing_cython():
    if find_spec("loopconv.loops.cythonized.forward") is None:
        return "its extension modules were not built; install loopconv where a C compiler is found"
    return None


def _missing_numba():
    return None if find_spec("numba") else "numba is not installed"


def _missing_cuda():
    if "numba_cuda" not in sys.modules and not find_spec("numba_cuda"):
        return "numba-cuda is not installed; pip install 'loopconv[cuda]'"
    return _gpu().missing()


@cache
def _gpu():
    return import_module("loopconv.cuda.gpu")


def _never(_):
    return False


@lru_cache(maxsize=1024)
def _cuda_unsupported(geometry, dtype):
    if reason := _loops_unsupported(geometry, dtype):
        return reason
    from loopconv.cuda.stages import DTYPES

    if str(dtype) not in DTYPES:
        return f"the GPU's kernels hold {', '.join(DTYPES)}, this call computes in {dtype}"
    return None


def _load_cuda(contraction):
    return getattr(import_module("loopconv.cuda.driver"), contraction)


def _cuda_algorithms(contraction, geometry):
    return import_module("loopconv.cuda.driver").algorithms(contraction, geometry)


def _cuda_precisions(contraction, geometry, dtype):
    return import_module("loopconv.cuda.driver").precisions(contraction, geometry, dtype)


def _load_loops(contraction, execution):
    driver = getattr(import_module("loopconv.loops.driver"), contraction)
    return partial(driver, getattr(import_module("loopconv.loops.executions"), execution)(contraction))


def _load_tiled(contraction):
    return getattr(import_module("loopconv.tiled.driver"), contraction)


def _settle_tiled(contraction, geometry, dtype, algorithm=None):
    return import_module("loopconv.tiled.driver").settle(contraction, geometry, dtype, algorithm)


def _tiled_algorithms(contraction, geometry):
    return import_module("loopconv.tiled.driver").algorithms(contraction, geometry)


def _load_reference(contraction):
    return getattr(import_module("loopconv.reference"), contraction)


for _contraction in CONTRACTIONS:  # all before the other rows, which `select` then need not pass on most calls
    register(
        Implementation(
            _contraction, "tiled", partial(_load_tiled, _contraction), _missing_numba,
            partial(_tiled_unsupported, _contraction), _always, partial(_tiled_algorithms, _contraction),
            settle=partial(_settle_tiled, _contraction),
        )
    )  # fmt: skip
for _contraction in CONTRACTIONS:
    for _backend, _missing, _unsupported, _worthwhile in (
        ("parallel", _missing_numba, _parallel_unsupported, partial(is_parallel_worthwhile, _contraction)),
        ("numba", _missing_numba, _loops_unsupported, _always),
        ("cython", _missing_cython, _loops_unsupported, _always),
    ):
        _load = partial(_load_loops, _contraction, _backend)
        register(Implementation(_contraction, _backend, _load, _missing, _unsupported, _worthwhile))
    register(Implementation(_contraction, "reference", partial(_load_reference, _contraction)))
    _load = partial(_load_loops, _contraction, "python")
    register(Implementation(_contraction, "python", _load, unsupported=_loops_unsupported))
    # only by its name, or for arrays that are on a GPU already
    register(
        Implementation(
            _contraction, "cuda", partial(_load_cuda, _contraction), _missing_cuda, _cuda_unsupported, _never,
            partial(_cuda_algorithms, _contraction), partial(_cuda_precisions, _contraction),
        )
    )  # fmt: skip
