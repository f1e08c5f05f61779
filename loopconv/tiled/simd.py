"""A register tile as an ordinary value inside a Numba kernel.

A tile is `rows` x `cols` SIMD vectors of `lanes` numbers. Numba passes it around like a number; LLVM
keeps it in registers, because its data model is an array of vectors that is only ever indexed by
constants. All operations work on flat, contiguous arrays and unchecked positions: the caller sees to
it that they stay inside (README.md has the contract).
"""

from itertools import product

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.datamodel import models
from numba.extending import intrinsic, register_model

_INT32, _INT64 = ir.IntType(32), ir.IntType(64)
_ELEMENT = {types.float32: ir.FloatType(), types.float64: ir.DoubleType()}

# Taps that a tile takes at once: their factors are in registers beside the tile.
MOST_TAPS = 5

# Winograd's F(m x m, R x S): a tile of m x m results from (m+R-1) x (m+S-1) inputs d and a kernel g of R x S taps is
# output(weight(g) * input(d)), the product taken element by element. By (m, taps on one axis, what is transformed).
# Points 0, 1, -1 and infinity for m = 2 and 3 taps, 1/2 and -2 besides for m = 4, and without -1 for 2 taps. Rows that
# begin with a negative factor would cost an operation more, so few do.
MATRICES = {
    (2, 2, "input"): ((1, -1, 0), (0, 1, 0), (0, 1, -1)),
    (2, 2, "weight"): ((1, 0), (1, 1), (0, 1)),
    (2, 2, "output"): ((1, 1, 0), (0, 1, -1)),
    (2, 3, "input"): ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1)),
    (2, 3, "weight"): ((1, 0, 0), (1 / 2, 1 / 2, 1 / 2), (1 / 2, -1 / 2, 1 / 2), (0, 0, 1)),
    (2, 3, "output"): ((1, 1, 1, 0), (0, 1, -1, -1)),
    (4, 3, "input"): (
        (1, -3 / 2, -2, 3 / 2, 1, 0),
        (0, -1, 1 / 2, 5 / 2, 1, 0),
        (0, 1, -5 / 2, 1 / 2, 1, 0),
        (0, -2, -1, 2, 1, 0),
        (0, 1 / 2, -1, -1 / 2, 1, 0),
        (0, 1, -3 / 2, -2, 3 / 2, 1),
    ),
    (4, 3, "weight"): (
        (1, 0, 0),
        (1 / 3, 1 / 3, 1 / 3),
        (-1 / 3, 1 / 3, -1 / 3),
        (-16 / 15, -8 / 15, -4 / 15),
        (1 / 15, -2 / 15, 4 / 15),
        (0, 0, 1),
    ),
    (4, 3, "output"): ((1, 1, 1, 1, 1, 0), (0, 1, -1, 1 / 2, -2, 0), (0, 1, 1, 1 / 4, 4, 0), (0, 1, -1, 1 / 8, -8, 1)),
}
# The gradient of the weights is weight.T(output.T(grad) * input(d)).
MATRICES |= {
    (2, taps, name): tuple(zip(*MATRICES[2, taps, of]))
    for taps in (2, 3)
    for name, of in (("grad", "output"), ("weight_grad", "weight"))
}
# Along an axis of one tap nothing is transformed.
MATRICES |= {(m, 1, name): ((1,),) for m, _, name in [*MATRICES]}


def sides(m, R, S):
    """Rows and columns of the results of a tile of F(m x m, R x S), and then of its inputs."""
    return tuple(len(MATRICES[m, taps, name]) for name in ("output", "input") for taps in (R, S))


class Tile(types.Type):
    """The Numba type of rows x cols vectors of `lanes` elements of `dtype`."""

    def __init__(self, dtype, lanes, rows, cols):
        self.dtype, self.lanes, self.rows, self.cols = dtype, lanes, rows, cols
        super().__init__(name=f"Tile({dtype}, {lanes}, {rows}, {cols})")

    @property
    def dtype_ir(self):
        return _ELEMENT[self.dtype]

    @property
    def vector(self):
        return ir.VectorType(self.dtype_ir, self.lanes)


@register_model(Tile)
class _TileModel(models.PrimitiveModel):
    def __init__(self, manager, tile):
        super().__init__(manager, tile, ir.ArrayType(tile.vector, tile.rows * tile.cols))


@intrinsic(prefer_literal=True)
def tile_zeros(typing, like, lanes, rows, cols):
    """A tile of zeros of the dtype of the array `like`; the other three are literal ints."""
    tile = Tile(like.dtype, lanes.literal_value, rows.literal_value, cols.literal_value)

    def codegen(context, builder, signature, arguments):
        return ir.Constant(context.get_value_type(tile), None)

    return tile(like, lanes, rows, cols), codegen


@intrinsic(prefer_literal=True)
def tile_outer(typing, tile, a, i, step, b, j):
    """tile[m, n, :] + a[i + m*step] * b[j + n*lanes :][:lanes]: rows broadcast, columns are vectors."""

    def codegen(context, builder, signature, arguments):
        acc, a_, i_, step_, b_, j_ = arguments
        rows = address(context, builder, a, a_, i_)
        places = [builder.gep(rows, [builder.mul(step_, _INT64(m))]) for m in range(tile.rows)]
        return _outer(builder, tile, acc, places, address(context, builder, b, b_, j_), _INT64(tile.lanes))

    return tile(tile, a, types.int64, types.int64, b, types.int64), codegen


@intrinsic
def tile_outer_at(typing, tile, a, i, offsets, t, b, j, col_step):
    """tile[m, n, :] + a[i + offsets[t + m]] * b[j + n*col_step :][:lanes]."""

    def codegen(context, builder, signature, arguments):
        acc, a_, i_, offsets_, t_, b_, j_, col_step_ = arguments
        begin = address(context, builder, a, a_, i_)
        shifts = address(context, builder, offsets, offsets_, t_)
        places = [builder.gep(begin, [builder.load(builder.gep(shifts, [_INT64(m)]))]) for m in range(tile.rows)]
        return _outer(builder, tile, acc, places, address(context, builder, b, b_, j_), col_step_)

    i64 = types.int64
    return tile(tile, a, i64, offsets, i64, b, i64, i64), codegen


@intrinsic
def tile_axpy(typing, tile, a, i, b, j, row_step, col_step):
    """tile[m, n, :] + a[i] * b[j + m*row_step + n*col_step :][:lanes]: one number times a tile from memory."""

    def codegen(context, builder, signature, arguments):
        acc, a_, i_, b_, j_, row_step_, col_step_ = arguments
        scalar = _splat(builder, _load(builder, address(context, builder, a, a_, i_), tile.dtype_ir), tile.vector)
        begin = address(context, builder, b, b_, j_)
        for m, n in product(range(tile.rows), range(tile.cols)):
            shift = builder.add(builder.mul(row_step_, _INT64(m)), builder.mul(col_step_, _INT64(n)))
            vector = _load(builder, builder.gep(begin, [shift]), tile.vector)
            at = m * tile.cols + n
            acc = builder.insert_value(acc, _fma(builder, scalar, vector, builder.extract_value(acc, at)), at)
        return acc

    i64 = types.int64
    return tile(tile, a, i64, b, i64, i64, i64), codegen


@intrinsic
def tile_slide(typing, tile, a, i, step, taps, b, j, row_step, col_step):
    """tile[m, n, :] + sum over t < taps of a[i + t*step] * b[j + (m + t)*row_step + n*col_step :][:lanes].

    A tile of rows of pixels under a column of 1 to MOST_TAPS taps: each row of `b` is read once for all of them.
    """

    def codegen(context, builder, signature, arguments):
        acc, a_, i_, step_, taps_, b_, j_, row_step_, col_step_ = arguments
        first, begin = address(context, builder, a, a_, i_), address(context, builder, b, b_, j_)
        after = builder.append_basic_block("slid")
        known = {number: builder.append_basic_block(f"taps{number}") for number in range(1, MOST_TAPS + 1)}
        switch = builder.switch(taps_, known[MOST_TAPS])
        ends = []
        for number, block in known.items():
            if number < MOST_TAPS:
                switch.add_case(_INT64(number), block)
            builder.position_at_end(block)
            places = [builder.gep(first, [builder.mul(step_, _INT64(t))]) for t in range(number)]
            factors = [_splat(builder, _load(builder, place, tile.dtype_ir), tile.vector) for place in places]
            sums = [builder.extract_value(acc, at) for at in range(tile.rows * tile.cols)]
            for row, n in product(range(tile.rows + number - 1), range(tile.cols)):
                shift = builder.add(builder.mul(row_step_, _INT64(row)), builder.mul(col_step_, _INT64(n)))
                vector = _load(builder, builder.gep(begin, [shift]), tile.vector)
                for t in range(max(0, row - tile.rows + 1), min(row + 1, number)):
                    at = (row - t) * tile.cols + n
                    sums[at] = _fma(builder, factors[t], vector, sums[at])
            builder.branch(after)
            ends.append((sums, builder.block))
        builder.position_at_end(after)
        totals = [builder.phi(tile.vector) for _ in range(tile.rows * tile.cols)]
        for at, total in enumerate(totals):
            for sums, block in ends:
                total.add_incoming(sums[at], block)
            acc = builder.insert_value(acc, total, at)
        return acc

    i64 = types.int64
    return tile(tile, a, i64, i64, i64, b, i64, i64, i64), codegen


@intrinsic
def tile_beside(typing, left, right):
    """The columns of one tile, and after them those of another of the same size."""
    tile = Tile(left.dtype, left.lanes, left.rows, 2 * left.cols)

    def codegen(context, builder, signature, arguments):
        acc = ir.Constant(context.get_value_type(tile), ir.Undefined)
        for m, n in product(range(tile.rows), range(tile.cols)):
            side, column = divmod(n, left.cols)
            vector = builder.extract_value(arguments[side], m * left.cols + column)
            acc = builder.insert_value(acc, vector, m * tile.cols + n)
        return acc

    return tile(left, right), codegen


@intrinsic
def tile_add(typing, tile, array, i, step):
    """tile[m, n, :] + array[i + m*step]."""

    def codegen(context, builder, signature, arguments):
        acc, array_, i_, step_ = arguments
        begin = address(context, builder, array, array_, i_)
        for m in range(tile.rows):
            scalar = _load(builder, builder.gep(begin, [builder.mul(step_, _INT64(m))]), tile.dtype_ir)
            add = _splat(builder, scalar, tile.vector)
            for n in range(tile.cols):
                at = m * tile.cols + n
                acc = builder.insert_value(acc, builder.fadd(builder.extract_value(acc, at), add), at)
        return acc

    return tile(tile, array, types.int64, types.int64), codegen


@intrinsic
def tile_dot(typing, tile, a, i, step, b, j, offsets, t, count):
    """tile[m, n, :] + a[i + m*step :] * b[j + offsets[t + n] :], the first `count` of `lanes` elements of each.

    Adding up the lanes at the end gives the dot products of rows of `a` with shifted runs of `b`. What lies
    past `count` is not read; None stands for all lanes.
    """

    def codegen(context, builder, signature, arguments):
        acc, a_, i_, step_, b_, j_, offsets_, t_, count_ = arguments
        mask = None if count == types.none else _first(builder, count_, tile.lanes)

        def load(place):
            if mask is None:
                return _load(builder, place, tile.vector)
            return _masked_load(builder, place, tile.vector, mask)

        begin = address(context, builder, b, b_, j_)
        shifts = address(context, builder, offsets, offsets_, t_)
        columns = [load(builder.gep(begin, [builder.load(builder.gep(shifts, [_INT64(n)]))])) for n in range(tile.cols)]
        rows = address(context, builder, a, a_, i_)
        for m in range(tile.rows):
            row = load(builder.gep(rows, [builder.mul(step_, _INT64(m))]))
            for n in range(tile.cols):
                at = m * tile.cols + n
                acc = builder.insert_value(acc, _fma(builder, row, columns[n], builder.extract_value(acc, at)), at)
        return acc

    i64 = types.int64
    return tile(tile, a, i64, i64, b, i64, offsets, i64, types.none if count == types.none else i64), codegen


@intrinsic
def tile_push(typing, tile, array, i, count):
    """The tile of one column with its rows one further down, and the first `count` lanes of array[i:] above them.

    The other lanes of that row are zeros, and what lies there is not read.
    """

    def codegen(context, builder, signature, arguments):
        acc, array_, i_, count_ = arguments
        place = address(context, builder, array, array_, i_)
        rows = [_masked_load(builder, place, tile.vector, _first(builder, count_, tile.lanes))]
        rows += [builder.extract_value(acc, m) for m in range(tile.rows - 1)]
        for m, row in enumerate(rows):
            acc = builder.insert_value(acc, row, m)
        return acc

    return tile(tile, array, types.int64, types.int64), codegen


@intrinsic
def tile_meet(typing, tile, rows, b, j, offsets, t):
    """tile[m, n, :] + rows[m, 0, :] * b[j + offsets[t + n] :][:lanes]."""

    def codegen(context, builder, signature, arguments):
        acc, rows_, b_, j_, offsets_, t_ = arguments
        begin, shifts = address(context, builder, b, b_, j_), address(context, builder, offsets, offsets_, t_)
        for n in range(tile.cols):
            place = builder.gep(begin, [builder.load(builder.gep(shifts, [_INT64(n)]))])
            vector = _load(builder, place, tile.vector)
            for m in range(tile.rows):
                at = m * tile.cols + n
                add = _fma(builder, builder.extract_value(rows_, m), vector, builder.extract_value(acc, at))
                acc = builder.insert_value(acc, add, at)
        return acc

    return tile(tile, rows, b, types.int64, offsets, types.int64), codegen


@intrinsic(prefer_literal=True)
def tile_load(typing, array, i, row_step, col_step, lanes, rows, cols):
    """A tile of array[i + m*row_step + n*col_step :][:lanes]."""
    tile = Tile(array.dtype, lanes.literal_value, rows.literal_value, cols.literal_value)

    def codegen(context, builder, signature, arguments):
        array_, i_, row_step_, col_step_ = arguments[:4]
        begin = address(context, builder, array, array_, i_)
        acc = ir.Constant(context.get_value_type(tile), ir.Undefined)
        for m, n in product(range(tile.rows), range(tile.cols)):
            shift = builder.add(builder.mul(row_step_, _INT64(m)), builder.mul(col_step_, _INT64(n)))
            vector = _load(builder, builder.gep(begin, [shift]), tile.vector)
            acc = builder.insert_value(acc, vector, m * tile.cols + n)
        return acc

    i64 = types.int64
    return tile(array, i64, i64, i64, lanes, rows, cols), codegen


@intrinsic(prefer_literal=True)
def tile_load_at(typing, array, i, offsets, t, lanes, rows):
    """A tile of one column, array[i + offsets[t + m] :][:lanes]."""
    tile = Tile(array.dtype, lanes.literal_value, rows.literal_value, 1)

    def codegen(context, builder, signature, arguments):
        array_, i_, offsets_, t_ = arguments[:4]
        begin, shifts = address(context, builder, array, array_, i_), address(context, builder, offsets, offsets_, t_)
        acc = ir.Constant(context.get_value_type(tile), ir.Undefined)
        for m in range(tile.rows):
            place = builder.gep(begin, [builder.load(builder.gep(shifts, [_INT64(m)]))])
            acc = builder.insert_value(acc, _load(builder, place, tile.vector), m)
        return acc

    i64 = types.int64
    return tile(array, i64, offsets, i64, lanes, rows), codegen


@intrinsic(prefer_literal=True)
def vector_sum(typing, array, i, lanes):
    """The sum of array[i : i + lanes]."""
    vector = Tile(array.dtype, lanes.literal_value, 1, 1).vector

    def codegen(context, builder, signature, arguments):
        return _sum(builder, _load(builder, address(context, builder, array, *arguments[:2]), vector))

    return array.dtype(array, types.int64, lanes), codegen


@intrinsic(prefer_literal=True)
def tile_load_every(typing, array, i, row_step, lane_step, lanes, rows, cols):
    """A tile of array[i + m*row_step + n :: lane_step][:lanes]: lanes are `lane_step`, 1, 2 or 4, apart in memory.

    Reads past its last element, up to `lane_step` * `lanes` elements for every `lane_step` columns begun.
    """
    tile = Tile(array.dtype, lanes.literal_value, rows.literal_value, cols.literal_value)
    step = lane_step.literal_value

    def codegen(context, builder, signature, arguments):
        begin = address(context, builder, array, *arguments[:2])
        acc = ir.Constant(context.get_value_type(tile), ir.Undefined)
        for m, n in product(range(tile.rows), range(0, tile.cols, step)):
            row = builder.gep(begin, [builder.add(builder.mul(arguments[2], _INT64(m)), _INT64(n))])
            vectors = [
                _load(builder, builder.gep(row, [_INT64(part * tile.lanes)]), tile.vector) for part in range(step)
            ]
            for column, vector in enumerate(_deal(builder, vectors)[: tile.cols - n]):
                acc = builder.insert_value(acc, vector, m * tile.cols + n + column)
        return acc

    i64 = types.int64
    return tile(array, i64, i64, lane_step, lanes, rows, cols), codegen


@intrinsic(prefer_literal=True)
def tile_gather(typing, array, i, row_step, col_step, lane_step, count, lanes, rows, cols):
    """tile[m, n, l] = array[i + m*row_step + n*col_step + l*lane_step], number by number, for all l < count.

    The lanes after them are as the last of them. Where `count` is a literal, none of that is left to the kernel.
    """
    tile = Tile(array.dtype, lanes.literal_value, rows.literal_value, cols.literal_value)

    def codegen(context, builder, signature, arguments):
        array_, i_, row_step_, col_step_, lane_step_, count_ = arguments[:6]
        begin = address(context, builder, array, array_, i_)
        last = builder.sub(count_, _INT64(1))
        lanes = [_INT64(lane) for lane in range(tile.lanes)]
        lanes = [builder.select(builder.icmp_signed("<", lane, last), lane, last) for lane in lanes]
        shifts = [builder.mul(lane, lane_step_) for lane in lanes]
        acc = ir.Constant(context.get_value_type(tile), ir.Undefined)
        for m, n in product(range(tile.rows), range(tile.cols)):
            shift = builder.add(builder.mul(row_step_, _INT64(m)), builder.mul(col_step_, _INT64(n)))
            first, vector = builder.gep(begin, [shift]), ir.Constant(tile.vector, ir.Undefined)
            for lane, shift in enumerate(shifts):
                number = _load(builder, builder.gep(first, [shift]), tile.dtype_ir)
                vector = builder.insert_element(vector, number, _INT32(lane))
            acc = builder.insert_value(acc, vector, m * tile.cols + n)
        return acc

    i64 = types.int64
    return tile(array, i64, i64, i64, i64, i64, lanes, rows, cols), codegen


@intrinsic
def tile_clip(typing, tile, count, less):
    """The tile with zeros after the first count - n*less lanes of column n."""

    def codegen(context, builder, signature, arguments):
        acc, zeros = arguments[0], ir.Constant(tile.vector, None)
        for n in range(tile.cols):
            mask = _first(builder, builder.sub(arguments[1], builder.mul(arguments[2], _INT64(n))), tile.lanes)
            for at in range(n, tile.rows * tile.cols, tile.cols):
                vector = builder.select(mask, builder.extract_value(acc, at), zeros)
                acc = builder.insert_value(acc, vector, at)
        return acc

    return tile(tile, types.int64, types.int64), codegen


@intrinsic
def tile_store(typing, tile, array, i, row_step, col_step):
    """array[i + m*row_step + n*col_step :][:lanes] = tile[m, n, :]."""

    def codegen(context, builder, signature, arguments):
        acc, array_, i_, row_step_, col_step_ = arguments
        begin = address(context, builder, array, array_, i_)
        for m, n in product(range(tile.rows), range(tile.cols)):
            shift = builder.add(builder.mul(row_step_, _INT64(m)), builder.mul(col_step_, _INT64(n)))
            _store(builder, builder.extract_value(acc, m * tile.cols + n), builder.gep(begin, [shift]))
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(tile, array, i64, i64, i64), codegen


@intrinsic(prefer_literal=True)
def tile_store_every(typing, tile, array, i, row_step, step, rows, count):
    """array[i + m*row_step + (n + cols*lane) * step] = tile[m, n, lane] for the first `rows` rows; `count` of each.

    Tiles of 1 to 4 columns, whose lanes alternate in memory, `step`, 1 or 2, apart. Returns 0 times the numbers
    stored, added up: not 0 if one was not finite.
    """
    every = step.literal_value

    def codegen(context, builder, signature, arguments):
        acc, array_, i_, row_step_, _, rows_, count_ = arguments
        begin = address(context, builder, array, array_, i_)
        zero = ir.Constant(tile.vector, [0.0] * tile.lanes)
        ours = ir.Constant(ir.VectorType(ir.IntType(1), tile.lanes), [lane % every == 0 for lane in range(tile.lanes)])

        def store(masked):
            total = zero
            for m in range(tile.rows):
                columns = [builder.extract_value(acc, m * tile.cols + n) for n in range(tile.cols)]
                columns = [vector for column in columns for vector in [column, zero][:every]]
                inside = builder.select(builder.icmp_signed(">", rows_, _INT64(m)), count_, _INT64(0))
                for part, vector in enumerate(_riffle(builder, columns)):
                    at = _INT64(part * tile.lanes)
                    place = builder.gep(begin, [builder.add(builder.mul(row_step_, _INT64(m)), at)])
                    nothing = builder.fmul(vector, zero)
                    if masked:
                        mask = _first(builder, builder.sub(builder.mul(inside, _INT64(every)), at), tile.lanes)
                        _masked_store(builder, vector, place, builder.and_(mask, ours))
                        nothing = builder.select(mask, nothing, zero)
                    elif every == 1:
                        _store(builder, vector, place)
                    else:
                        _masked_store(builder, vector, place, ours)
                    total = builder.fadd(total, nothing)
            return total, builder.block

        # whole tiles without masks: AVX2's masked stores are slow on AMD's processors
        whole = builder.and_(
            builder.icmp_signed(">=", rows_, _INT64(tile.rows)),
            builder.icmp_signed(">=", count_, _INT64(tile.cols * tile.lanes)),
        )
        totals = []
        with builder.if_else(whole) as branches:
            for branch, masked in zip(branches, (False, True)):
                with branch:
                    totals.append(store(masked))
        total = builder.phi(tile.vector)
        for value, block in totals:
            total.add_incoming(value, block)
        return _sum(builder, total)

    i64 = types.int64
    return tile.dtype(tile, array, i64, i64, step, i64, i64), codegen


@intrinsic(prefer_literal=True)
def tile_transform(typing, tile, m, R, S, name):
    """A @ tile @ B.T for the matrices A, B = MATRICES[m, R, name], MATRICES[m, S, name], lane by lane.

    What the tile has less rows or columns than A and B have columns is zeros.
    """
    left, right = (MATRICES[m.literal_value, taps.literal_value, name.literal_value] for taps in (R, S))
    result = Tile(tile.dtype, tile.lanes, len(left), len(right))

    def combine(builder, row, vectors):
        total = None
        for factor, vector in zip(row, vectors):
            if not factor:
                continue
            scale = ir.Constant(vector.type, [abs(factor)] * tile.lanes)
            term = vector if abs(factor) == 1 else builder.fmul(vector, scale, flags=["contract"])
            if total is None:
                total = term if factor > 0 else builder.fneg(term)
            else:
                total = (
                    builder.fadd(total, term, flags=["contract"])
                    if factor > 0
                    else builder.fsub(total, term, flags=["contract"])
                )
        return ir.Constant(vectors[0].type, [0.0] * tile.lanes) if total is None else total

    def codegen(context, builder, signature, arguments):
        given = [
            [builder.extract_value(arguments[0], m * tile.cols + n) for n in range(tile.cols)] for m in range(tile.rows)
        ]
        half = [[combine(builder, row, column) for column in zip(*given)] for row in left]
        acc = ir.Constant(context.get_value_type(result), ir.Undefined)
        for m, n in product(range(result.rows), range(result.cols)):
            acc = builder.insert_value(acc, combine(builder, right[n], half[m]), m * result.cols + n)
        return acc

    return result(tile, m, R, S, name), codegen


@intrinsic(prefer_literal=True)
def tile_corner(typing, tile, rows, cols):
    """The first rows and columns of a tile; what else it takes to make the others is left out."""
    corner = Tile(tile.dtype, tile.lanes, rows.literal_value, cols.literal_value)

    def codegen(context, builder, signature, arguments):
        acc = ir.Constant(context.get_value_type(corner), ir.Undefined)
        for at, (m, n) in enumerate(product(range(corner.rows), range(corner.cols))):
            acc = builder.insert_value(acc, builder.extract_value(arguments[0], m * tile.cols + n), at)
        return acc

    return corner(tile, rows, cols), codegen


@intrinsic(prefer_literal=True)
def prefetch(typing, array, index, level):
    """Have array[index] brought into the cache of that level, 1 or 2; it need not be there."""

    def codegen(context, builder, signature, arguments):
        place = address(context, builder, array, *arguments[:2])
        _prefetch(builder, place, to_write=0, locality=4 - level.literal_value)
        return context.get_dummy_value()

    return types.void(array, types.int64, level), codegen


@intrinsic(prefer_literal=True)
def prefetch_tile(typing, array, i, row_step, col_step, rows, cols):
    """Have array[i + m*row_step + n*col_step] brought into the first-level cache, to be written; as `prefetch`."""

    def codegen(context, builder, signature, arguments):
        array_, i_, row_step_, col_step_ = arguments[:4]
        begin = address(context, builder, array, array_, i_)
        for m, n in product(range(rows.literal_value), range(cols.literal_value)):
            shift = builder.add(builder.mul(row_step_, _INT64(m)), builder.mul(col_step_, _INT64(n)))
            _prefetch(builder, builder.gep(begin, [shift]), to_write=1, locality=3)
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(array, i64, i64, i64, rows, cols), codegen


@intrinsic
def pointer(typing, array, index):
    """Pointer to array[index], for loops that index it without Numba's test for negative numbers."""
    kind = types.CPointer(array.dtype)

    def codegen(context, builder, signature, arguments):
        return address(context, builder, array, *arguments)

    return kind(array, types.int64), codegen


@intrinsic
def tile_transpose(typing, tile):
    """The tile of one column, whose rows are a multiple of the lanes, with rows and lanes exchanged."""
    turned = Tile(tile.dtype, tile.lanes, tile.lanes, tile.rows // tile.lanes)

    def codegen(context, builder, signature, arguments):
        rows = [builder.extract_value(arguments[0], m) for m in range(tile.rows)]
        acc = ir.Constant(context.get_value_type(turned), ir.Undefined)
        for at, vector in enumerate(_riffle(builder, rows)):
            acc = builder.insert_value(acc, vector, at)
        return acc

    return turned(tile), codegen


@intrinsic
def tile_spill(typing, tile):
    """The tile's numbers in memory, as a pointer to row-major rows x (cols * lanes), valid until the next spill."""
    kind = types.CPointer(tile.dtype)

    def codegen(context, builder, signature, arguments):
        room = cgutils.alloca_once(builder, arguments[0].type)
        room.align = 64
        for at in range(tile.rows * tile.cols):
            place = builder.gep(room, [_INT32(0), _INT32(at)])
            builder.store(builder.extract_value(arguments[0], at), place)
        return builder.bitcast(room, context.get_value_type(kind))

    return kind(tile), codegen


def address(context, builder, array_type, array, index):
    """Pointer to array[index], of an array or a pointer; nothing is checked."""
    if isinstance(array_type, types.CPointer):
        return builder.gep(array, [index])
    return builder.gep(context.make_array(array_type)(context, builder, array).data, [index])


def _outer(builder, tile, acc, places, begin, step):
    """The tile, and to it the numbers at `places` times the vectors from `begin` on, `step` apart."""
    begins = [builder.gep(begin, [builder.mul(step, _INT64(n))]) for n in range(tile.cols)]
    vectors = [_load(builder, place, tile.vector) for place in begins]
    for m, place in enumerate(places):
        row = _splat(builder, _load(builder, place, tile.dtype_ir), tile.vector)
        for n in range(tile.cols):
            at = m * tile.cols + n
            acc = builder.insert_value(acc, _fma(builder, row, vectors[n], builder.extract_value(acc, at)), at)
    return acc


def _prefetch(builder, pointer, to_write, locality):
    place = builder.bitcast(pointer, ir.IntType(8).as_pointer())
    kind = ir.FunctionType(ir.VoidType(), [place.type, _INT32, _INT32, _INT32])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
    builder.call(function, [place, _INT32(to_write), _INT32(locality), _INT32(1)])


def _load(builder, pointer, kind):
    """Load a vector or a number from any address; without `align` LLVM assumes that of the whole vector."""
    value = builder.load(builder.bitcast(pointer, kind.as_pointer()))
    element = kind.element if isinstance(kind, ir.VectorType) else kind
    value.align = 4 if isinstance(element, ir.FloatType) else 8
    return value


def _store(builder, vector, pointer):
    """A vector to any address."""
    size = 4 if isinstance(vector.type.element, ir.FloatType) else 8
    builder.store(vector, builder.bitcast(pointer, vector.type.as_pointer())).align = size


def _splat(builder, scalar, vector):
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, _INT32(0))
    return builder.shuffle_vector(first, first, ir.Constant(ir.VectorType(_INT32, vector.count), [0] * vector.count))


def _fma(builder, a, b, c):
    """a * b + c in one rounding; llvmlite's own helper does not take vectors."""
    suffix = "f32" if isinstance(a.type.element, ir.FloatType) else "f64"
    kind = ir.FunctionType(a.type, [a.type] * 3)
    return builder.call(
        cgutils.get_or_insert_function(builder.module, kind, f"llvm.fma.v{a.type.count}{suffix}"), [a, b, c]
    )


def _deal(builder, vectors):
    """n vectors that follow each other, n a power of two, as n others: every n-th element from the m-th on, m < n."""
    if len(vectors) == 1:
        return vectors
    evens, odds = (
        _deal(builder, [_shuffle(builder, *pair, range(odd, 2 * vectors[0].type.count, 2)) for pair in _pairs(vectors)])
        for odd in range(2)
    )
    return [vector for pair in zip(evens, odds) for vector in pair]


def _riffle(builder, columns):
    """What `_deal` undoes, also for three columns."""
    if len(columns) == 1:
        return columns
    lanes = columns[0].type.count
    if len(columns) == 3:
        # the lanes of the first two with room for those of the third, and then these
        a, b, c = columns
        places = [[divmod(part * lanes + lane, 3) for lane in range(lanes)] for part in range(3)]
        both = [_shuffle(builder, a, b, [at + lanes * (n == 1) for at, n in part]) for part in places]
        thirds = [[lanes + at if n == 2 else lane for lane, (at, n) in enumerate(part)] for part in places]
        return [_shuffle(builder, vector, c, order) for vector, order in zip(both, thirds)]
    halves = [[first + lane // 2 + lane % 2 * lanes for lane in range(lanes)] for first in (0, lanes // 2)]
    evens, odds = (_riffle(builder, columns[odd::2]) for odd in range(2))
    return [_shuffle(builder, *pair, half) for pair in zip(evens, odds) for half in halves]


def _pairs(vectors):
    return zip(vectors[::2], vectors[1::2])


def _shuffle(builder, a, b, order):
    """The elements `order` of a and b, one after the other."""
    order = list(order)
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(_INT32, len(order)), order))


def _first(builder, count, lanes):
    """A mask of the first `count` lanes."""
    numbers, most = ir.VectorType(_INT32, lanes), _INT64(lanes)
    count = builder.select(builder.icmp_signed("<", count, most), count, most)
    limit = _splat(builder, builder.trunc(count, _INT32), numbers)
    return builder.icmp_signed("<", ir.Constant(numbers, list(range(lanes))), limit)


def _masked_load(builder, pointer, vector, mask):
    """The masked lanes from memory and zeros in the others."""
    element, size = ("f32", 4) if isinstance(vector.element, ir.FloatType) else ("f64", 8)
    place = vector.as_pointer()
    kind = ir.FunctionType(vector, [place, _INT32, mask.type, vector])
    load = cgutils.get_or_insert_function(
        builder.module, kind, f"llvm.masked.load.v{vector.count}{element}.p0v{vector.count}{element}"
    )
    return builder.call(load, [builder.bitcast(pointer, place), _INT32(size), mask, ir.Constant(vector, None)])


def _masked_store(builder, vector, pointer, mask):
    """The masked lanes to memory."""
    element, size = ("f32", 4) if isinstance(vector.type.element, ir.FloatType) else ("f64", 8)
    place = vector.type.as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [vector.type, place, _INT32, mask.type])
    store = cgutils.get_or_insert_function(
        builder.module, kind, f"llvm.masked.store.v{vector.type.count}{element}.p0v{vector.type.count}{element}"
    )
    builder.call(store, [vector, builder.bitcast(pointer, place), _INT32(size), mask])


def _sum(builder, vector):
    """All lanes: one half added to the other, until one number is left."""
    for lanes in (8, 4, 2, 1):
        if lanes < vector.type.count:
            halves = (_shuffle(builder, vector, vector, range(first, first + lanes)) for first in (0, lanes))
            vector = builder.fadd(*halves)
    return builder.extract_element(vector, _INT32(0))
