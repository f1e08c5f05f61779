"""What Winograd's kernels do that Python cannot say: guarded patches, the numbers of a tile, products of many tiles.

As in `intrinsics`, a tile is a value, and each intrinsic has a twin in plain Python for the simulator.
"""

import numpy as np
from numba.cuda import types

from loopconv.cuda import emit
from loopconv.cuda.elements import load, store
from loopconv.cuda.emit import GLOBAL, I32, I64, QUAD, SHARED, WIDE
from loopconv.cuda.intrinsics import SIMULATED, fma_step, paired

if not SIMULATED:
    from llvmlite import ir
    from numba.core import cgutils

SIDE = 4  # of the patch that 2 x 2 results of 3 x 3 taps read
NUMBERS = SIDE * SIDE


def make_patch(side):
    """patch(array, i, pitch, mask): side x side numbers from array[i] on, zeros where their bits are not in `mask`.

    Rows are `pitch` apart. Each load is guarded by a predicate. Branches, which are assembled to that as well, take 19
    instructions more of a side of 4.
    """
    spots = list(np.ndindex(side, side))

    def patch_twin(array, i, pitch, mask):
        return tuple(
            load(array, i + row * pitch + column) if mask >> n & 1 else np.float32(0)
            for n, (row, column) in enumerate(spots)
        )

    @paired(patch_twin)
    def patch(typing, array, i, pitch, mask):
        def codegen(context, builder, signature, values):
            pointer, i, pitch, mask = values
            element, parts = emit.element_of(array.dtype), []
            for n, (row, column) in enumerate(spots):
                at = builder.add(i, builder.mul(pitch, I64(row)))
                address = emit.address_of(builder, pointer, at, element, element, GLOBAL)
                parts.append(emit.read_if(builder, address, column, builder.and_(mask, I32(1 << n)), array.dtype))
            return context.make_tuple(builder, signature.return_type, parts)

        return types.UniTuple(types.float32, side * side)(array, types.int64, types.int64, types.int32), codegen

    return patch


def make_numbers(step):
    """put(numbers, array, at) and take(shared, at): numbers that lie `step` apart, from a position on; 16 are taken."""

    def put_twin(numbers, array, at):
        for n, value in enumerate(numbers):
            store(array, at + n * step, value)

    @paired(put_twin)
    def put(typing, numbers, array, at):
        def codegen(context, builder, signature, values):
            parts, (data, at) = cgutils.unpack_tuple(builder, values[0]), values[1:]
            is_shared = isinstance(array, types.Array)
            for n, value in enumerate(parts):
                i = builder.add(at, I64(n * step))
                if is_shared:
                    builder.store(value, emit.element_at(context, builder, array, data, i))
                else:
                    emit.write(builder, data, i, value, array.dtype)

        return types.void(numbers, array, types.int64), codegen

    @paired(lambda shared, at: tuple(shared[at + n * step] for n in range(NUMBERS)))
    def take(typing, shared, at):
        def codegen(context, builder, signature, values):
            address = emit.element_at(context, builder, shared, *values)
            parts = [builder.load(builder.gep(address, [I64(n * step)])) for n in range(NUMBERS)]
            return context.make_tuple(builder, signature.return_type, parts)

        return types.UniTuple(shared.dtype, NUMBERS)(shared, types.int32), codegen

    return put, take


def make_products(dtype, count, row_quads, column_quads, depth, pad, parts):
    """(begin, multiply, spill) of `count` tiles of a lane, of products of a[depth, rows] and b[depth, columns].

    The rows and columns are those of one warp's tile, and `pad` elements after them.

    begin()
        Zeros.
    multiply(tiles, shared, a, b)
        tiles[n] += a[n].T b[n] for each of them, both one after the other from positions in shared memory that take the
        lane into account; a `parts`-th of the depth.
    spill(tiles, shared, to, quad)
        Quad number `quad` of the columns of all of them: shared[to + (n * rows + row) * SPILL_PITCH + column], both
        counted from the lane's first.
    """
    height, width = 16 * row_quads, 32 * column_quads
    rows = [16 * (m // QUAD) + m % QUAD for m in range(QUAD * row_quads)]
    columns = [32 * (j // QUAD) + j % QUAD for j in range(QUAD * column_quads)]
    size = len(rows) * len(columns)

    steps = np.arange(count * depth).reshape(count, depth, 1)[:, : depth // parts]
    a_pitch, b_pitch = height + pad, width + pad
    left, right = steps * a_pitch + rows, steps * b_pitch + columns

    def multiply_twin(tiles, shared, a, b):
        return tiles + shared[a + left].swapaxes(1, 2) @ shared[b + right]

    def spill_twin(tiles, shared, to, quad):
        for n, m in np.ndindex(count, len(rows)):
            at = to + (n * height + rows[m]) * SPILL_PITCH
            shared[at : at + QUAD] = tiles[n, m, QUAD * quad : QUAD * (quad + 1)]

    @paired(lambda: np.zeros((count, len(rows), len(columns)), dtype))
    def begin(typing):
        def codegen(context, builder, signature, values):
            zeros = [ir.Constant(emit.element_of(signature.return_type.dtype), 0.0)] * (count * size)
            return context.make_tuple(builder, signature.return_type, zeros)

        return types.UniTuple(getattr(types, dtype), count * size)(), codegen

    @paired(multiply_twin)
    def multiply(typing, tiles, shared, a, b):
        def codegen(context, builder, signature, values):
            sums, element = cgutils.unpack_tuple(builder, values[0]), emit.element_of(shared.dtype)
            a, b = (emit.element_at(context, builder, shared, values[1], at) for at in values[2:])
            for d, n in np.ndindex(depth // parts, count):
                step = n * depth + d
                sums[n * size : (n + 1) * size] = fma_step(
                    builder, sums[n * size : (n + 1) * size],
                    (a, step * a_pitch, row_quads), (b, step * b_pitch, column_quads), element,
                )  # fmt: skip
            return context.make_tuple(builder, signature.return_type, sums)

        return tiles(tiles, shared, types.int32, types.int32), codegen

    @paired(spill_twin)
    def spill(typing, tiles, shared, to, quad):
        def codegen(context, builder, signature, values):
            parts, element = cgutils.unpack_tuple(builder, values[0]), emit.element_of(shared.dtype)
            address = emit.element_at(context, builder, shared, *values[1:3])
            kind = ir.VectorType(element, QUAD).as_pointer(SHARED)
            for q in range(column_quads):
                with builder.if_then(builder.icmp_signed("==", values[3], I32(q))):
                    for n, m in np.ndindex(count, len(rows)):
                        first = (n * len(rows) + m) * len(columns) + q * QUAD
                        at = builder.gep(address, [I64((n * height + rows[m]) * SPILL_PITCH)])
                        emit.store_wide(builder, parts[first : first + QUAD], builder.bitcast(at, kind))

        return types.void(tiles, shared, types.int32, types.int32), codegen

    return begin, multiply, spill


# Of 32 columns: eight lanes that read four neighbours each of eight neighbouring rows meet in no bank.
SPILL_PITCH = 36


def make_fetch_all(count, step):
    """fetch_all(shared, to, array, i, ok): begin to copy `count` times 16 bytes, `step` elements apart, or nothing."""

    def fetch_all_twin(shared, to, array, i, ok):
        for n in range(0, count * step if ok else 0, step):
            for m in range(n, n + WIDE // shared.dtype.itemsize):
                shared[to + m] = array[i + m]

    @paired(fetch_all_twin)
    def fetch_all(typing, shared, to, array, i, ok):
        def codegen(context, builder, signature, values):
            where = emit.element_at(context, builder, shared, *values[:2])
            source = emit.element_at(context, builder, array, *values[2:4])
            size = step * shared.dtype.bitwidth // 8
            copies = (f"@%p0 cp.async.cg.shared.global [$0+{n * size}], [$1+{n * size}], {WIDE};" for n in range(count))
            code = f"{{.reg .pred %p<1>; setp.ne.u32 %p0, $2, 0; {''.join(copies)}}}"
            operands = [builder.ptrtoint(where, I32), builder.ptrtoint(source, I64), builder.zext(values[4], I32)]
            emit.assemble(builder, ir.VoidType(), code, "r,l,r,~{memory}", operands)

        return types.void(shared, types.int32, array, types.int64, types.boolean), codegen

    return fetch_all
