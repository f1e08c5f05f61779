"""What Python cannot say on a device: wide and asynchronous copies, and register tiles.

Each has a twin in plain Python, which runs in its place in the simulator. A tile is a value, as in
`loopconv.tiled.simd`: a tuple of numbers, which stays in registers because nothing takes its address and its loops are
unrolled when the code is generated.

A thread's tile is made of quads: four neighbouring rows (result channels) and four neighbouring columns (pixels), each
read from shared memory 128 bits at a time. The lanes of a warp are 4 x 8; quads of rows are 16 apart, quads of columns
32. Lanes n and n ^ 1 read the same rows, and lanes n and n ^ 2 the same columns: so a load of 128 bits takes two turns
of shared memory and not four. Tiles of tensor cores are in `fragments`.

Numbers of 16 bits are widened when they are read and rounded when they are written, as in `elements`.
"""

import numpy as np

from loopconv.cuda.elements import load, store
from loopconv.cuda.gpu import is_simulated

SIMULATED = is_simulated()

if not SIMULATED:
    from llvmlite import ir
    from numba.core import cgutils
    from numba.cuda import types
    from numba.cuda.extending import intrinsic

    I1, I16, I32, I64 = (ir.IntType(bits) for bits in (1, 16, 32, 64))
    F32 = ir.FloatType()

QUAD = 4
WIDE = 16  # bytes of the widest load
GLOBAL, SHARED = 1, 3  # address spaces


def paired(twin):
    """The decorator of an intrinsic, in whose place `twin` runs in the simulator."""
    return (lambda _: twin) if SIMULATED else intrinsic


# ---------------------------------------------------------------------------- tables of integers


@paired(lambda i, n: 0 <= i < n)
def inside(typing, i, n):
    """0 <= i < n for n >= 0, by one comparison."""

    def codegen(context, builder, signature, values):
        return builder.icmp_unsigned("<", *values)

    return types.boolean(types.int32, types.int32), codegen


@paired(lambda value: value)
def anew(typing, value):
    """The value, and no reason to keep in a register what was worked out from it before."""

    def codegen(context, builder, signature, values):
        return _assemble(builder, I32, "mov.u32 $0, $1;", "=r,r", values)

    return types.int32(types.int32), codegen


def _entry(plan, i):
    words = [int(plan[i]), int(plan[i + 1])]
    return tuple(np.array(words, np.int64).view(np.int32))


@paired(_entry)
def entry(typing, plan, i):
    """The four 32-bit numbers in plan[i] and plan[i + 1], by one load."""

    def codegen(context, builder, signature, values):
        kind = ir.VectorType(I32, 4)
        address = _address(builder, values[0], values[1], I64, kind, GLOBAL)
        vector = builder.load(address)
        vector.align = WIDE
        parts = [builder.extract_element(vector, I32(n)) for n in range(4)]
        return context.make_tuple(builder, signature.return_type, parts)

    return types.UniTuple(types.int32, 4)(plan, types.int64), codegen


@paired(lambda shared, i: tuple(shared[i : i + WIDE // shared.dtype.itemsize]))
def noted(typing, shared, i):
    """The 16 bytes from shared[i] on as a tuple of integers, by one load."""
    count = WIDE * 8 // shared.dtype.bitwidth

    def codegen(context, builder, signature, values):
        element = ir.IntType(shared.dtype.bitwidth)
        data = _data(context, builder, shared, values[0])
        vector = builder.load(_address(builder, data, values[1], element, ir.VectorType(element, count), SHARED))
        vector.align = WIDE
        parts = [builder.extract_element(vector, I32(n)) for n in range(count)]
        return context.make_tuple(builder, signature.return_type, parts)

    return types.UniTuple(shared.dtype, count)(shared, types.int32), codegen


def _pixel(i, plan, at):
    i, parts = int(i), []
    for _ in range(3):
        n = i * int(plan[at + 1]) >> int(plan[at + 2])
        parts.append(n)
        i -= n * int(plan[at])
        at += 3
    return (*parts, i)


@paired(_pixel)
def pixel(typing, i, plan, at):
    """(image, slice, row, column) of pixel i < 2**31 of a batch.

    At plan[at] are the pixels of an image, of a slice and of a row, each as (number, multiplier, shift), by which
    i // number is (i * multiplier) >> shift: a division takes about ten times as long.
    """

    def codegen(context, builder, signature, values):
        i, plan, at = values
        plan, parts = _address(builder, plan, at, I64, I64, GLOBAL), []
        for axis in range(3):
            number, multiplier, shift = (builder.load(builder.gep(plan, [I64(3 * axis + n)])) for n in range(3))
            n = builder.ashr(builder.mul(i, multiplier), shift)
            parts.append(n)
            i = builder.sub(i, builder.mul(n, number))
        return context.make_tuple(builder, signature.return_type, [*parts, i])

    return types.UniTuple(types.int64, 4)(types.int64, plan, types.int64), codegen


# ------------------------------------------------------------------------------------------------ TF32


def _rounded(value):
    bits = np.asarray(value, np.float32).view(np.uint32)
    size = np.minimum((bits & 0x7FFFFFFF) + np.uint32(0x1000), np.uint32(0x7FFFFFFF))
    return ((size | bits & np.uint32(0x80000000)) & np.uint32(0xFFFFE000)).view(np.float32)


@paired(_rounded)
def rounded(typing, value):
    """float32 rounded to the 10 bits of TF32, the upper 19 of it, halves away from zero.

    Half of what is left is added to the magnitude, but not above the largest NaN, which is what a GPU makes: it would
    come out as a zero.
    """

    def codegen(context, builder, signature, values):
        bits, largest = builder.bitcast(values[0], I32), I32(0x7FFFFFFF)
        size = builder.add(builder.and_(bits, largest), I32(0x1000))
        size = builder.select(builder.icmp_unsigned("<", size, largest), size, largest)
        bits = builder.or_(size, builder.and_(bits, I32(0x80000000)))
        return builder.bitcast(builder.and_(bits, I32(0xFFFFE000)), F32)

    return types.float32(types.float32), codegen


@paired(lambda value: value)
def plain(typing, value):
    """The value, where another kernel has it `rounded`."""
    return types.float32(types.float32), lambda context, builder, signature, values: values[0]


# ---------------------------------------------------------------------------- from global to shared memory


class Moved:
    """`moved` in the simulator."""

    def __init__(self, array, i):
        self.array, self.i, self.dtype = array, i, array.dtype

    def __getitem__(self, offset):
        return self.array[self.i + offset]


@paired(Moved)
def moved(typing, array, i):
    """The array from element i on.

    The address is worked out here and not put together with what comes to it: then each of a thread's fetches takes one
    instruction for its own, and not four.
    """

    def codegen(context, builder, signature, values):
        address = builder.gep(values[0], [values[1]])
        return _assemble(builder, address.type, "mov.b64 $0, $1;", "=l,l", [address], False)

    return array(array, types.int64), codegen


def make_fetch(is_wide):
    """fetch(shared, to, k, array, i, ok): shared[to + k] = array[i] if ok else 0; not before `arrived`.

    With `is_wide`, the same for the 16 bytes from there on, which are aligned; `k` is what differs among a thread's
    fetches.
    """

    def twin(shared, to, k, array, i, ok):
        n = WIDE // shared.dtype.itemsize if is_wide else 1
        shared[to + k : to + k + n] = [array[i + m] for m in range(n)] if ok else 0

    @paired(twin)
    def fetch(typing, shared, to, k, array, i, ok):
        def codegen(context, builder, signature, values):
            _, to, k, pointer, i, ok = values
            element, data = _element(shared.dtype), _data(context, builder, shared, values[0])
            where = builder.gep(_address(builder, data, to, element, element, SHARED), [k])
            source = _address(builder, pointer, i, element, element, GLOBAL)
            _copy(builder, where, source, ok, WIDE if is_wide else shared.dtype.bitwidth // 8)

        return types.void(shared, types.int32, types.int32, array, types.int32, types.boolean), codegen

    return fetch


@paired(lambda: None)
def sent(typing):
    """End a group of fetches."""

    def codegen(context, builder, signature, values):
        _assemble(builder, ir.VoidType(), "cp.async.commit_group;", "~{memory}", [])

    return types.void(), codegen


def make_arrived(groups):
    """arrived(): wait until no more than the last `groups` groups of fetches are under way."""

    @paired(lambda: None)
    def arrived(typing):
        def codegen(context, builder, signature, values):
            _assemble(builder, ir.VoidType(), f"cp.async.wait_group {groups};", "~{memory}", [])

        return types.void(), codegen

    return arrived


# --------------------------------------------------------------------------------------- register tiles


def make_tile(dtype, tile, row_quads, column_quads, depth, a_pitch, b_pitch, wide):
    """(place, begin, multiply, finish) for a block's `tile` of (rows, columns).

    place(t)
        (lane, first row, first column, where its operands a and b begin) of thread t; 32-bit.
    begin(bias, first, rows, given)
        The tile whose rows are bias[first], ..., or zeros where not `given`; only the first `rows` rows of the
        result exist, counted from the tile's first.
    multiply(tile, shared, a, b, lane)
        tile[m, j] += sum over `depth` of a[depth, m] * b[depth, j], both at positions in shared memory that take the
        lane into account.
    finish(tile, out, base, step, rows, positions, first)
        out[base + m * step + positions[first + j]] = tile[m, j], where the row exists and the position is not negative.
        With `wide`, the positions of quads are neighbours and aligned.
    """
    rows = [16 * (m // QUAD) + m % QUAD for m in range(QUAD * row_quads)]
    columns = [32 * (j // QUAD) + j % QUAD for j in range(QUAD * column_quads)]
    return (
        make_place(tile[0] // (16 * row_quads), 16 * row_quads, 32 * column_quads),
        make_begin(dtype, rows, len(columns)),
        make_multiply((rows, a_pitch, row_quads), (columns, b_pitch, column_quads), depth),
        make_finish(rows, columns, wide),
    )


def make_place(warps_down, warp_rows, warp_columns):
    def where(t):
        lane, warp = t & 31, t >> 5
        row = warp % warps_down * warp_rows + (lane >> 1 & 1 | lane >> 3 & 2) * QUAD
        column = warp // warps_down * warp_columns + (lane & 1 | lane >> 1 & 6) * QUAD
        return lane, row, column, row, column

    return placed(where, where)


def placed(where, twin):
    """The intrinsic place(t) that is ``where(t)`` in integers of 32 bits."""

    @paired(twin)
    def place(typing, t):
        signature = types.UniTuple(types.int32, 5)(types.int32)
        return signature, lambda context, builder, signature, values: context.compile_internal(
            builder, where, signature, values
        )

    return place


def make_begin(dtype, rows, columns):
    def begin_twin(bias, first, count, given):
        start = [load(bias, first + m) if given and m < count else 0 for m in rows]
        return np.repeat(np.array(start, dtype)[:, None], columns, 1)

    @paired(begin_twin)
    def begin(typing, bias, first, count, given):
        def codegen(context, builder, signature, values):
            pointer, first, count, given = values
            zero, parts = ir.Constant(_element(signature.return_type.dtype), 0.0), []
            for m in rows:
                ok = builder.and_(given, builder.icmp_signed("<", I64(m), count))
                at = builder.select(ok, builder.add(first, I64(m)), I64(0))
                value = builder.select(ok, _read(builder, pointer, at, bias.dtype), zero)
                parts += [value] * columns
            return context.make_tuple(builder, signature.return_type, parts)

        tile = types.UniTuple(getattr(types, dtype), len(rows) * columns)
        return tile(bias, types.int64, types.int64, types.boolean), codegen

    return begin


def make_multiply(of_a, of_b, depth):
    (rows, a_pitch, row_quads), (columns, b_pitch, column_quads) = of_a, of_b

    def twin(tile, shared, a, b, lane):
        for d in range(depth):
            tile = tile + np.outer(
                shared[[a + d * a_pitch + m for m in rows]], shared[[b + d * b_pitch + j for j in columns]]
            )
        return tile

    @paired(twin)
    def multiply(typing, tile, shared, a, b, lane):
        def codegen(context, builder, signature, values):
            parts = cgutils.unpack_tuple(builder, values[0])
            element = _element(shared.dtype)
            data = _data(context, builder, shared, values[1])
            a, b = (_address(builder, data, at, element, element, SHARED) for at in values[2:4])
            for d in range(depth):
                parts = _fma_step(builder, parts, (a, d * a_pitch, row_quads), (b, d * b_pitch, column_quads), element)
            return context.make_tuple(builder, signature.return_type, parts)

        return tile(tile, shared, types.int32, types.int32, types.int64), codegen

    return multiply


def make_finish(rows, columns, wide):
    def finish_twin(tile, out, base, step, count, positions, first):
        for m, j in np.ndindex(len(rows), len(columns)):
            if rows[m] < count and positions[first + columns[j]] >= 0:
                store(out, base + rows[m] * step + positions[first + columns[j]], tile[m, j])

    @paired(finish_twin)
    def finish(typing, tile, out, base, step, count, positions, first):
        def codegen(context, builder, signature, values):
            parts, (pointer, base, step, count) = cgutils.unpack_tuple(builder, values[0]), values[1:5]
            data = _address(builder, _data(context, builder, positions, values[5]), values[6], I64, I64, SHARED)
            width = WIDE * 8 // tile.dtype.bitwidth if wide else 1
            for m, row in enumerate(rows):
                with builder.if_then(builder.icmp_signed("<", I64(row), count)):
                    start = builder.add(base, builder.mul(step, I64(row)))
                    for j in range(0, len(columns), width):
                        at = builder.load(builder.gep(data, [I64(columns[j])]))
                        with builder.if_then(builder.icmp_signed(">=", at, I64(0))):
                            some = parts[m * len(columns) + j :][:width]
                            _write(builder, pointer, builder.add(start, at), some if wide else some[0], out.dtype)

        return types.void(tile, out, types.int64, types.int64, types.int64, positions, types.int64), codegen

    return finish


def _fma_step(builder, parts, a, b, element):
    """One outer product."""
    left, right = _quads(builder, *a, 16, element), _quads(builder, *b, 32, element)
    return [builder.fma(left[i // len(right)], right[i % len(right)], part) for i, part in enumerate(parts)]


# ------------------------------------------------------------------------------------ what they are made of


def _element(dtype):
    return ir.DoubleType() if dtype == types.float64 else F32 if dtype == types.float32 else I16


def _data(context, builder, kind, array):
    """The pointer of an array in shared memory."""
    return context.make_array(kind)(context, builder, array).data


def _address(builder, pointer, i, element, target, space):
    """Pointer to `target` at element i."""
    pointer = builder.bitcast(pointer, element.as_pointer())
    pointer = builder.addrspacecast(pointer, element.as_pointer(space))
    return builder.bitcast(builder.gep(pointer, [i]), target.as_pointer(space))


def _assemble(builder, result, code, constraints, operands, effect=True):
    kind = ir.FunctionType(result, [operand.type for operand in operands])
    return builder.asm(kind, code, constraints, operands, effect)


def _copy(builder, where, source, ok, size):
    """Begin to copy `size` bytes, zeros where not ok; what is read once goes around the first-level cache."""
    code = f"cp.async.{'cg' if size == WIDE else 'ca'}.shared.global [$0], [$1], {size}, $2;"
    count = builder.select(ok, I32(size), I32(0))
    where = builder.ptrtoint(where, I32)
    _assemble(builder, ir.VoidType(), code, "r,l,r,~{memory}", [where, builder.ptrtoint(source, I64), count])


def _read(builder, pointer, i, dtype):
    element = _element(dtype)
    value = builder.load(_address(builder, pointer, i, element, element, GLOBAL))
    if dtype == types.float16:
        return _assemble(builder, F32, "cvt.f32.f16 $0, $1;", "=f,h", [value], False)
    if element == I16:
        return builder.bitcast(builder.shl(builder.zext(value, I32), I32(16)), F32)
    return value


def _write(builder, pointer, i, value, dtype):
    element = _element(dtype)
    if not isinstance(value, list):
        builder.store(_narrowed(builder, value, dtype), _address(builder, pointer, i, element, element, GLOBAL))
        return
    kind = ir.VectorType(element, len(value))
    vector = ir.Constant(kind, ir.Undefined)
    for n, part in enumerate(value):
        vector = builder.insert_element(vector, _narrowed(builder, part, dtype), I32(n))
    size = dtype.bitwidth // 8 * len(value)
    builder.store(vector, _address(builder, pointer, i, element, kind, GLOBAL), align=size)


def _narrowed(builder, value, dtype):
    """A number of the sums as it is stored."""
    if _element(dtype) != I16:
        return value
    name = "f16" if dtype == types.float16 else "bf16"
    return _assemble(builder, I16, f"cvt.rn.{name}.f32 $0, $1;", "=h,f", [value], False)


def _quads(builder, address, first, quads, spacing, element):
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
