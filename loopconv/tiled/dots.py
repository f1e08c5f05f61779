"""The weight contraction as tiles of dot products along rows of pixels: for few channels, where outer products of
channels would leave lanes empty."""

from loopconv.tiled.pack import make_pack_channel
from loopconv.tiled.simd import pointer, tile_dot, tile_load, tile_store, tile_zeros, vector_sum


def make_dots(lanes, few_lanes, every, planes, rows, cols, own):
    """The kernel with a tile of `rows` channels of y x up to `cols` taps, each a vector of partial sums.

    Where each channel of x serves one unit only, this makes its `own` padded copy, which stays in the second-level
    cache; else x may be such copies.
    """
    size, pack_channel = rows * cols * lanes, make_pack_channel(few_lanes, every, planes) if own else None

    def dots(arrays, scratch, plan, first, last):
        """Compute the units of work first .. last-1; a unit is (group, block of y's channels, channel of x, part).

        Each part of the pixels has a result of its own in `w` (part, group, K, C, taps). The scratch has the sums of
        the images before (tile of taps, tile), and a channel.
        """
        x, y, w = arrays
        N, G, K, C, Z, P, Q, taps, parts = (
            plan[0], plan[1], plan[2], plan[3], plan[4], plan[5], plan[6], plan[7], plan[8],
        )  # fmt: skip
        channel, slice_, row, y_image, y_channel, y_slice, y_row = (
            plan[9], plan[10], plan[11], plan[12], plan[13], plan[14], plan[15],
        )  # fmt: skip
        tap_table, source = plan[16], plan[17]
        blocks, lines, whole = (K + rows - 1) // rows, Z * P, Q // lanes * lanes
        copy = (taps + cols - 1) // cols * size
        for unit in range(first, last):
            part, c = unit % parts, unit // parts % C
            k0 = min(unit // (parts * C) % blocks * rows, K - rows)  # the last block overlaps the one before
            g = unit // (parts * C * blocks)
            begin, end = N * lines * part // parts, N * lines * (part + 1) // parts
            line = begin
            while line < end:
                n = line // lines
                stop = min(end, (n + 1) * lines)
                first_z, first_p = line // P % Z, line % P
                if own:
                    pack_channel(x, scratch, plan, source, (n * G + g) * C + c, copy)
                    plane = pointer(scratch, copy)
                else:
                    plane = pointer(x, ((n * G + g) * C + c) * channel)
                for tap in range(0, taps, cols):
                    t, total = tap_table + max(0, min(tap, taps - cols)), tap // cols * size
                    if line == begin:
                        acc = tile_zeros(w, lanes, rows, cols)
                    else:
                        acc = tile_load(scratch, total, cols * lanes, lanes, lanes, rows, cols)
                    z, p = first_z, first_p
                    for _ in range(line, stop):
                        i = n * y_image + (g * K + k0) * y_channel + z * y_slice + p * y_row
                        j = z * slice_ + p * row
                        for q in range(0, whole, lanes):
                            acc = tile_dot(acc, y, i + q, y_channel, plane, j + q, plan, t, None)
                        if whole < Q:
                            acc = tile_dot(acc, y, i + whole, y_channel, plane, j + whole, plan, t, Q - whole)
                        p += 1
                        if p == P:
                            z, p = z + 1, 0
                    tile_store(acc, scratch, total, cols * lanes, lanes)
                line = stop
            for tap in range(0, taps, cols):
                numbers, t = pointer(scratch, tap // cols * size), max(0, min(tap, taps - cols))
                for m in range(rows):
                    for n in range(min(cols, taps)):
                        total = vector_sum(numbers, (m * cols + n) * lanes, lanes)
                        w[(((part * G + g) * K + k0 + m) * C + c) * taps + t + n] = total
        return 0

    return dots
