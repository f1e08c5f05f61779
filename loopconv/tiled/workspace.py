"""Buffers that calls use one after the other, so that none waits for fresh pages."""

import threading

import numpy as np

# Larger buffers are made for the call and given back: writing their pages for the first time, 0.5 us
# each, no longer matters beside what is computed in them.
KEPT_BYTES = 64 << 20

LINE = 64


class Workspace:
    """Buffers by name, for one call at a time; those of more than `kept_bytes`, if there is a limit, are not kept."""

    def __init__(self, kept_bytes):
        self.kept_bytes, self.kept = kept_bytes, {}

    def room(self, name, size, dtype):
        """An uninitialised flat array of `size` elements, valid until the same name is asked for again."""
        key = name, size, dtype
        if (array := self.kept.get(key)) is not None:
            return array
        size_bytes = size * dtype.itemsize
        if self.kept_bytes is not None and size_bytes > self.kept_bytes:
            return aligned(size_bytes).view(dtype)
        whole = self.kept.get(name)
        if whole is None or whole.size < size_bytes:
            # views of a smaller buffer would keep it alive
            self.kept = {other: array for other, array in self.kept.items() if name not in (other, other[0])}
            whole = self.kept[name] = aligned(size_bytes)
        array = self.kept[key] = whole[:size_bytes].view(dtype)
        return array


class _Own(threading.local):
    """One workspace for every thread."""

    def __init__(self):
        self.workspace = Workspace(KEPT_BYTES)


_own = _Own()


def own():
    """The workspace of the calling thread."""
    return _own.workspace


def aligned(size_bytes):
    """New bytes that begin with a line of the cache."""
    whole = np.empty(size_bytes + LINE, np.uint8)
    first = -whole.ctypes.data % LINE
    return whole[first : first + size_bytes]
