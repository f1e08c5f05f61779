"""Functions that kernels call instead of containing them: each is compiled once, by itself, and linked by name.

Numba compiles what a function calls anew in each caller, and makes code of it there. A packer that 40 kernels for
different tiles contain took more than half of their time to compile.
"""

import inspect
import threading

import llvmlite.binding as llvm
import numba
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.numpy_support import as_dtype

from loopconv.loops.compile import built, jit, source_hash

# What parameters of a linked function may be besides integers.
ARRAY, POINTER, TABLE = "numbers", "pointer to a number", "integers"

TABLES = types.Array(types.int64, 1, "C")


def signature(dtype, *kinds):
    """Numba's types for parameters of these kinds, where numbers are of `dtype`."""
    element = numba.from_dtype(dtype)
    known = {ARRAY: types.Array(element, 1, "C"), POINTER: types.CPointer(element), TABLE: TABLES}
    return tuple(known.get(kind, types.int64) for kind in kinds)


# Who has the code of each name, which must stay where it is; and who may add to them, so that there is one for each.
LINKED: dict = {}
_adding = threading.RLock()


class Link:
    """A function that kernels call by its name."""

    def __init__(self, function, kinds):
        self.function, self.serial = function, jit(function, fastmath={"contract"})
        self.kinds = [kinds.get(name) for name in inspect.signature(function).parameters]

    def build(self, dtype):
        """Have it there for kernels of `dtype`, which may have been compiled by another process."""
        name = self.name(dtype)
        with _adding:
            if name not in LINKED:
                build_links(self.function, dtype)
                llvm.add_symbol(name, built(self.serial, signature(dtype, *self.kinds)).address)
                LINKED[name] = self

    def name(self, dtype):
        """The name that it is linked by: Numba's own has a number that is another in each process."""
        return f"loopconv_{self.function.__qualname__}_{dtype}_{source_hash()}"


def build_links(function, dtype):
    """Build what `function` calls by name, which is in its closure or among its globals."""
    called = [cell.cell_contents for cell in function.__closure__ or ()]
    called += [function.__globals__.get(name) for name in function.__code__.co_names]
    for value in called:
        if isinstance(link := getattr(value, "link", None), Link):
            link.build(dtype)


def linked(**kinds):
    """For a function that kernels and other linked functions call by name, and that returns an integer.

    `kinds` says which of its parameters are no integers, but one of the above.
    """

    def link_up(function):
        link = Link(function, kinds)

        def call(typing, *given):
            dtype = as_dtype(next(kind.dtype for kind, of in zip(given, link.kinds) if of in (ARRAY, POINTER)))
            parameters = signature(dtype, *link.kinds)

            def codegen(context, builder, signature, arguments):
                kind = context.call_conv.get_function_type(types.int64, parameters)
                callee = cgutils.get_or_insert_function(builder.module, kind, link.name(dtype))
                return context.call_conv.call_function(builder, callee, types.int64, parameters, arguments)[1]

            return types.int64(*parameters), codegen

        own = inspect.signature(function)
        first = inspect.Parameter("typing", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        call.__signature__ = own.replace(parameters=[first, *own.parameters.values()])
        call.__name__, call.__qualname__ = function.__name__, function.__qualname__
        by_name = intrinsic(call)
        by_name.link = link
        return by_name

    return link_up
