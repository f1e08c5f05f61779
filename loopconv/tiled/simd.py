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


# Winograd's F(2x2, 3x3): a tile of 2x2 results from 4x4 inputs d and a kernel g of 3x3 taps is
# output((weight(g)) * (input(d))), the product taken element by element. Rows that begin with a negative
# factor would cost an operation more, so none does.
MATRICES = {
    "input": ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1)),
    "weight": ((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1)),
    "output": ((1, 1, 1, 0), (0, 1, -1, -1)),
}


class Tile(types.Type):
    """The Numba type of rows x cols vectors of `lanes` elements of `dtype`."""

    def __init__(self, dtype, lanes, rows, cols):
        self.dtype, self.lanes, self.rows, self.cols = dtype, lanes, rows, cols
        super().__init__(name=f"Tile({dtype}, {lanes}, {rows}, {cols})")

    @property
    def vector(self):
        return ir.VectorType(_ELEMENT[self.dtype], self.lanes)


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
        rows = _address(context, builder, a, a_, i_)
        vectors = [
            _load(builder, builder.gep(_address(context, builder, b, b_, j_), [_INT64(n * tile.lanes)]), tile.vector)
            for n in range(tile.cols)
        ]
        for m in range(tile.rows):
            scalar = _load(builder, builder.gep(rows, [builder.mul(step_, _INT64(m))]), tile.vector.element)
            row = _splat(builder, scalar, tile.vector)
            for n in range(tile.cols):
                at = m * tile.cols + n
                acc = builder.insert_value(acc, _fma(builder, row, vectors[n], builder.extract_value(acc, at)), at)
        return acc

    return tile(tile, a, types.int64, types.int64, b, types.int64), codegen


@intrinsic
def tile_add(typing, tile, array, i):
    """tile + array[i], the same number everywhere."""

    def codegen(context, builder, signature, arguments):
        acc = arguments[0]
        add = _splat(
            builder, _load(builder, _address(context, builder, array, *arguments[1:]), tile.vector.element), tile.vector
        )
        for at in range(tile.rows * tile.cols):
            acc = builder.insert_value(acc, builder.fadd(builder.extract_value(acc, at), add), at)
        return acc

    return tile(tile, array, types.int64), codegen


@intrinsic
def tile_dot(typing, tile, a, i, step, b, j, offsets, t, count):
    """tile[m, n, :] + a[i + m*step :] * b[j + offsets[t + n] :], the first `count` of `lanes` elements of each.

    Adding up the lanes at the end gives the dot products of rows of `a` with shifted runs of `b`. What lies
    past `count` is not read.
    """

    def codegen(context, builder, signature, arguments):
        acc, a_, i_, step_, b_, j_, offsets_, t_, count_ = arguments
        mask = _first(builder, count_, tile.lanes)
        begin = _address(context, builder, b, b_, j_)
        shifts = _address(context, builder, offsets, offsets_, t_)
        columns = []
        for n in range(tile.cols):
            shift = builder.load(builder.gep(shifts, [_INT64(n)]))
            columns.append(_masked_load(builder, builder.gep(begin, [shift]), tile.vector, mask))
        rows = _address(context, builder, a, a_, i_)
        for m in range(tile.rows):
            row = _masked_load(builder, builder.gep(rows, [builder.mul(step_, _INT64(m))]), tile.vector, mask)
            for n in range(tile.cols):
                at = m * tile.cols + n
                acc = builder.insert_value(acc, _fma(builder, row, columns[n], builder.extract_value(acc, at)), at)
        return acc

    i64 = types.int64
    return tile(tile, a, i64, i64, b, i64, offsets, i64, i64), codegen


@intrinsic(prefer_literal=True)
def tile_load(typing, array, i, row_step, col_step, lanes, rows, cols):
    """A tile of array[i + m*row_step + n*col_step :][:lanes]."""
    tile = Tile(array.dtype, lanes.literal_value, rows.literal_value, cols.literal_value)

    def codegen(context, builder, signature, arguments):
        array_, i_, row_step_, col_step_ = arguments[:4]
        begin = _address(context, builder, array, array_, i_)
        acc = ir.Constant(context.get_value_type(tile), ir.Undefined)
        for m, n in product(range(tile.rows), range(tile.cols)):
            shift = builder.add(builder.mul(row_step_, _INT64(m)), builder.mul(col_step_, _INT64(n)))
            vector = _load(builder, builder.gep(begin, [shift]), tile.vector)
            acc = builder.insert_value(acc, vector, m * tile.cols + n)
        return acc

    i64 = types.int64
    return tile(array, i64, i64, i64, lanes, rows, cols), codegen


@intrinsic(prefer_literal=True)
def tile_load_columns(typing, array, i, row_step, here, count, lanes, rows):
    """The tile of array[i + m*row_step :][:lanes] for m < rows, transposed: lane m of its row l is column l.

    Rows from `here` on and columns from `count` on are zeros and are not read. The transposed tile has as
    many lanes as the next power of two after `rows`.
    """
    dtype, n = array.dtype, lanes.literal_value
    wide = 1 << (rows.literal_value - 1).bit_length()
    result = Tile(dtype, wide, n, 1)
    row = ir.VectorType(_ELEMENT[dtype], n)

    def codegen(context, builder, signature, arguments):
        begin = _address(context, builder, array, *arguments[:2])
        vectors = []
        for m in range(rows.literal_value):
            inside = builder.select(builder.icmp_signed("<", _INT64(m), arguments[3]), arguments[4], _INT64(0))
            place = builder.gep(begin, [builder.mul(arguments[2], _INT64(m))])
            vectors.append(_masked_load(builder, place, row, _first(builder, inside, n)))
        vectors += [ir.Constant(row, None)] * (wide - len(vectors))
        acc = ir.Constant(context.get_value_type(result), ir.Undefined)
        for column, vector in enumerate(_transpose(builder, vectors)):
            acc = builder.insert_value(acc, vector, column)
        return acc

    i64 = types.int64
    return result(array, i64, i64, i64, i64, lanes, rows), codegen


@intrinsic(prefer_literal=True)
def tile_load_pairs(typing, array, i, row_step, lanes, rows, cols):
    """A tile of array[i + m*row_step + n :: 2][:lanes]: columns are two apart in memory; `cols` is even."""
    tile = Tile(array.dtype, lanes.literal_value, rows.literal_value, cols.literal_value)

    def codegen(context, builder, signature, arguments):
        begin = _address(context, builder, array, *arguments[:2])
        acc = ir.Constant(context.get_value_type(tile), ir.Undefined)
        for m, n in product(range(tile.rows), range(0, tile.cols, 2)):
            row = builder.gep(begin, [builder.add(builder.mul(arguments[2], _INT64(m)), _INT64(n))])
            near = _load(builder, row, tile.vector)
            far = _load(builder, builder.gep(row, [_INT64(tile.lanes)]), tile.vector)
            for odd in range(2):
                lanes_ = ir.Constant(ir.VectorType(_INT32, tile.lanes), list(range(odd, 2 * tile.lanes, 2)))
                acc = builder.insert_value(acc, builder.shuffle_vector(near, far, lanes_), m * tile.cols + n + odd)
        return acc

    i64 = types.int64
    return tile(array, i64, i64, lanes, rows, cols), codegen


@intrinsic
def tile_store(typing, tile, array, i, row_step, col_step):
    """array[i + m*row_step + n*col_step :][:lanes] = tile[m, n, :]."""

    def codegen(context, builder, signature, arguments):
        acc, array_, i_, row_step_, col_step_ = arguments
        begin = _address(context, builder, array, array_, i_)
        for m, n in product(range(tile.rows), range(tile.cols)):
            shift = builder.add(builder.mul(row_step_, _INT64(m)), builder.mul(col_step_, _INT64(n)))
            place = builder.bitcast(builder.gep(begin, [shift]), tile.vector.as_pointer())
            builder.store(builder.extract_value(acc, m * tile.cols + n), place).align = array.dtype.bitwidth // 8
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(tile, array, i64, i64, i64), codegen


@intrinsic
def tile_store_pairs(typing, tile, array, i, row_step, rows, count):
    """array[i + m*row_step + n + 2*lane] = tile[m, n, lane] for the first `rows` rows; `count` elements of each.

    Tiles of two columns: their lanes alternate in memory. Returns 0 times the numbers stored, added up:
    not 0 if one was not finite.
    """

    def codegen(context, builder, signature, arguments):
        acc, array_, i_, row_step_, rows_, count_ = arguments
        begin = _address(context, builder, array, array_, i_)
        zero = ir.Constant(tile.vector, [0.0] * tile.lanes)
        total = zero
        for m in range(tile.rows):
            inside = builder.icmp_signed(">", rows_, _INT64(m))
            pair = [builder.extract_value(acc, 2 * m + n) for n in range(2)]
            for part in range(2):
                first = part * tile.lanes // 2
                order = [first + lane // 2 + lane % 2 * tile.lanes for lane in range(tile.lanes)]
                vector = builder.shuffle_vector(*pair, ir.Constant(ir.VectorType(_INT32, tile.lanes), order))
                left = builder.sub(builder.select(inside, count_, _INT64(0)), _INT64(part * tile.lanes))
                mask = _first(builder, left, tile.lanes)
                place = builder.gep(begin, [builder.add(builder.mul(row_step_, _INT64(m)), _INT64(part * tile.lanes))])
                _masked_store(builder, vector, place, mask)
                total = builder.fadd(total, builder.select(mask, builder.fmul(vector, zero), zero))
        return _sum(builder, total)

    i64 = types.int64
    return tile.dtype(tile, array, i64, i64, i64, i64), codegen


@intrinsic(prefer_literal=True)
def tile_transform(typing, tile, name):
    """M @ tile @ M.T for the matrix of MATRICES that `name` names, lane by lane."""
    matrix = MATRICES[name.literal_value]
    result = Tile(tile.dtype, tile.lanes, len(matrix), len(matrix))

    def combine(builder, row, vectors):
        total = None
        for factor, vector in zip(row, vectors):
            if not factor:
                continue
            scale = ir.Constant(vector.type, [abs(factor)] * tile.lanes)
            term = vector if abs(factor) == 1 else builder.fmul(vector, scale)
            if total is None:
                total = term if factor > 0 else builder.fneg(term)
            else:
                total = builder.fadd(total, term) if factor > 0 else builder.fsub(total, term)
        return total

    def codegen(context, builder, signature, arguments):
        given = [
            [builder.extract_value(arguments[0], m * tile.cols + n) for n in range(tile.cols)] for m in range(tile.rows)
        ]
        half = [[combine(builder, row, column) for column in zip(*given)] for row in matrix]
        acc = ir.Constant(context.get_value_type(result), ir.Undefined)
        for m, n in product(range(result.rows), range(result.cols)):
            acc = builder.insert_value(acc, combine(builder, matrix[n], half[m]), m * result.cols + n)
        return acc

    return result(tile, name), codegen


@intrinsic
def pointer(typing, array, index):
    """Pointer to array[index], for loops that index it without Numba's test for negative numbers."""
    kind = types.CPointer(array.dtype)

    def codegen(context, builder, signature, arguments):
        return _address(context, builder, array, *arguments)

    return kind(array, types.int64), codegen


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


def _address(context, builder, array_type, array, index):
    """Pointer to array[index]; nothing is checked."""
    return builder.gep(context.make_array(array_type)(context, builder, array).data, [index])


def _load(builder, pointer, kind):
    """Load a vector or a number from any address; without `align` LLVM assumes that of the whole vector."""
    value = builder.load(builder.bitcast(pointer, kind.as_pointer()))
    element = kind.element if isinstance(kind, ir.VectorType) else kind
    value.align = 4 if isinstance(element, ir.FloatType) else 8
    return value


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


def _transpose(builder, rows):
    """The columns of a power of two of rows, by perfect shuffles: each halves the distance between neighbours."""
    n, lanes = len(rows), rows[0].type.count
    order = ir.VectorType(_INT32, lanes)
    zips = [[half * lanes // 2 + lane // 2 + lane % 2 * lanes for lane in range(lanes)] for half in range(2)]
    for _ in range(n.bit_length() - 1):
        pairs = [(rows[j], rows[j + n // 2]) for j in range(n // 2)]
        rows = [builder.shuffle_vector(*pair, ir.Constant(order, half)) for pair in pairs for half in zips]
    # the columns now follow each other; cut where they end
    columns = []
    for column in range(lanes):
        first, parts = column * n, []
        for at in range(first, first + n, min(n, lanes)):
            vector = rows[at // lanes]
            take = list(range(at % lanes, at % lanes + min(n, lanes)))
            parts.append(builder.shuffle_vector(vector, vector, ir.Constant(ir.VectorType(_INT32, len(take)), take)))
        while len(parts) > 1:
            both = ir.Constant(ir.VectorType(_INT32, 2 * parts[0].type.count), list(range(2 * parts[0].type.count)))
            parts = [builder.shuffle_vector(a, b, both) for a, b in zip(parts[::2], parts[1::2])]
        columns.append(parts[0])
    return columns


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
    """All lanes, added one after the other."""
    total = builder.extract_element(vector, _INT32(0))
    for lane in range(1, vector.type.count):
        total = builder.fadd(total, builder.extract_element(vector, _INT32(lane)))
    return total
