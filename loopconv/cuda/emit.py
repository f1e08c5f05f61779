"""Pieces of LLVM's code that intrinsics are made of."""

from llvmlite import ir
from numba.cuda import types

QUAD = 4
WIDE = 16  # bytes of the widest load
GLOBAL, SHARED = 1, 3  # address spaces
I16, I32, I64 = (ir.IntType(bits) for bits in (16, 32, 64))
F32, F64 = ir.FloatType(), ir.DoubleType()


def element_of(dtype):
    return F64 if dtype == types.float64 else F32 if dtype == types.float32 else I16


def data_of(context, builder, kind, array):
    """The pointer of an array in shared memory."""
    return context.make_array(kind)(context, builder, array).data


def address_of(builder, pointer, i, element, target, space):
    """Pointer to `target` at element i."""
    pointer = builder.bitcast(pointer, element.as_pointer())
    pointer = builder.addrspacecast(pointer, element.as_pointer(space))
    return builder.bitcast(builder.gep(pointer, [i]), target.as_pointer(space))


def element_at(context, builder, kind, array, i):
    """Pointer to element i of an array in shared memory, or of a kernel's argument."""
    is_shared, element = isinstance(kind, types.Array), element_of(kind.dtype)
    pointer = data_of(context, builder, kind, array) if is_shared else array
    return address_of(builder, pointer, i, element, element, SHARED if is_shared else GLOBAL)


def assemble(builder, result, code, constraints, operands, effect=True):
    kind = ir.FunctionType(result, [operand.type for operand in operands])
    return builder.asm(kind, code, constraints, operands, effect)


def copy(builder, where, source, ok, size):
    """Begin to copy `size` bytes, zeros where not ok; what is read once goes around the first-level cache."""
    code = f"cp.async.{'cg' if size == WIDE else 'ca'}.shared.global [$0], [$1], {size}, $2;"
    count = builder.select(ok, I32(size), I32(0))
    where = builder.ptrtoint(where, I32)
    assemble(builder, ir.VoidType(), code, "r,l,r,~{memory}", [where, builder.ptrtoint(source, I64), count])


def read(builder, pointer, i, dtype):
    element = element_of(dtype)
    return widened(builder, builder.load(address_of(builder, pointer, i, element, element, GLOBAL)), dtype)


def read_if(builder, address, offset, bits, dtype):
    """What lies `offset` elements after an address of `dtype`, where some of `bits` are set, and else 0.

    The load is guarded by a predicate, where branches would take more instructions.
    """
    element, size = element_of(dtype), dtype.bitwidth // 8
    letter, kind = {F64: ("d", "f64"), F32: ("f", "f32")}.get(element, ("h", "b16"))
    code = f"{{.reg .pred %p<1>; setp.ne.u32 %p0, $2, 0; @%p0 ld.global.nc.{kind} $0, [$1+{offset * size}];}}"
    zero = ir.Constant(element, 0)
    value = assemble(builder, element, code, f"={letter},l,r,0", [builder.ptrtoint(address, I64), bits, zero])
    return widened(builder, value, dtype)


def widened(builder, value, dtype):
    """What was read of an array of `dtype` as a number of the sums."""
    if dtype == types.float16:
        return assemble(builder, F32, "cvt.f32.f16 $0, $1;", "=f,h", [value], False)
    if dtype == types.uint16:
        return builder.bitcast(builder.shl(builder.zext(value, I32), I32(16)), F32)
    return value


def write(builder, pointer, i, value, dtype):
    element = element_of(dtype)
    if not isinstance(value, list):
        builder.store(narrowed(builder, value, dtype), address_of(builder, pointer, i, element, element, GLOBAL))
        return
    address = address_of(builder, pointer, i, element, ir.VectorType(element, len(value)), GLOBAL)
    parts = [narrowed(builder, part, dtype) for part in value]
    store_wide(builder, parts, address, dtype.bitwidth // 8 * len(value))


def narrowed(builder, value, dtype):
    """A number of the sums as it is stored."""
    if element_of(dtype) != I16:
        return value
    name = "f16" if dtype == types.float16 else "bf16"
    return assemble(builder, I16, f"cvt.rn.{name}.f32 $0, $1;", "=h,f", [value], False)


def quads_of(builder, address, first, quads, spacing, element):
    """The numbers of quads `spacing` apart, from `first` elements after the address, by 128-bit loads."""
    n = 4 if element == F32 else 2
    kind, values = ir.VectorType(element, n), []
    for i in range(quads):
        for part in range(0, QUAD, n):
            at = builder.gep(address, [I64(first + i * spacing + part)])
            vector = builder.load(builder.bitcast(at, kind.as_pointer(SHARED)))
            vector.align = WIDE
            values += [builder.extract_element(vector, I32(m)) for m in range(n)]
    return values


def store_wide(builder, values, address, align=WIDE):
    """Store numbers side by side."""
    vector = ir.Constant(address.type.pointee, ir.Undefined)
    for n, value in enumerate(values):
        vector = builder.insert_element(vector, value, I32(n))
    builder.store(vector, address, align=align)
