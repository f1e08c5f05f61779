"""The weight contraction as tiles of dot products along rows of pixels: for few channels, where outer products of
channels would leave lanes empty."""

from loopconv.tiled.simd import tile_dot, tile_spill, tile_zeros


def make_dots(lanes, rows, cols):
    """The kernel with a tile of `rows` channels of y x `cols` taps, each a vector of partial sums."""

    def dots(arrays, scratch, plan, first, last):
        """Compute the units of work first .. last-1; a unit is (group, block of y's channels, channel of x, part).

        Each part of the pixels has a result of its own in `w` (part, group, K, C, taps).
        """
        buffer, y, w = arrays
        N, G, K, C, Z, P, Q, taps, parts = (
            plan[0], plan[1], plan[2], plan[3], plan[4], plan[5], plan[6], plan[7], plan[8],
        )  # fmt: skip
        channel, slice_, row, y_image, y_channel, y_slice, y_row = (
            plan[9], plan[10], plan[11], plan[12], plan[13], plan[14], plan[15],
        )  # fmt: skip
        tap_table = 16
        blocks, lines = (K + rows - 1) // rows, Z * P
        for unit in range(first, last):
            part = unit % parts
            c = unit // parts % C
            k0 = min(unit // (parts * C) % blocks * rows, K - rows)  # the last block overlaps the one before
            g = unit // (parts * C * blocks)
            for tap in range(0, taps, cols):
                t = min(tap, taps - cols)
                acc = tile_zeros(buffer, lanes, rows, cols)
                for line in range(N * lines * part // parts, N * lines * (part + 1) // parts):
                    n, z, p = line // lines, line % lines // P, line % P
                    i = n * y_image + (g * K + k0) * y_channel + z * y_slice + p * y_row
                    j = ((n * G + g) * C + c) * channel + z * slice_ + p * row
                    whole = Q // lanes * lanes
                    for q in range(0, whole, lanes):
                        acc = tile_dot(acc, y, i + q, y_channel, buffer, j + q, plan, tap_table + t, None)
                    if whole < Q:
                        acc = tile_dot(acc, y, i + whole, y_channel, buffer, j + whole, plan, tap_table + t, Q - whole)
                numbers = tile_spill(acc)
                for m in range(rows):
                    for n in range(cols):
                        total = numbers[(m * cols + n) * lanes]
                        for lane in range(1, lanes):
                            total += numbers[(m * cols + n) * lanes + lane]
                        w[(((part * G + g) * K + k0 + m) * C + c) * taps + t + n] = total
        return 0

    return dots
