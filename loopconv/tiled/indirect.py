"""Forward and adjoint with result channels in vectors: pixels are found by a table, wherever they are.

As in M. Dukhan, "The Indirect Convolution Algorithm", arXiv:1907.02129, whose table has a pointer for each tap of each
pixel; here a tap is an offset, so one position for each pixel will do, and tiles are of any pixels with the same taps.
"""

from functools import cache

from loopconv.loops.compile import named
from loopconv.tiled.linked import ARRAY, TABLE, linked
from loopconv.tiled.simd import (
    pointer,
    prefetch,
    tile_add,
    tile_load,
    tile_load_at,
    tile_outer_at,
    tile_spill,
    tile_store,
    tile_store_every,
    tile_transpose,
    tile_zeros,
)

# How many steps ahead weights, and pixels, are asked for.
STEPS_AHEAD = 32


@cache
def make_write_pixels(lanes):
    @linked(scratch=ARRAY, plan=TABLE, out=ARRAY, bias=ARRAY)
    @named(lanes)
    def write_pixels(scratch, plan, places, start, stop, out, to, channel, bias, m0, m1):
        """Write channels m0 .. m1-1 of the pixels start .. stop-1, which follow each other in the result.

        The sums of each pixel are in the scratch at one of the `places`, channel by channel; here they are turned. The
        last vector of pixels, and of channels, lies over the one before.
        """
        for c in range(m0, m1, lanes):
            m = max(m0, min(c, m1 - lanes))
            for pixel in range(start, stop, lanes):
                i = max(start, min(pixel, stop - lanes))
                sums = tile_transpose(tile_load_at(scratch, m - m0, plan, places + i, lanes, lanes))
                if m1 - m0 >= lanes:
                    sums = tile_add(sums, bias, m, 1)
                    tile_store_every(sums, out, to + m * channel + i, channel, 1, lanes, stop - start)
                else:
                    numbers = tile_spill(sums)
                    for k in range(m1 - m0):
                        for j in range(min(lanes, stop - i)):
                            out[to + (m + k) * channel + i + j] = numbers[k * lanes + j] + bias[m + k]
        return 0

    return write_pixels


def make_indirect(lanes, rows, cols, is_far):
    """The indirect kernel with a tile of `rows` pixels x `cols` vectors of result channels.

    Where the source is far, its pixels are asked for too: 128->256 2x2, stride 2, 112x112, 9.0 -> 7.6 ms; but 512->1024
    1x1, stride 2, 28x28, 2.1 -> 2.3.
    """
    width, write_pixels = cols * lanes, make_write_pixels(lanes)

    def indirect(arrays, scratch, plan, first, last):
        """Compute the units of work first .. last-1; a unit is (image, group, share of the blocks of result channels,
        part of the result's pixels).

        The pixels of a tile have the same taps, and are any of the part's. Their sums are in the scratch (pixel,
        channel) until all are there. `arrays` are the buffer, the packed weights, the result and the bias; panels.py
        has the tables in `plan`.
        """
        buffer, w, out, bias = arrays
        G, M, C, column, channel, chunk, pitch = plan[0], plan[1], plan[2], plan[3], plan[4], plan[5], plan[6]
        out_image, out_channel, parts, shares, size, pixels = plan[7], plan[8], plan[9], plan[10], plan[11], plan[12]
        part_table, tile_table, pixel_table, place_table, run_table, offset_table = (
            plan[13], plan[14], plan[15], plan[16], plan[17], plan[18],
        )  # fmt: skip
        blocks = (M + width - 1) // width
        for unit in range(first, last):
            part, share = unit % parts, unit // parts % shares
            g, image = unit // (shares * parts) % G, unit // (shares * parts * G)
            tile0, tile1 = plan[part_table + 2 * part], plan[part_table + 2 * part + 2]
            r0, r1 = blocks * share // shares, blocks * (share + 1) // shares
            for c0 in range(0, C, chunk):
                base = ((image * G + g) * C + c0) * channel
                for tile in range(tile0, tile1):
                    first_step, tile_taps, w_channel = (
                        plan[tile_table + 3 * tile], plan[tile_table + 3 * tile + 1], plan[tile_table + 3 * tile + 2],
                    )  # fmt: skip
                    offsets, steps = pointer(plan, offset_table + first_step), (min(c0 + chunk, C) - c0) * tile_taps
                    for r in range(r0, r1):
                        sums = (tile - tile0) * rows * pitch + (r - r0) * width
                        if c0 == 0:
                            acc = tile_zeros(buffer, lanes, rows, cols)
                        else:
                            acc = tile_load(scratch, sums, pitch, lanes, lanes, rows, cols)
                        i = (g * blocks + r) * cols * column + c0 * w_channel
                        for step in range(0, 2 * steps, 2):
                            offset, weight = base + offsets[step], i + offsets[step + 1]
                            acc = tile_outer_at(acc, buffer, offset, plan, pixel_table + tile * rows, w, weight, column)
                            ahead = i + offsets[step + 2 * STEPS_AHEAD + 1]
                            for n in range(cols):
                                prefetch(w, ahead + n * column, 1)
                            if is_far:
                                ahead, pixel = base + offsets[step + 2 * STEPS_AHEAD], pixel_table + tile * rows
                                prefetch(buffer, ahead + plan[pixel], 1)
                                prefetch(buffer, ahead + plan[pixel + rows - 1], 1)
                        tile_store(acc, scratch, sums, pitch, lanes)
            m0, m1 = g * M + r0 * width, g * M + min(r1 * width, M)
            begin, end = part * size, min((part + 1) * size, pixels)
            run = run_table + plan[part_table + 2 * part + 1] * 3
            while plan[run] < end:
                start, stop = max(plan[run], begin), min(plan[run] + plan[run + 1], end)
                to = image * out_image + plan[run + 2] - plan[run]
                write_pixels(scratch, plan, place_table, start, stop, out, to, out_channel, bias, m0, m1)
                run += 3
        return 0

    return indirect
