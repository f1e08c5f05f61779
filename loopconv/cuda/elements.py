"""What is stored and what is added up: float32 and float64 as they are, float16 and bfloat16 in float32.

Kernels see flat pointers and read and write them by the four operations here. The pointers' types decide what they do,
so one kernel serves every dtype. NumPy has no bfloat16: it is an array of uint16, the upper halves of float32.
"""

import threading

import numba
import numpy as np
from llvmlite import ir
from numba import cuda, types

from loopconv.cuda.gpu import is_simulated


def pointer(dtype):
    """The type of a kernel's argument, of the dtype in memory."""
    return types.CPointer(numba.from_dtype(dtype))


def device(function):
    """`function` as a part of kernels, put in their place before types are known: compiling it alone takes a GPU."""
    return function if is_simulated() else cuda.jit(device=True, inline="always", fastmath=False)(function)


if is_simulated():
    _one_at_a_time = threading.Lock()

    def load(array, i):
        """Element `i` as a number of the sums' dtype."""
        value = array[i]
        if array.dtype == np.uint16:
            return np.uint32(int(value) << 16).view(np.float32)
        return np.float32(value) if array.dtype == np.float16 else value

    def store(array, i, value):
        """Element `i` becomes `value`, rounded to the nearest that fits, to the even one between two."""
        if array.dtype == np.uint16 and not np.isnan(value):
            bits = int(np.float32(value).view(np.uint32))
            array[i] = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
        else:
            array[i] = 0x7FFF if array.dtype == np.uint16 else value

    def zero(array):
        """0 in the dtype of the sums of such arrays."""
        return np.float64(0) if array.dtype == np.float64 else np.float32(0)

    def add_at_once(array, i, value):
        """Element `i` grows by `value`, whoever else adds to it meanwhile; float32 and float64."""
        with _one_at_a_time:
            array[i] += value

else:
    from numba.cuda.extending import intrinsic

    SUMS = {types.uint16: types.float32, types.float16: types.float32}

    def _place(builder, values):
        """The address of an element."""
        return builder.gep(values[0], [values[1]])

    def _halved(builder, instruction, result, argument, value):
        """One conversion instruction; 'h' is a register of 16 bits, 'f' one of 32."""
        letters = {16: "h", 32: "f"}
        kind = ir.FunctionType(result, [argument])
        sizes = [16 if of == ir.IntType(16) else 32 for of in (result, argument)]
        constraint = f"={letters[sizes[0]]},{letters[sizes[1]]}"
        return builder.call(ir.InlineAsm(kind, f"{instruction} $0, $1;", constraint), [value])

    @intrinsic
    def load(typing, array, i):
        element = array.dtype

        def codegen(context, builder, signature, values):
            value = builder.load(builder.bitcast(_place(builder, values), _memory(context, element).as_pointer()))
            if element == types.float16:
                return _halved(builder, "cvt.f32.f16", ir.FloatType(), ir.IntType(16), value)
            if element == types.uint16:
                wide = builder.shl(builder.zext(value, ir.IntType(32)), ir.Constant(ir.IntType(32), 16))
                return builder.bitcast(wide, ir.FloatType())
            return value

        return SUMS.get(element, element)(array, types.intp), codegen

    @intrinsic
    def store(typing, array, i, value):
        element = array.dtype

        def codegen(context, builder, signature, values):
            number = values[2]
            if element in SUMS:
                instruction = "cvt.rn.f16.f32" if element == types.float16 else "cvt.rn.bf16.f32"
                number = _halved(builder, instruction, ir.IntType(16), ir.FloatType(), number)
            builder.store(number, builder.bitcast(_place(builder, values), number.type.as_pointer()))
            return context.get_dummy_value()

        return types.void(array, types.intp, SUMS.get(element, element)), codegen

    @intrinsic
    def zero(typing, array):
        sums = SUMS.get(array.dtype, array.dtype)
        return sums(array), lambda context, *_: ir.Constant(context.get_value_type(sums), 0)

    @intrinsic
    def add_at_once(typing, array, i, value):
        element = array.dtype
        size = element.bitwidth

        def codegen(context, builder, signature, values):
            number = context.get_value_type(element)
            kind = ir.FunctionType(ir.VoidType(), [number.as_pointer(), number])
            assembly = ir.InlineAsm(kind, f"red.add.f{size} [$0], $1;", f"l,{'f' if size == 32 else 'd'}", True)
            builder.call(assembly, [_place(builder, values), values[2]])
            return context.get_dummy_value()

        return types.void(array, types.intp, element), codegen

    def _memory(context, element):
        return ir.IntType(16) if element in SUMS else context.get_value_type(element)
