"""What Python cannot say on a device: wide and asynchronous copies, register tiles, tensor cores.

Each has a twin in plain Python, which runs in its place in the simulator. A tile is a value, as in
`loopconv.tiled.simd`: a tuple of numbers, which stays in registers because nothing takes its address and its loops are
unrolled when the code is generated.

A thread's tile is made of quads: four neighbouring rows (result channels) and four neighbouring columns (pixels), each
read from shared memory 128 bits at a time. Where the quads of a lane lie in the tile of its warp depends on the kind:

* "fma": the lanes are 4 x 8; quads of rows are 16 apart, quads of columns 32. Lanes n and n ^ 1 read the same rows, and
  lanes n and n ^ 2 the same columns: so a load of 128 bits takes two turns of shared memory and not four.
* "tf32": the fragments of mma.sync.m16n8k8, with rows and columns renamed so that what a lane holds of four
  fragments lies side by side: quads of rows are 32 apart, and so are pairs of quads of columns.

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


# ---------------------------------------------------------------------------- from global to shared memory


def _fetch(shared, to, array, i, ok):
    shared[to] = load(array, i) if ok else 0


@paired(_fetch)
def fetch(typing, shared, to, array, i, ok):
    """shared[to] = array[i] if ok else 0; not before `arrived` where both are of one dtype."""

    def codegen(context, builder, signature, values):
        _, to, pointer, i, ok = values
        element = _element(shared.dtype)
        where = _address(builder, _data(context, builder, shared, values[0]), to, element, element, SHARED)
        if shared.dtype == array.dtype:
            source = _address(builder, pointer, i, element, element, GLOBAL)
            _copy(builder, where, source, ok, shared.dtype.bitwidth // 8)
        else:
            value = _read(builder, pointer, builder.select(ok, i, I64(0)), array.dtype)
            builder.store(builder.select(ok, value, ir.Constant(element, 0.0)), where)

    return types.void(shared, types.int32, array, types.int64, types.boolean), codegen


def _fetch_wide(shared, to, array, i, ok):
    n = WIDE // shared.dtype.itemsize
    shared[to : to + n] = [array[i + k] for k in range(n)] if ok else 0


@paired(_fetch_wide)
def fetch_wide(typing, shared, to, array, i, ok):
    """The same for the 16 bytes from there on, which are aligned."""

    def codegen(context, builder, signature, values):
        _, to, pointer, i, ok = values
        element = _element(shared.dtype)
        where = _address(builder, _data(context, builder, shared, values[0]), to, element, element, SHARED)
        _copy(builder, where, _address(builder, pointer, i, element, element, GLOBAL), ok, WIDE)

    return types.void(shared, types.int32, array, types.int64, types.boolean), codegen


def make_fetch_all(count, step):
    """fetch_all(shared, to, array, i, ok): nothing, or `count` times 16 bytes, `step` elements apart on both sides."""

    def fetch_all_twin(shared, to, array, i, ok):
        for n in range(count if ok else 0):
            _fetch_wide(shared, to + n * step, array, i + n * step, True)

    @paired(fetch_all_twin)
    def fetch_all(typing, shared, to, array, i, ok):
        def codegen(context, builder, signature, values):
            where = _element_at(context, builder, shared, *values[:2])
            source = _element_at(context, builder, array, *values[2:4])
            size = step * shared.dtype.bitwidth // 8
            copies = (f"@%p0 cp.async.cg.shared.global [$0+{n * size}], [$1+{n * size}], {WIDE};" for n in range(count))
            code = f"{{.reg .pred %p<1>; setp.ne.u32 %p0, $2, 0; {''.join(copies)}}}"
            operands = [builder.ptrtoint(where, I32), builder.ptrtoint(source, I64), builder.zext(values[4], I32)]
            _assemble(builder, ir.VoidType(), code, "r,l,r,~{memory}", operands)

        return types.void(shared, types.int32, array, types.int64, types.boolean), codegen

    return fetch_all


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


def warp_tile(kind, row_quads, column_quads):
    """(rows, columns) of a warp's tile."""
    return (16 * row_quads, 32 * column_quads) if kind == "fma" else (32 * row_quads, 16 * column_quads)


def make_tile(kind, dtype, tile, row_quads, column_quads, depth, a_pitch, b_pitch, wide):
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
    spacing = 16 if kind == "fma" else 32
    rows = [spacing * (m // QUAD) + m % QUAD for m in range(QUAD * row_quads)]
    together = QUAD if kind == "fma" else 8
    columns = [32 * (j // together) + j % together for j in range(QUAD * column_quads)]
    return (
        make_place(kind, tile, warp_tile(kind, row_quads, column_quads), a_pitch, b_pitch),
        make_begin(dtype, rows, len(columns)),
        make_multiply(kind, (rows, a_pitch, row_quads), (columns, b_pitch, column_quads), depth),
        make_finish(rows, columns, wide),
    )


def make_place(kind, tile, of_warp, a_pitch, b_pitch):
    warp_rows, warp_columns = of_warp
    warps_down = tile[0] // warp_rows

    def where(t):
        lane, warp = t & 31, t >> 5
        above, left = warp % warps_down * warp_rows, warp // warps_down * warp_columns
        if kind == "fma":
            row, column = above + (lane >> 1 & 1 | lane >> 3 & 2) * 4, left + (lane & 1 | lane >> 1 & 6) * 4
            return lane, row, column, row, column
        row, step = above + (lane >> 2) * 4, lane & 3
        return lane, row, left + step * 8, row + step * a_pitch, left + (lane >> 2) * 4 + step * b_pitch

    @paired(where)
    def place(typing, t):
        signature = types.UniTuple(types.int32, 5)(types.int32)

        def codegen(context, builder, signature, values):
            return context.compile_internal(builder, where, signature, values)

        return signature, codegen

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


def make_multiply(kind, of_a, of_b, depth):
    (rows, a_pitch, row_quads), (columns, b_pitch, column_quads) = of_a, of_b

    def fma_twin(tile, shared, a, b, lane):
        for d in range(depth):
            tile = tile + np.outer(
                shared[[a + d * a_pitch + m for m in rows]], shared[[b + d * b_pitch + j for j in columns]]
            )
        return tile

    def tf32_twin(tile, shared, a, b, lane):
        # the fragments of the whole warp hold these; see the test of the mapping
        a, b = a - lane % 4 * a_pitch, b - lane % 4 * b_pitch - lane // 4 * QUAD + lane % 4 * 8
        for d in range(depth):
            left = _rounded(shared[[a + d * a_pitch + m for m in rows]])
            tile = tile + np.outer(left, _rounded(shared[[b + d * b_pitch + j for j in columns]]))
        return tile

    @paired(fma_twin if kind == "fma" else tf32_twin)
    def multiply(typing, tile, shared, a, b, lane):
        def codegen(context, builder, signature, values):
            parts = cgutils.unpack_tuple(builder, values[0])
            element = _element(shared.dtype)
            data = _data(context, builder, shared, values[1])
            a, b = (_address(builder, data, at, element, element, SHARED) for at in values[2:4])
            step = _fma_step if kind == "fma" else _tf32_step
            for d in range(0, depth, 1 if kind == "fma" else 8):
                parts = step(
                    builder,
                    parts,
                    (a, d * a_pitch, a_pitch, row_quads),
                    (b, d * b_pitch, b_pitch, column_quads),
                    element,
                )
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


def _rounded(values):
    """float32 rounded to the 10 bits of TF32, halves away from zero: what `_round` and `mma` do together."""
    bits = np.asarray(values, np.float32).view(np.uint32)
    size = np.minimum((bits & 0x7FFFFFFF) + np.uint32(0x1000), np.uint32(0x7FFFFFFF))
    return ((size | bits & np.uint32(0x80000000)) & np.uint32(0xFFFFE000)).view(np.float32)


def _fma_step(builder, parts, a, b, element):
    """One outer product."""
    left, right = (_quads(builder, *side[:2], side[3], 16 if side is a else 32, element) for side in (a, b))
    columns = len(right)
    return [builder.fma(left[i // columns], right[i % columns], part) for i, part in enumerate(parts)]


MMA = "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {$0,$1,$2,$3}, {$4,$5,$6,$7}, {$8,$9}, {$10,$11,$12,$13};"


def fragments(row_quads, column_quads):
    """Which numbers of a lane each mma takes: [(rows of a, columns of b, elements of the tile)].

    Rows are (half of the depth, number among the lane's rows), columns alike; elements are (row, column).
    """
    for m in range(0, QUAD * row_quads, 2):
        for group in range(0, QUAD * column_quads, 8):
            for j in range(QUAD):
                a = [(0, m), (0, m + 1), (1, m), (1, m + 1)]
                b = [(0, group // 2 + j), (1, group // 2 + j)]
                c = [(m + h, group + QUAD * e + j) for h in (0, 1) for e in (0, 1)]
                yield a, b, c


def _tf32_step(builder, parts, a, b, element):
    """Eight outer products by tensor cores, of the operands rounded to TF32."""
    left, right = (
        [
            [_round(builder, value) for value in values]
            for values in (
                _quads(builder, address, first + half * 4 * pitch, quads // (1 if side is a else 2), 32, element)
                for half in (0, 1)
            )
        ]
        for side in (a, b)
        for address, first, pitch, quads in [side]
    )
    parts, columns = list(parts), QUAD * b[3]
    kind = ir.LiteralStructType([F32] * 4)
    for rows, taken, elements in fragments(a[3], b[3]):
        where = [m * columns + j for m, j in elements]
        operands = [left[h][m] for h, m in rows] + [right[h][j] for h, j in taken] + [parts[i] for i in where]
        result = _assemble(builder, kind, MMA, "=f,=f,=f,=f,r,r,r,r,r,r,f,f,f,f", operands, False)
        for n, i in enumerate(where):
            parts[i] = builder.extract_value(result, n)
    return parts


def _round(builder, value):
    """float32 as `mma` wants it, which takes the upper 19 bits: half of what is left is added to its magnitude.

    Not above the largest NaN, which is what a GPU makes: it would come out as a zero. `cvt.rna` does the same, but is
    assembled to 483 instructions for 64 mma, 240 of them moves, where this takes 288.
    """
    bits, largest = builder.bitcast(value, I32), I32(0x7FFFFFFF)
    size = builder.add(builder.and_(bits, largest), I32(0x1000))
    size = builder.select(builder.icmp_unsigned("<", size, largest), size, largest)
    return builder.or_(size, builder.and_(bits, I32(0x80000000)))


# ------------------------------------------------------------------------------------- Winograd's tiles

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
            element, parts = _element(array.dtype), []
            letter, kind = ("f", "f32") if element == F32 else ("h", "b16")
            code = f"{{.reg .pred %p<1>; setp.ne.u32 %p0, $2, 0; @%p0 ld.global.nc.{kind} $0, [$1];}}"
            for n, (row, column) in enumerate(spots):
                at = builder.add(builder.add(i, builder.mul(pitch, I64(row))), I64(column))
                address = _address(builder, pointer, at, element, element, GLOBAL)
                operands = [builder.ptrtoint(address, I64), builder.and_(mask, I32(1 << n)), ir.Constant(element, 0)]
                value = _assemble(builder, element, code, f"={letter},l,r,0", operands)
                parts.append(_widened(builder, value, array.dtype))
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
                    builder.store(value, _element_at(context, builder, array, data, i))
                else:
                    _write(builder, data, i, value, array.dtype)

        return types.void(numbers, array, types.int64), codegen

    @paired(lambda shared, at: tuple(shared[at + n * step] for n in range(NUMBERS)))
    def take(typing, shared, at):
        def codegen(context, builder, signature, values):
            address = _element_at(context, builder, shared, *values)
            parts = [builder.load(builder.gep(address, [I64(n * step)])) for n in range(NUMBERS)]
            return context.make_tuple(builder, signature.return_type, parts)

        return types.UniTuple(shared.dtype, NUMBERS)(shared, types.int32), codegen

    return put, take


def make_products(dtype, count, row_quads, column_quads, depth, pad, parts):
    """(begin, multiply, spill) of `count` tiles of a lane, of products of a[depth, rows] and b[depth, columns].

    The rows and columns are those of one warp's tile of the kind "fma", and `pad` elements after them.

    begin()
        Zeros.
    multiply(tiles, shared, a, b)
        tiles[n] += a[n].T b[n] for each of them, both one after the other from positions in shared memory that take the
        lane into account; a `parts`-th of the depth.
    spill(tiles, shared, to, quad)
        Quad number `quad` of the columns of all of them: shared[to + (n * rows + row) * SPILL_PITCH + column], both
        counted from the lane's first.
    """
    height, width = warp_tile("fma", row_quads, column_quads)
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
            zeros = [ir.Constant(_element(signature.return_type.dtype), 0.0)] * (count * size)
            return context.make_tuple(builder, signature.return_type, zeros)

        return types.UniTuple(getattr(types, dtype), count * size)(), codegen

    @paired(multiply_twin)
    def multiply(typing, tiles, shared, a, b):
        def codegen(context, builder, signature, values):
            sums, element = cgutils.unpack_tuple(builder, values[0]), _element(shared.dtype)
            a, b = (_element_at(context, builder, shared, values[1], at) for at in values[2:])
            for d, n in np.ndindex(depth // parts, count):
                step = n * depth + d
                sums[n * size : (n + 1) * size] = _fma_step(
                    builder, sums[n * size : (n + 1) * size],
                    (a, step * a_pitch, a_pitch, row_quads), (b, step * b_pitch, b_pitch, column_quads), element,
                )  # fmt: skip
            return context.make_tuple(builder, signature.return_type, sums)

        return tiles(tiles, shared, types.int32, types.int32), codegen

    @paired(spill_twin)
    def spill(typing, tiles, shared, to, quad):
        def codegen(context, builder, signature, values):
            parts, element = cgutils.unpack_tuple(builder, values[0]), _element(shared.dtype)
            address = _element_at(context, builder, shared, *values[1:3])
            kind = ir.VectorType(element, QUAD).as_pointer(SHARED)
            for q in range(column_quads):
                with builder.if_then(builder.icmp_signed("==", values[3], I32(q))):
                    for n, m in np.ndindex(count, len(rows)):
                        first = (n * len(rows) + m) * len(columns) + q * QUAD
                        at = builder.gep(address, [I64((n * height + rows[m]) * SPILL_PITCH)])
                        _store_wide(builder, parts[first : first + QUAD], builder.bitcast(at, kind))

        return types.void(tiles, shared, types.int32, types.int32), codegen

    return begin, multiply, spill


# Of 32 columns: eight lanes that read four neighbours each of eight neighbouring rows meet in no bank.
SPILL_PITCH = 36


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


def _element_at(context, builder, kind, array, i):
    """Pointer to element i of an array in shared memory, or of a kernel's argument."""
    is_shared, element = isinstance(kind, types.Array), _element(kind.dtype)
    pointer = _data(context, builder, kind, array) if is_shared else array
    return _address(builder, pointer, i, element, element, SHARED if is_shared else GLOBAL)


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
    return _widened(builder, builder.load(_address(builder, pointer, i, element, element, GLOBAL)), dtype)


def _widened(builder, value, dtype):
    """What was read of an array of `dtype` as a number of the sums."""
    if dtype == types.float16:
        return _assemble(builder, F32, "cvt.f32.f16 $0, $1;", "=f,h", [value], False)
    if dtype == types.uint16:
        return builder.bitcast(builder.shl(builder.zext(value, I32), I32(16)), F32)
    return value


def _write(builder, pointer, i, value, dtype):
    element = _element(dtype)
    if isinstance(value, list):
        kind = ir.VectorType(element, len(value))
        _store_wide(builder, value, _address(builder, pointer, i, element, kind, GLOBAL))
        return
    if element == I16:
        name = "f16" if dtype == types.float16 else "bf16"
        value = _assemble(builder, I16, f"cvt.rn.{name}.f32 $0, $1;", "=h,f", [value], False)
    builder.store(value, _address(builder, pointer, i, element, element, GLOBAL))


def _store_wide(builder, values, address):
    """Store numbers that fill 16 bytes."""
    vector = ir.Constant(address.type.pointee, ir.Undefined)
    for n, value in enumerate(values):
        vector = builder.insert_element(vector, value, I32(n))
    builder.store(vector, address, align=WIDE)


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
