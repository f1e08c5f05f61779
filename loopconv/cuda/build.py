"""Kernels as PTX, compiled without a GPU, once: what is compiled is kept on disk."""

import contextlib
import hashlib
import os
import re
import tempfile
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from numba import types
from numba.core.caching import FunctionCache
from numba.cuda import compile_ptx
from numba.cuda.cudadrv.nvvm import NVVM

from loopconv.cuda.elements import pointer
from loopconv.cuda.stages import DTYPES
from loopconv.loops.compile import source_hash

INTEGERS = types.CPointer(types.int64)
# The last line of a file that was written to its end.
END = "// complete\n"


class Ptx(NamedTuple):
    """A compiled kernel."""

    text: str
    name: str


def memory_types(launch, rooms, dtype):
    """The NumPy dtype, as it is in memory, of each array of a launch whose call is of `dtype`, a name of DTYPES."""
    stored, summed = DTYPES[dtype]
    return tuple((rooms[name][1] or summed) if name in rooms else stored for name in launch.arrays)


def compiled(launch, rooms, dtype, capability):
    """The kernel of a launch for one compute capability, from the disk where it is there."""
    memory = memory_types(launch, rooms, dtype)
    return _compiled(launch.make, launch.constants, memory, launch.block, launch.resident, capability)


@cache
def _compiled(make, constants, memory, block, resident, capability):
    path = _path(make, (constants, memory, block, resident, capability))
    text = _read(path)
    if text is None:
        signature = types.void(*map(pointer, memory), INTEGERS)
        text, _ = compile_ptx(
            make(*constants), signature, cc=capability, fastmath=False, launch_bounds=(block, resident)
        )
        text += END
        _write(path, text)
    return Ptx(text, re.search(r"\.entry\s+([\w$]+)", text)[1])


# ------------------------------------------------------------------------------------------- on disk


def _path(make, *key):
    """The file of a kernel: its name says the sources, the compiler and everything that is compiled in."""
    with contextlib.suppress(RuntimeError, OSError):  # no directory is writable
        directory = Path(FunctionCache(make).cache_path)
        directory.mkdir(parents=True, exist_ok=True)
        facts = (source_hash(("cuda",)), _versions(), make.__module__, make.__qualname__, *key)
        digest = hashlib.sha256(repr(facts).encode()).hexdigest()[:32]
        return directory / f"{make.__name__}-{digest}.ptx"


@cache
def _versions():
    return NVVM().get_version(), *map(metadata.version, ("numba-cuda", "numba", "llvmlite"))


def _read(path):
    """What the file holds; None where it is not there or not complete."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if path and (text := path.read_text(encoding="ascii")).endswith(END):
            return text


def _write(path, text):
    """Write the file at once, so that no other process reads half of it; a full disk is no error."""
    if path is None:
        return
    with contextlib.suppress(OSError):
        handle, name = tempfile.mkstemp(dir=path.parent)
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(text)
        os.replace(name, path)
