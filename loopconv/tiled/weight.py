"""The weight contraction as tiles of outer products over pixels."""

from loopconv.tiled.simd import pointer, tile_outer, tile_spill, tile_zeros


def make_weight(lanes, rows, cols):
    """The weight kernel with a tile of `rows` channels of A x `cols` vectors of channels of B.

    A and B are y and x, or x and y: the one whose channels fill vectors better is B. Both are packed as
    (image, group, block of channels, position, channel in the block).
    """
    width = cols * lanes

    def weight(a, b, w, sums, tap_a, tap_b, plan, first, last):
        """Compute the units of work first .. last-1; a unit is (group, block of A, block of B, part of the pixels).

        Each part has a result of its own in `w` (part, group, K, C, taps). `sums` is room for
        taps * rows * width numbers.
        """
        N, G, MA, MB, Z, P, Q, taps, chunk, parts = (
            plan[0], plan[1], plan[2], plan[3], plan[4], plan[5], plan[6], plan[7], plan[8], plan[9],
        )  # fmt: skip
        w_part, w_group, w_a, w_b = plan[10], plan[11], plan[12], plan[13]
        a_block, a_slice, a_row, b_block, b_slice, b_row = plan[14], plan[15], plan[16], plan[17], plan[18], plan[19]
        a_blocks, b_blocks = (MA + rows - 1) // rows, (MB + width - 1) // width
        size = rows * width
        lines = Z * P
        for unit in range(first, last):
            part = unit % parts
            jb = unit // parts % b_blocks
            ja = unit // (parts * b_blocks) % a_blocks
            g = unit // (parts * b_blocks * a_blocks)
            total = pointer(sums, 0)
            for i in range(taps * size):
                total[i] = 0
            stop = N * lines * (part + 1) // parts
            for line0 in range(N * lines * part // parts, stop, chunk):
                for t in range(taps):
                    acc = tile_zeros(a, lanes, rows, cols)
                    n, z, p = line0 // lines, line0 % lines // P, line0 % P
                    for _ in range(line0, min(line0 + chunk, stop)):
                        i = (((n * G + g) * a_blocks + ja) * a_block + z * a_slice + p * a_row + tap_a[t]) * rows
                        j = (((n * G + g) * b_blocks + jb) * b_block + z * b_slice + p * b_row + tap_b[t]) * width
                        for _ in range(Q):
                            acc = tile_outer(acc, a, i, 1, b, j)
                            i += rows
                            j += width
                        p += 1
                        if p == P:
                            p = 0
                            z += 1
                            if z == Z:
                                z = 0
                                n += 1
                    numbers = tile_spill(acc)
                    for i in range(size):
                        total[t * size + i] += numbers[i]
            target = pointer(w, part * w_part + g * w_group + ja * rows * w_a + jb * width * w_b)
            for m in range(min(rows, MA - ja * rows)):
                if w_b == 1:
                    for i in range(min(width, MB - jb * width)):
                        target[m * w_a + i] = total[m * width + i]
                else:
                    for i in range(min(width, MB - jb * width)):
                        for t in range(taps):
                            target[m * w_a + i * w_b + t] = total[t * size + m * width + i]

    return weight
