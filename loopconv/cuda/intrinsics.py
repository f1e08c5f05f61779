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
from numba.cuda import types

from loopconv.cuda import emit
from loopconv.cuda.elements import load, store
from loopconv.cuda.emit import F32, GLOBAL, I32, I64, QUAD, SHARED, WIDE
from loopconv.cuda.gpu import is_simulated

SIMULATED = is_simulated()

if not SIMULATED:
    from llvmlite import ir
    from numba.core import cgutils
    from numba.cuda.extending import intrinsic


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
        return emit.assemble(builder, I32, "mov.u32 $0, $1;", "=r,r", values)

    return types.int32(types.int32), codegen


def _entry(plan, i):
    words = [int(plan[i]), int(plan[i + 1])]
    return tuple(np.array(words, np.int64).view(np.int32))


@paired(_entry)
def entry(typing, plan, i):
    """The four 32-bit numbers in plan[i] and plan[i + 1], by one load."""

    def codegen(context, builder, signature, values):
        kind = ir.VectorType(I32, 4)
        address = emit.address_of(builder, values[0], values[1], I64, kind, GLOBAL)
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
        data = emit.data_of(context, builder, shared, values[0])
        vector = builder.load(emit.address_of(builder, data, values[1], element, ir.VectorType(element, count), SHARED))
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
        plan, parts = emit.address_of(builder, plan, at, I64, I64, GLOBAL), []
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
        return emit.assemble(builder, address.type, "mov.b64 $0, $1;", "=l,l", [address], False)

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
            element, data = emit.element_of(shared.dtype), emit.data_of(context, builder, shared, values[0])
            where = builder.gep(emit.address_of(builder, data, to, element, element, SHARED), [k])
            source = emit.address_of(builder, pointer, i, element, element, GLOBAL)
            emit.copy(builder, where, source, ok, WIDE if is_wide else shared.dtype.bitwidth // 8)

        return types.void(shared, types.int32, types.int32, array, types.int32, types.boolean), codegen

    return fetch


@paired(lambda: None)
def sent(typing):
    """End a group of fetches."""

    def codegen(context, builder, signature, values):
        emit.assemble(builder, ir.VoidType(), "cp.async.commit_group;", "~{memory}", [])

    return types.void(), codegen


def make_arrived(groups):
    """arrived(): wait until no more than the last `groups` groups of fetches are under way."""

    @paired(lambda: None)
    def arrived(typing):
        def codegen(context, builder, signature, values):
            emit.assemble(builder, ir.VoidType(), f"cp.async.wait_group {groups};", "~{memory}", [])

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
            zero, parts = ir.Constant(emit.element_of(signature.return_type.dtype), 0.0), []
            for m in rows:
                ok = builder.and_(given, builder.icmp_signed("<", I64(m), count))
                at = builder.select(ok, builder.add(first, I64(m)), I64(0))
                value = builder.select(ok, emit.read(builder, pointer, at, bias.dtype), zero)
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
            element = emit.element_of(shared.dtype)
            data = emit.data_of(context, builder, shared, values[1])
            a, b = (emit.address_of(builder, data, at, element, element, SHARED) for at in values[2:4])
            for d in range(depth):
                parts = fma_step(builder, parts, (a, d * a_pitch, row_quads), (b, d * b_pitch, column_quads), element)
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
            data = emit.address_of(
                builder, emit.data_of(context, builder, positions, values[5]), values[6], I64, I64, SHARED
            )
            width = WIDE * 8 // tile.dtype.bitwidth if wide else 1
            for m, row in enumerate(rows):
                with builder.if_then(builder.icmp_signed("<", I64(row), count)):
                    start = builder.add(base, builder.mul(step, I64(row)))
                    for j in range(0, len(columns), width):
                        at = builder.load(builder.gep(data, [I64(columns[j])]))
                        with builder.if_then(builder.icmp_signed(">=", at, I64(0))):
                            some = parts[m * len(columns) + j :][:width]
                            emit.write(builder, pointer, builder.add(start, at), some if wide else some[0], out.dtype)

        return types.void(tile, out, types.int64, types.int64, types.int64, positions, types.int64), codegen

    return finish


def fma_step(builder, parts, a, b, element):
    """One outer product."""
    left, right = emit.quads_of(builder, *a, 16, element), emit.quads_of(builder, *b, 32, element)
    return [builder.fma(left[i // len(right)], right[i % len(right)], part) for i, part in enumerate(parts)]
