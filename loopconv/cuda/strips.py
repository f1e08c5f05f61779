"""What kernels of few channels do that Python cannot say: tiles of pixels in registers, and what they read.

As in `intrinsics`, a tile is a value, and each intrinsic has a twin in plain Python for the simulator.

What a tile reads on one axis is a tuple of its pixels, each a tuple of (offset, tap): the tap finds its pixel of the
source so many pixels after the tile's first. Rows and columns have one each. Each pixel of the source is loaded once
for the tile, guarded by a bit for its column in the masks of its row.
"""

from itertools import product

import numpy as np
from numba.cuda import types

from loopconv.cuda import emit
from loopconv.cuda.elements import load, store
from loopconv.cuda.emit import GLOBAL, I32, I64, WIDE
from loopconv.cuda.intrinsics import SIMULATED, paired

if not SIMULATED:
    from llvmlite import ir
    from numba.core import cgutils


def placed():
    """The types of where a tile is in its source: at, pitch, place, sizes, ok, as in `make_strip`."""
    pair = types.UniTuple(types.int32, 2)
    return types.int64, types.int32, pair, pair, types.boolean


def meets(axis):
    """{offset: [(pixel, tap), ...]}, in the order of the offsets."""
    found = {}
    for pixel, taps in enumerate(axis):
        for offset, tap in taps:
            found.setdefault(offset, []).append((pixel, tap))
    return dict(sorted(found.items()))


def taps_of(axis):
    """The taps that some pixel meets."""
    return sorted({tap for taps in axis for _, tap in taps})


def make_strip(dtype, rows, columns, kernel, channels):
    """(begin, add_taps) of a tile of so many channels of the result, for a kernel of so many taps on three axes.

    begin(bias, first, given)
        The tile, whose channels are bias[first], ..., or zeros where not `given`.
    add_taps(tile, source, at, pitch, place, sizes, ok, w, at_w, w_step)
        tile += taps * source. The tile's first source pixel is source[at], at (row, column) `place` of a plane of
        `sizes`, whose rows are `pitch` apart; outside of it, and where not `ok`, are zeros. The taps of the first
        channel begin at w[at_w], those of the others `w_step` further each.
    """
    height, width = len(rows), len(columns)
    of_rows, of_columns, across = meets(rows), meets(columns), kernel[2]
    spots = list(product(range(channels), taps_of(rows), taps_of(columns)))

    def begin_twin(bias, first, given):
        return tuple(load(bias, first + m) if given else 0 for m in range(channels) for _ in range(height * width))

    def add_twin(tile, source, at, pitch, place, sizes, ok, w, at_w, w_step):
        tile = list(tile)
        for row, column in product(of_rows, of_columns):
            value = pixel_of(source, at, pitch, place, sizes, ok, row, column)
            for m, (a, r), (b, s) in product(range(channels), of_rows[row], of_columns[column]):
                tile[(m * height + a) * width + b] += load(w, at_w + m * w_step + r * across + s) * value
        return tuple(tile)

    @paired(begin_twin)
    def begin(typing, bias, first, given):
        def codegen(context, builder, signature, values):
            bias_at, first, given = values
            parts, zero = [], ir.Constant(context.get_value_type(tile.dtype), 0)
            for m in range(channels):
                at = builder.select(given, builder.add(first, I64(m)), I64(0))
                value = builder.select(given, emit.read(builder, bias_at, at, bias.dtype), zero)
                parts += [value] * (height * width)
            return context.make_tuple(builder, tile, parts)

        tile = types.UniTuple(getattr(types, dtype), channels * height * width)
        return tile(bias, types.int64, types.boolean), codegen

    @paired(add_twin)
    def add_taps(typing, tile, source, at, pitch, place, sizes, ok, w, at_w, w_step):
        def codegen(context, builder, signature, values):
            parts, (w, at_w, w_step) = cgutils.unpack_tuple(builder, values[0]), values[-3:]
            starts = [builder.add(at_w, builder.mul(w_step, I64(m))) for m in range(channels)]
            taps = {
                (m, r, s): emit.read(builder, w, builder.add(starts[m], I64(r * across + s)), w_type)
                for m, r, s in spots
            }
            for row, value in _rows_of(builder, source, values[1:-3], of_rows, of_columns):
                for m, (a, r), column in product(range(channels), of_rows[row], of_columns):
                    for b, s in of_columns[column]:
                        n = (m * height + a) * width + b
                        parts[n] = builder.fma(taps[m, r, s], value[column], parts[n])
            return context.make_tuple(builder, signature.return_type, parts)

        w_type = w.dtype
        return tile(tile, source, *placed(), w, types.int64, types.int64), codegen

    return begin, add_taps


def pixel_of(source, at, pitch, place, sizes, ok, row, column):
    """In the simulator, the pixel of a source so many rows and columns after the one at `place`."""
    is_inside = all(0 <= first + n < size for first, n, size in zip(place, (row, column), sizes, strict=True))
    return load(source, at + row * pitch + column) if ok and is_inside else 0


def make_finish(height, width, channels, wide):
    """finish(tile, out, to, step, pitch, rows, columns): write a tile from out[to] on, as far as it is there.

    Channels are `step` apart, rows `pitch`; there are so many rows and columns. With `wide`, all columns of a tile are
    there, and side by side up to 16 bytes of them are aligned.
    """

    def finish_twin(tile, out, to, step, pitch, rows, columns):
        for m, a, b in np.ndindex(channels, min(height, rows), min(width, columns)):
            store(out, to + m * step + a * pitch + b, tile[(m * height + a) * width + b])

    @paired(finish_twin)
    def finish(typing, tile, out, to, step, pitch, rows, columns):
        run = min(width, WIDE * 8 // out.dtype.bitwidth) if wide else 1

        def codegen(context, builder, signature, values):
            parts, (pointer, to, step, pitch, rows, columns) = cgutils.unpack_tuple(builder, values[0]), values[1:]
            for m in range(channels):
                first = builder.add(to, builder.mul(step, I64(m)))
                for a, at in enumerate(_starts(builder, first, pitch, range(height))):
                    with builder.if_then(builder.icmp_signed("<", I32(a), rows)):
                        for b in range(0, width, run):
                            some = parts[(m * height + a) * width + b :][:run]
                            with builder.if_then(builder.icmp_signed("<", I32(b), columns)):
                                spot = builder.add(at, I64(b))
                                emit.write(builder, pointer, spot, some if run > 1 else some[0], out.dtype)

        return types.void(tile, out, types.int64, types.int64, types.int32, types.int32, types.int32), codegen

    return finish


def _rows_of(builder, source, given, of_rows, of_columns):
    """(offset, {offset of the column: pixel}) of each row that a tile reads."""
    pointer, at, pitch, place, sizes, ok = given
    element = emit.element_of(source.dtype)
    (row, column), (height, width) = (cgutils.unpack_tuple(builder, pair) for pair in (place, sizes))
    mask = I32(0)
    for n, offset in enumerate(of_columns):
        is_inside = builder.icmp_unsigned("<", builder.add(column, I32(offset)), width)
        mask = builder.or_(mask, builder.select(is_inside, I32(1 << n), I32(0)))
    mask = builder.select(ok, mask, I32(0))
    for down, start in zip(of_rows, _starts(builder, at, pitch, of_rows)):
        is_inside = builder.icmp_unsigned("<", builder.add(row, I32(down)), height)
        bits = builder.select(is_inside, mask, I32(0))
        address = emit.address_of(builder, pointer, start, element, element, GLOBAL)
        guards = {offset: builder.and_(bits, I32(1 << n)) for n, offset in enumerate(of_columns)}
        yield down, {offset: emit.read_if(builder, address, offset, guard, source.dtype)
                     for offset, guard in guards.items()}  # fmt: skip


def make_gradient(dtype, rows, columns, kernel, channels):
    """(begin, add_products) of the sums of all taps of a slice of a `kernel`.

    add_products(tile, source, at, pitch, place, sizes, ok, y, at_y, y_step, y_pitch, count)
        tile[channel, tap] += y * source for the first `count` rows of a tile of y, from y[at_y] on, whose columns all
        exist, and for its channels, `y_step` apart; the rest as in `make_strip`.
    """
    of_rows, of_columns, across, taps = meets(rows), meets(columns), kernel[2], kernel[1] * kernel[2]

    def add_twin(tile, source, at, pitch, place, sizes, ok, y, at_y, y_step, y_pitch, count):
        tile = list(tile)
        for a, b in np.ndindex(min(count, len(rows)), len(columns)):
            for m, (down, r), (right, s) in product(range(channels), rows[a], columns[b]):
                value = pixel_of(source, at, pitch, place, sizes, ok, down, right)
                tile[m * taps + r * across + s] += load(y, at_y + m * y_step + a * y_pitch + b) * value
        return tuple(tile)

    @paired(lambda: (0,) * (channels * taps))
    def begin(typing):
        tile = types.UniTuple(getattr(types, dtype), channels * taps)
        return tile(), lambda context, builder, signature, values: context.get_constant_null(tile)

    @paired(add_twin)
    def add_products(typing, tile, source, at, pitch, place, sizes, ok, y, at_y, y_step, y_pitch, count):
        def codegen(context, builder, signature, values):
            parts, (y, at_y, y_step, y_pitch, count) = cgutils.unpack_tuple(builder, values[0]), values[-5:]
            patch = dict(_rows_of(builder, source, values[1:-5], of_rows, of_columns))
            element, of_y = emit.element_of(y_type), {}
            for m in range(channels):
                first = builder.add(at_y, builder.mul(y_step, I64(m)))
                for a, start in enumerate(_starts(builder, first, y_pitch, range(len(rows)))):
                    bits = builder.zext(builder.icmp_signed("<", I32(a), count), I32)
                    address = emit.address_of(builder, y, start, element, element, GLOBAL)
                    for b in range(len(columns)):
                        of_y[m, a, b] = emit.read_if(builder, address, b, bits, y_type)
            for a, row in enumerate(rows):
                # a row that is not there would make NaN of zero times what only others meet
                before, kept = list(parts), builder.block
                with builder.if_then(builder.icmp_signed("<", I32(a), count)):
                    for m, (down, r), (b, found) in product(range(channels), row, enumerate(columns)):
                        for right, s in found:
                            n = m * taps + r * across + s
                            parts[n] = builder.fma(of_y[m, a, b], patch[down][right], parts[n])
                    summed = builder.block
                parts = [_either(builder, (old, kept), (new, summed)) for old, new in zip(before, parts)]
            return context.make_tuple(builder, signature.return_type, parts)

        y_type = y.dtype
        return tile(tile, source, *placed(), y, types.int64, types.int64, types.int32, types.int32), codegen

    return begin, add_products


def _starts(builder, at, pitch, rows):
    """The position of each of some rows, which begin at `at` and lie `pitch` apart, each from the one before."""
    pitch, before = builder.sext(pitch, I64), 0
    for row in rows:
        at, before = builder.add(at, builder.mul(pitch, I64(row - before))), row
        yield at


def _either(builder, *values):
    """The one of (value, block) that the code came from."""
    merged = builder.phi(values[0][0].type)
    for value in values:
        merged.add_incoming(*value)
    return merged
