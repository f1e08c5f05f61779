"""Groups of one channel, in all three contractions: tiles of pixels, or of taps, whose rows are rows of the image."""

from functools import cache

from numba.extending import register_jitable

from loopconv.loops.compile import named
from loopconv.tiled.linked import ARRAY, POINTER, linked
from loopconv.tiled.pack import clear, make_pack_channel, make_refill
from loopconv.tiled.simd import (
    pointer,
    prefetch,
    tile_add,
    tile_beside,
    tile_load,
    tile_meet,
    tile_push,
    tile_slide,
    tile_spill,
    tile_store,
    tile_store_every,
    tile_zeros,
    vector_sum,
)


@cache
def make_summed(lanes, rows, cols):
    @register_jitable(forceinline=True)  # a tile would be returned in memory
    @named(lanes, rows, cols)
    def summed(w, first, w_step, scratch, base, row, step, plan, begin, end):
        """The tile of the sums over all columns of taps; those at plan[begin:end] are (taps, first weight, offset)."""
        acc = tile_zeros(w, lanes, rows, cols)
        for at in range(begin, end, 3):
            i, j = first + plan[at + 1], base + plan[at + 2]
            acc = tile_slide(acc, w, i, w_step, plan[at], scratch, j, row, step)
        return acc

    return summed


@linked(numbers=POINTER, out=ARRAY)
def write(numbers, rows, cols, lanes, out, to, row_step, step, pixel_step, n):
    """Write the first n pixels of all rows of a tile, whose columns are `step` pixels apart, one by one."""
    for m in range(rows):
        for col in range(cols):
            target = pointer(out, to + m * row_step + col * step * pixel_step)
            for lane in range(min(lanes, n - col * step)):
                target[lane * pixel_step] = numbers[(m * cols + col) * lanes + lane]
    return 0


def make_copy(lanes, every, planes):
    """(what copies a channel of the source, whether it leaves the padding to those who call it).

    Zeros that are there stay there for all channels: 1024 channels of 7x7, 3x3, 69 -> 52 us, of which the copy had
    taken 43.
    """
    if every == planes == 1:
        return make_refill(lanes), True
    return make_pack_channel(lanes, every, planes), False


def make_depthwise(lanes, row_lanes, every, planes, rows, cols, F):
    """The kernel with a tile of `rows` rows of pixels x `cols` vectors, for `F` phases of the result at a time.

    The source is copied by vectors of `row_lanes`, as rows may be short. Of two phases pixels alternate in the output;
    their tiles have one column.
    """
    width, (copy_channel, refills) = cols * lanes, make_copy(row_lanes, every, planes)
    summed = make_summed(lanes, rows, cols)

    def depthwise(arrays, scratch, plan, first, last):
        """Compute the units of work first .. last-1; a unit is (image, channel).

        Some channels of the source are copied into the scratch, padded, and stay in the first or second cache.
        """
        x, w, out, bias = arrays
        channels, taps, slice_, row, out_channel, s0, s1, s2, phases = (
            plan[0], plan[1], plan[2], plan[3], plan[4], plan[5], plan[6], plan[7], plan[8],
        )  # fmt: skip
        w_step, is_dense, size, together = plan[9], plan[10], plan[11], plan[12]
        phase_table, column_table, source = plan[13], plan[14], plan[15]
        if refills:
            clear(scratch, 0, together * size, together * size, lanes)
        for unit in range(first, last):
            k, place = unit % channels, (unit - first) % together
            if place == 0:
                for number in range(min(together, last - unit)):
                    copy_channel(x, scratch, plan, source, unit + number, number * size)
            # how far vectors may run over the end of a row: into what is written next
            over = out_channel if is_dense and unit + 1 < last else 0
            for phase in range(0, phases, F):
                at = phase_table + phase * 6
                t0, t1 = column_table + 3 * plan[at], column_table + 3 * plan[at + 1]
                Z, P, Q, start = plan[at + 2], plan[at + 3], plan[at + 4], plan[at + 5]
                # where rows are shorter than two vectors, these overlap
                step = max(0, min(lanes, Q - lanes)) if cols == 2 else lanes
                for z in range(Z):
                    for p in range(0, P, rows):
                        i = min(p, P - rows)  # the last tile lies over the one before
                        for q in range(0, Q, width):
                            j = max(min(q, Q - width), 0)
                            base = place * size + z * slice_ + i * row + j
                            to = unit * out_channel + start + z * s0 + i * s1 + j * s2
                            acc = summed(w, k * taps, w_step, scratch, base, row, step, plan, t0, t1)
                            acc = tile_add(acc, bias, k, 0)
                            if F == 2:
                                t2, pixels = column_table + 3 * plan[at + 7], Q + plan[at + 10]
                                other = summed(w, k * taps, w_step, scratch, base, row, step, plan, t1, t2)
                                pairs = tile_beside(acc, tile_add(other, bias, k, 0))
                                tile_store_every(pairs, out, to, s1, 1, rows, pixels - 2 * j)
                            elif s2 == 1 and (cols - 1) * step + lanes - (Q - j) <= over:
                                tile_store(acc, out, to, s1, step)
                            else:
                                write(tile_spill(acc), rows, cols, lanes, out, to, s1, step, s2, Q - j)
        return 0

    return depthwise


def make_depthwise_weight(lanes, row_lanes, every, planes, taps, cols):
    """The weight gradient of groups of one channel, with a tile of `taps` taps of each of `cols` columns of them.

    A row of y meets as many rows of x as a column has taps, so it stays in registers for all of them, and a vector of x
    that is read serves all taps of a column.
    """
    size, (copy_channel, refills) = taps * cols * lanes, make_copy(row_lanes, every, planes)

    def depthwise_weight(arrays, scratch, plan, first, last):
        """Compute the units of work first .. last-1; a unit is a channel.

        The scratch has the sums of the images before (columns, tile), a padded channel, and some zeros after it. Of the
        columns, `cols` to a tile, the plan has their offsets, and then (taps, first weight). Rows of y above the first
        and below the last are zeros: what is not finite in x would spread, and so would what is beside a row. Whether
        some result is not finite.
        """
        x, y, w = arrays
        N, G, Z, P, Q, all_taps, step, columns = (
            plan[0], plan[1], plan[2], plan[3], plan[4], plan[5], plan[6], plan[7],
        )  # fmt: skip
        slice_, row, y_channel, y_slice, y_row, zeros, reach = (
            plan[8], plan[9], plan[10], plan[11], plan[12], plan[13], plan[14],
        )  # fmt: skip
        offsets, taps_table, source = plan[15], pointer(plan, plan[16]), plan[17]
        copy, spread = columns // cols * size, 0.0
        for i in range(0 if refills else zeros, reach):
            scratch[copy + i] = 0
        for channel in range(first, last):
            for n in range(N):
                copy_channel(x, scratch, plan, source, n * G + channel, copy)
                after = (n + 1) * G + channel if n + 1 < N else channel + 1
                for i in range(0, y_channel, lanes):
                    prefetch(y, after * y_channel + i, 2)
                for column in range(0, columns, cols):
                    total, rows = column // cols * size, tile_zeros(w, lanes, taps, 1)
                    if n == 0:
                        acc = tile_zeros(w, lanes, taps, cols)
                    else:
                        acc = tile_load(scratch, total, cols * lanes, lanes, lanes, taps, cols)
                    for z in range(Z):
                        i, j = (n * G + channel) * y_channel + z * y_slice, copy + z * slice_
                        if taps == 1:
                            for _ in range(P):
                                for q in range(0, Q, lanes):
                                    rows = tile_push(rows, y, i + q, Q - q)
                                    acc = tile_meet(acc, rows, scratch, j + q, plan, offsets + column)
                                i += y_row
                                j += row
                        else:
                            for q in range(0, Q, lanes):
                                rows = tile_zeros(w, lanes, taps, 1)
                                for p in range(P + taps - 1):
                                    rows = tile_push(rows, y, i + q + p * y_row, Q - q if p < P else 0)
                                    acc = tile_meet(acc, rows, scratch, j + q + p * row, plan, offsets + column)
                    tile_store(acc, scratch, total, cols * lanes, lanes)
            for column in range(columns):
                count, to = taps_table[2 * column], channel * all_taps + taps_table[2 * column + 1]
                numbers = pointer(scratch, column // cols * size + column % cols * lanes)
                for r in range(count):
                    total = vector_sum(numbers, r * cols * lanes, lanes)
                    w[to + r * step] = total
                    spread += total * 0
        return 1 if spread != 0 else 0

    return depthwise_weight
