"""How many threads the parallel kernels use."""

from __future__ import annotations

import os
from functools import cache

from loopconv.geometry import integer

# What was asked for: None before the environment is read, 0 for nothing.
_requested: int | None = None
_is_checked = False
_forked = False


def set_num_threads(n: int) -> None:
    """Let parallel kernels use at most `n` threads.

    Parameters
    ----------
    n : int
        At least 1. More than the processors this process may use has the effect of that number.

    Raises
    ------
    TypeError, ValueError
        If `n` is not an integer or less than 1.

    Notes
    -----
    The environment variable ``LOOPCONV_NUM_THREADS`` sets the number at start. Results have the same
    bits at any number of threads.
    """
    global _requested
    _requested = _positive("n", n)


def get_num_threads() -> int:
    """Return the number of threads that parallel kernels use.

    Returns
    -------
    int
        What `set_num_threads` or ``LOOPCONV_NUM_THREADS`` asked for, and otherwise one thread for
        every processor this process may use.
    """
    global _requested
    if _requested is None:
        _requested = _from_environment("LOOPCONV_NUM_THREADS")
    available = _available()
    return min(_requested or available, available)


def check() -> None:
    """Raise what `get_num_threads` would, without its look at the environment, 1 us, once it had an answer."""
    global _is_checked
    if not _is_checked or _requested is None:
        _is_checked = get_num_threads() > 0


def _from_environment(name):
    """The number of threads that a variable asks for; 0 if it does not."""
    text = os.environ.get(name)
    if not text:
        return 0
    try:
        return _positive(name, int(text))
    except ValueError:
        raise ValueError(f"{name} must be an integer of at least 1, got {text!r}") from None


def _positive(name, n):
    if integer(name, n) < 1:
        raise ValueError(f"{name} must be at least 1, got {n}")
    return int(n)


def _available():
    """Processors this process may use, or fewer where Numba was told to start fewer threads."""
    return _from_environment("NUMBA_NUM_THREADS") or _processors()


@cache
def _processors():
    """Asked once: it takes longer than all else that a small call does about threads."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


# Calls of fewer multiply-adds are not worth sharing even with threads that are awake, or not worth waking one for: that
# takes the caller up to 40 us, and the thread 100.
SHARED_MACS = 1_000_000
WAKING_MACS = 5_000_000


def worth(macs: int) -> int:
    """How many threads may share work of so many multiply-adds."""
    return get_num_threads() if macs >= SHARED_MACS and not _forked else 1


def in_forked_child() -> bool:
    """Whether this process was forked from one that had loopconv loaded."""
    return _forked


def _mark_forked():
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_mark_forked)
