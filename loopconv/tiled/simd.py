"""A register tile as an ordinary value inside a Numba kernel.

A tile is `rows` x `cols` SIMD vectors of `lanes` numbers. Numba passes it around like a number; LLVM
keeps it in registers, because its data model is an array of vectors that is only ever indexed by
constants. All operations work on flat, contiguous arrays and unchecked positions: the caller sees to
it that they stay inside (README.md has the contract).
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.datamodel import models
from numba.extending import intrinsic, register_model

_INT32, _INT64 = ir.IntType(32), ir.IntType(64)
_ELEMENT = {types.float32: ir.FloatType(), types.float64: ir.DoubleType()}


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


def _first(builder, count, lanes):
    """A mask of the first `count` lanes."""
    numbers = ir.VectorType(_INT32, lanes)
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
