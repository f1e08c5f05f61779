"""The four ways to run the textbook loops; each takes (x, w, y, sizes, stride, dilation)."""

import threading
from functools import lru_cache
from importlib import import_module

import numpy as np

from loopconv import threads

# One parallel kernel at a time: Numba's 'workqueue' layer aborts the process when two Python threads
# enter it, and each kernel uses all threads anyway.
_one_at_a_time = threading.Lock()


def python(contraction):
    """The source itself, interpreted."""
    loops = getattr(import_module(f"loopconv.loops.{contraction}"), contraction)

    def run(*arguments):
        with np.errstate(all="ignore"):  # the compiled loops do not warn either
            loops(*arguments)

    return run


def cython(contraction):
    """The source as setup.py compiled it."""
    return getattr(import_module(f"loopconv.loops.cythonized.{contraction}"), contraction)


def numba(contraction):
    """The source compiled by Numba, on the calling thread."""
    from loopconv.loops.compile import kernel

    serial = kernel(contraction, parallel=False)
    return lambda x, w, y, *settings: serial(x, w, y, *unsigned(settings))


def parallel(contraction):
    """The source compiled by Numba with its outermost loop spread over threads."""
    from numba import config, get_num_threads, set_num_threads

    from loopconv.loops.compile import kernel

    spread = kernel(contraction, parallel=True)
    serial = numba(contraction)

    def run(x, w, y, *settings):
        if threads.in_forked_child():  # OpenMP kills a forked child that enters it
            return serial(x, w, y, *settings)
        with _one_at_a_time:
            before = get_num_threads()
            set_num_threads(min(threads.get_num_threads(), config.NUMBA_NUM_THREADS))
            try:
                spread(x, w, y, *unsigned(settings))
            finally:
                set_num_threads(before)

    return run


@lru_cache(maxsize=1024)
def unsigned(settings):
    """The integers as unsigned ones.

    Numba tests every signed index for being negative, and that test keeps the innermost loop from
    becoming vector code: 3.9 against 20.7 GFLOP/s on 64->64 3x3, 56x56.
    """
    return tuple(tuple(np.uint64(value) for value in values) for values in settings)
