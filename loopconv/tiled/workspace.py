"""Buffers that calls of the same thread use one after the other, so that no call waits for fresh pages."""

import threading

import numpy as np

# Larger buffers are made for the call and given back: writing their pages for the first time, 0.5 us
# each, no longer matters beside what is computed in them.
KEPT_BYTES = 64 << 20

LINE = 64

_own = threading.local()


def room(name, size, dtype):
    """An uninitialised flat array of `size` elements, valid until this thread asks for the same name again."""
    size_bytes = size * dtype.itemsize
    if size_bytes > KEPT_BYTES:
        return aligned(size_bytes).view(dtype)
    kept = _own.__dict__.get(name)
    if kept is None or kept.size < size_bytes:
        kept = _own.__dict__[name] = aligned(size_bytes)
    return kept[:size_bytes].view(dtype)


def aligned(size_bytes):
    """New bytes that begin with a line of the cache."""
    whole = np.empty(size_bytes + LINE, np.uint8)
    first = -whole.ctypes.data % LINE
    return whole[first : first + size_bytes]
