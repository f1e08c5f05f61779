"""Register tiles that tensor cores multiply: which numbers each lane holds, and how they come from shared memory.

Of TF32, float16 and bfloat16, `mma.sync` multiplies 16 rows by 8 columns, over 32 bytes of each: 8 numbers, or 16.
Fragments of all three lie alike in registers, 4 bytes beside 4 bytes, so one body serves them. Products are exact; sums
are float32. There are three ways from shared memory to fragments, each a pair (where numbers lie, which a lane holds):

* "rows", for forward and adjoint: each row, and each column, has the numbers of a slab's steps side by side, 64 bytes.
  `ldmatrix` hands them out as they are. The row's pieces of 16 bytes are in the order of piece ^ (row // 4 % 4): the
  eight that it reads at a time, and the eight that a quarter of a warp writes, lie in different banks.
* "turned", for weight gradients in 16 bits: each step has its rows, or columns, side by side, and `ldmatrix.trans`
  turns them. Pieces are in the order of piece ^ (step % 8).
* "pairs", for those in TF32, which `ldmatrix` cannot turn: each step alike, with PAD numbers after it. A lane loads two
  neighbouring rows of a at a time, which are two of a fragment's registers, and single columns of b: quads would have
  to be moved to the registers that `mma` wants, 246 moves for 64 of it.

Of float64 it multiplies 8 rows by 8 columns over 4 steps, rounding as `fma` does:

* "singles": steps as they are in `tiled`. A lane loads one number of each fragment: outer products of its own, of 8 by
  4 numbers, would take 12 for 32 multiply-adds, more than shared memory hands out meanwhile.

What a lane holds of a tile is a tuple, row after row, as in `intrinsics`, whose `begin` and `finish` serve here too.
"""

import numpy as np
from numba.cuda import types

from loopconv.cuda import emit
from loopconv.cuda.emit import F32, F64, I32, QUAD, SHARED, WIDE
from loopconv.cuda.intrinsics import SIMULATED, make_begin, make_finish, paired, placed

if not SIMULATED:
    from llvmlite import ir
    from numba.core import cgutils

# The instruction of each dtype in shared memory: float32 is rounded to TF32 there, and uint16 is bfloat16.
MMA = {
    "float32": "m16n8k8.row.col.f32.tf32.tf32.f32",
    "float16": "m16n8k16.row.col.f32.f16.f16.f32",
    "uint16": "m16n8k16.row.col.f32.bf16.bf16.f32",
    "float64": "m8n8k4.row.col.f64.f64.f64.f64",
}
PIECES = 4  # of 16 bytes in a row of a slab: two steps of `mma`
PAD = 8


def threads_of(tile, quads):
    """Threads of a block: a warp for every warp's tile of 16 * quads[0] rows and 16 * quads[1] columns."""
    return 32 * (tile[0] // (16 * quads[0])) * (tile[1] // (16 * quads[1]))


def held(way, row_quads, column_quads):
    """(rows, columns) that each lane holds of its warp's tile, counted from its first ones (`make_place`)."""
    apart = {"rows": 2, "turned": 8, "pairs": 1, "singles": 8}[way]
    rows = [16 * m + apart * h for m in range(row_quads) for h in (0, 1)]
    if way == "rows":
        return rows, [16 * n + i for n in range(column_quads) for i in range(QUAD)]
    return rows, [8 * n + i for n in range(2 * column_quads) for i in (0, 1)]


def make_tile(way, dtype, tile, quads, depth, pitches, wide):
    """(place, begin, multiply, finish) as `intrinsics.make_tile` has them, of numbers of `dtype` in shared memory.

    `pitches` are the numbers from one row, or one step, of a and of b to the next.
    """
    rows, columns = held(way, *quads)
    return (
        make_place(way, dtype, tile, quads, pitches),
        make_begin("float64" if dtype == "float64" else "float32", rows, len(columns)),
        (make_singles if way == "singles" else make_multiply)(way, dtype, rows, columns, quads, depth, pitches),
        make_finish(rows, columns, wide),
    )


def make_place(way, dtype, tile, quads, pitches):
    warp_rows, warp_columns = 16 * quads[0], 16 * quads[1]
    warps_down = tile[0] // warp_rows
    piece = WIDE // np.dtype(dtype).itemsize
    a_pitch, b_pitch = pitches
    is_plain, neighbours = way in ("pairs", "singles"), 2 if way == "pairs" else 1

    def where(t):
        lane, warp = t & 31, t >> 5
        above, left = warp % warps_down * warp_rows, warp // warps_down * warp_columns
        half, quarter = lane >> 2, lane & 3
        if is_plain:
            row = above + half * neighbours
            return lane, row, left + 2 * quarter, row + quarter * a_pitch, left + half + quarter * b_pitch
        # the row of a matrix whose address this lane gives to ldmatrix, and of which of its four matrices
        one, upper, right = lane & 7, lane >> 3 & 1, lane >> 4
        if way == "rows":
            row, column = above + 4 * (half >> 1) + (half & 1), left + 4 * quarter
            a = (above + 4 * (one >> 1) + 2 * upper + (one & 1)) * a_pitch + (right ^ one >> 1) * piece
            b = (left + 4 * (one >> 1) + 2 * right + (one & 1)) * b_pitch + (upper ^ one >> 1) * piece
            return lane, row, column, a, b
        a = (8 * right + one) * a_pitch + ((above // piece + upper) ^ one) * piece
        b = (8 * upper + one) * b_pitch + ((left // piece + right) ^ one) * piece
        return lane, above + half, left + 2 * quarter, a, b

    def where_twin(t):
        """With the positions of the lane's first row and column, in the slab, before pieces are reordered."""
        lane, row, column, _, _ = where(t)
        return (lane, row, column, *((row * a_pitch, column * b_pitch) if way == "rows" else (row, column)))

    return placed(where, where_twin)


def make_twin(way, dtype, rows, columns, depth, pitches):
    """What the lane's part of the product is, whichever lanes load it."""
    piece = WIDE // np.dtype(dtype).itemsize

    def at(first, number, step, pitch):
        if way in ("pairs", "singles"):
            return first + step * pitch + number
        if way == "turned":
            row = first % pitch + number
            return first - first % pitch + step * pitch + (row // piece ^ step % 8) * piece + row % piece
        row = first // pitch + number
        return row * pitch + (step // piece ^ row // 4 % 4) * piece + step % piece

    def numbers(shared, first, offsets, step, pitch):
        found = np.array([shared[at(first, number, step, pitch)] for number in offsets])
        if dtype == "float16":
            return found.astype(np.float32)
        return (found.astype(np.uint32) << 16).view(np.float32) if dtype == "uint16" else found

    def twin(tile, shared, a, b, lane):
        for d in range(depth):
            left, right = numbers(shared, a, rows, d, pitches[0]), numbers(shared, b, columns, d, pitches[1])
            tile = tile + np.outer(left, right)
        return tile

    return twin


def make_multiply(way, dtype, rows, columns, quads, depth, pitches):
    size = np.dtype(dtype).itemsize
    steps = 2 * WIDE // size  # of one mma
    load = load_pairs if way == "pairs" else load_matrices

    @paired(make_twin(way, dtype, rows, columns, depth, pitches))
    def multiply(typing, tile, shared, a, b, lane):
        def codegen(context, builder, signature, values):
            parts, element = list(cgutils.unpack_tuple(builder, values[0])), emit.element_of(shared.dtype)
            data = emit.data_of(context, builder, shared, values[1])
            data = emit.address_of(builder, data, I32(0), element, element, SHARED)
            for turn in range(depth // steps):
                left, right = (
                    [load(builder, way, data, at, turn * steps, i, pitch, is_a) for i in range(count)]
                    for at, count, pitch, is_a in zip(values[2:4], quads, pitches, (True, False))
                )
                for m, n in np.ndindex(quads[0], 2 * quads[1]):
                    where = [(2 * m + h) * len(columns) + 2 * n + e for h in (0, 1) for e in (0, 1)]
                    _multiply(builder, MMA[dtype], parts, left[m], right[n // 2][n % 2 * 2 :][:2], where)
            return context.make_tuple(builder, signature.return_type, parts)

        return tile(tile, shared, types.int32, types.int32, types.int64), codegen

    return multiply


def load_matrices(builder, way, data, at, step, i, pitch, is_a):
    """The registers of the i-th 16 rows, or columns, of an mma that begins at `step`: four matrices of 8 x 16 bytes."""
    # 16 rows further, or two pieces of steps, are two pieces further in the order of the step, or of the row
    at = builder.xor(at, I32(16 * i if way == "turned" else step))
    offset = (step if way == "turned" else 16 * i) * pitch
    code = f"ldmatrix.sync.aligned.m8n8.x4{'.trans' * (way == 'turned')}.shared.b16 {{$0,$1,$2,$3}}, [$4];"
    address = builder.ptrtoint(builder.gep(builder.gep(data, [at]), [I32(offset)]), I32)
    result = emit.assemble(builder, ir.LiteralStructType([I32] * 4), code, "=r,=r,=r,=r,r,~{memory}", [address])
    return [builder.extract_value(result, n) for n in range(4)]


def load_pairs(builder, way, data, at, step, i, pitch, is_a):
    """The same, of numbers of 32 bits: two neighbouring rows of a at a time, or one column of b."""
    found = []
    for column in (0,) if is_a else (0, 8):
        for half in (0, 4):
            address = builder.gep(builder.gep(data, [at]), [I32((step + half) * pitch + 16 * i + column)])
            kind = ir.VectorType(I32, 2) if is_a else I32
            value = builder.load(builder.bitcast(address, kind.as_pointer(SHARED)))
            value.align = 8 if is_a else 4
            found += [builder.extract_element(value, I32(n)) for n in (0, 1)] if is_a else [value]
    return found


def make_singles(way, dtype, rows, columns, quads, depth, pitches):
    """multiply, of float64."""

    @paired(make_twin(way, dtype, rows, columns, depth, pitches))
    def multiply(typing, tile, shared, a, b, lane):
        def codegen(context, builder, signature, values):
            parts, data = (
                list(cgutils.unpack_tuple(builder, values[0])),
                emit.data_of(context, builder, shared, values[1]),
            )
            a, b = (emit.address_of(builder, data, at, F64, F64, SHARED) for at in values[2:4])
            for step in range(0, depth, 4):
                left, right = (
                    [builder.load(builder.gep(side, [I32(step * pitch + 8 * i)])) for i in range(2 * count)]
                    for side, pitch, count in zip((a, b), pitches, quads)
                )
                for m, n in np.ndindex(len(left), len(right)):
                    where = [m * len(columns) + 2 * n + e for e in (0, 1)]
                    _multiply(builder, MMA[dtype], parts, [left[m]], [right[n]], where)
            return context.make_tuple(builder, signature.return_type, parts)

        return tile(tile, shared, types.int32, types.int32, types.int64), codegen

    return multiply


def _multiply(builder, name, parts, a, b, where):
    """parts[where] += a b, by one mma."""
    operands, names = [*a, *b, *(parts[i] for i in where)], iter(range(64))
    groups = ["{" + ",".join(f"${next(names)}" for _ in group) + "}" for group in (where, a, b, where)]
    letter, of_sums = ("d", F64) if len(a) == 1 else ("f", F32)
    sums = [letter] * len(where)
    constraints = [f"={letter}"] * len(where) + ["d" if len(a) == 1 else "r"] * len([*a, *b]) + sums
    kind = ir.LiteralStructType([of_sums] * len(where))
    code = f"mma.sync.aligned.{name} {', '.join(groups)};"
    result = emit.assemble(builder, kind, code, ",".join(constraints), operands, False)
    for n, i in enumerate(where):
        parts[i] = builder.extract_value(result, n)
