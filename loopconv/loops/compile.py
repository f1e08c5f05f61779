"""Numba builds of the textbook loops, and the disk cache that they are kept in."""

import contextlib
import hashlib
import types
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numba
from numba.core.caching import FunctionCache

from loopconv.loops.adjoint import adjoint
from loopconv.loops.forward import forward
from loopconv.loops.weight import weight

# 'contract' lets a multiply and an add become one FMA. Only the weight gradient's running sum needs
# 'reassoc' to become vector code (9.1 against 1.8 GFLOP/s on 64->64 3x3, 56x56). Neither assumes
# that there are no NaNs or infinities.
LOOPS = {
    "forward": (forward, {"contract"}),
    "adjoint": (adjoint, {"contract"}),
    "weight": (weight, {"contract", "reassoc"}),
}


@cache
def kernel(contraction, parallel):
    """The jitted loops of one contraction; machine code is made, or read from disk, at the first call."""
    loops, fastmath = LOOPS[contraction]
    return jit(loops, parallel=parallel, fastmath=fastmath)


def jit(function, *, parallel=False, fastmath=False):
    """Compile `function` without the GIL, cached on disk under a name that changes with our sources."""
    name = f"{function.__name__}_{'parallel' if parallel else 'serial'}_{source_hash()}"
    namespace = {**function.__globals__, "prange": numba.prange if parallel else range}
    renamed = types.FunctionType(function.__code__, namespace, name, closure=function.__closure__)
    renamed.__qualname__, renamed.__module__ = name, function.__module__
    compiled = numba.njit(renamed, nogil=True, parallel=parallel, fastmath=fastmath, error_model="numpy")
    # Numba raises where no directory can be written; an uncached kernel is slower to start, no more.
    with contextlib.suppress(RuntimeError, OSError, AttributeError):
        compiled._cache = ForgivingCache(renamed)
    return compiled


class Build(NamedTuple):
    """A function's machine code for one signature.

    Attributes
    ----------
    run : callable
        Runs it on the calling thread. Numba's dispatcher, which looks at the types of all arguments first, takes 0.9 us
        where this takes 0.5.
    address : int
        Where it is, for code that calls it.
    """

    run: Any
    address: int


def built(compiled, signature):
    """What `jit` gave, built for a signature."""
    run = compiled.compile(signature)
    build = compiled.overloads[signature]
    return Build(run, build.library.get_pointer_to_function(build.fndesc.llvm_func_name))


def named(*sizes):
    """Put the sizes that a function is made for into its name.

    Numba tells functions of one name apart by numbers, which it begins anew in every process: of two kernels kept on
    disk by different processes with the same name and number, a third would run the code of one for both.
    """

    def rename(function):
        function.__name__ = function.__qualname__ = "_".join([function.__name__, *map(str, sizes)])
        return function

    return rename


# The folders that kernels for processors are in.
ROOMS = ("loops", "tiled")


@cache
def source_hash(rooms=ROOMS):
    """Digest of every source file in the rooms that kernels are in.

    Numba's own key leaves out constants, globals and called functions, and does not tell a parallel
    build from a serial one, so all of them go into the name instead.
    """
    digest = hashlib.sha256()
    package = Path(__file__).parents[1]
    for path in sorted(path for room in rooms for path in (package / room).glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


class ForgivingCache(FunctionCache):
    """A disk cache whose failures (truncated files, full or read-only disks) mean "compile again"."""

    def _index_key(self, sig, codegen):
        """Numba's key, but functions in the closure count by their names, which have the sizes they are made for.

        Numba pickles them, differently in every process, and finds nothing again.
        """
        held = [cell.cell_contents for cell in self._py_func.__closure__ or ()]
        closure = repr([value.__qualname__ if callable(value) else value for value in held])
        return sig, codegen.magic_tuple(), (self._py_func.__code__.co_code, closure)

    def load_overload(self, sig, target_context):
        try:
            return super().load_overload(sig, target_context)
        except Exception:  # whatever a damaged pickle can raise
            with contextlib.suppress(Exception):
                self.flush()
            return None

    def save_overload(self, sig, data):
        with contextlib.suppress(Exception):
            super().save_overload(sig, data)
