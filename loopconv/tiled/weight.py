"""The weight contraction as tiles of outer products over pixels."""

from loopconv.tiled.simd import pointer, tile_load, tile_outer, tile_store, tile_zeros


def make_weight(lanes, rows, cols):
    """The weight kernel with a tile of `rows` channels of A x `cols` vectors of channels of B.

    A and B are y and x, or x and y: the one whose channels fill vectors better is B. Both are packed as
    (image, group, block of channels, position, channel in the block).
    """
    width, size = cols * lanes, rows * cols * lanes

    def weight(arrays, scratch, plan, first, last):
        """Compute the units of work first .. last-1; a unit is (group, some blocks of A, block of B, part of the
        pixels).

        Each part has a result of its own in `w` (part, group, K, C, taps). Pixels are summed piece by piece of a
        row, `chunk` pieces before the next tap, so that they stay in the first-level cache for all taps and
        all blocks of A; meanwhile the scratch has the sums (block of A, tap, tile).
        """
        a, b, w = arrays
        N, G, MA, MB, Z, P, Q, taps = plan[0], plan[1], plan[2], plan[3], plan[4], plan[5], plan[6], plan[7]
        chunk, piece, parts, group = plan[8], plan[9], plan[10], plan[11]
        w_part, w_group, w_a, w_b = plan[12], plan[13], plan[14], plan[15]
        a_block, a_slice, a_row, b_block, b_slice, b_row = plan[16], plan[17], plan[18], plan[19], plan[20], plan[21]
        tap_a, tap_b = pointer(plan, plan[22]), pointer(plan, plan[22] + taps)
        a_blocks, b_blocks = (MA + rows - 1) // rows, (MB + width - 1) // width
        groups, pieces = (a_blocks + group - 1) // group, (Q + piece - 1) // piece
        lines = Z * P * pieces
        for unit in range(first, last):
            part, jb = unit % parts, unit // parts % b_blocks
            ja0 = unit // (parts * b_blocks) % groups * group
            ja1 = min(ja0 + group, a_blocks)
            g = unit // (parts * b_blocks * groups)
            line0, stop = N * lines * part // parts, N * lines * (part + 1) // parts
            for from_ in range(line0, stop, chunk):
                for ja in range(ja0, ja1):
                    for t in range(taps):
                        at = ((ja - ja0) * taps + t) * size
                        if from_ == line0:
                            acc = tile_zeros(a, lanes, rows, cols)
                        else:
                            acc = tile_load(scratch, at, width, lanes, lanes, rows, cols)
                        n, z, p, q = from_ // lines, from_ % lines // (P * pieces), from_ // pieces % P, from_ % pieces
                        for _ in range(from_, min(from_ + chunk, stop)):
                            i = ((n * G + g) * a_blocks + ja) * a_block + z * a_slice + p * a_row + tap_a[t]
                            j = ((n * G + g) * b_blocks + jb) * b_block + z * b_slice + p * b_row + tap_b[t]
                            i, j = (i + q * piece) * rows, (j + q * piece) * width
                            for _ in range(min(piece, Q - q * piece)):
                                acc = tile_outer(acc, a, i, 1, b, j)
                                i += rows
                                j += width
                            q += 1
                            if q == pieces:
                                q = 0
                                p += 1
                                if p == P:
                                    p = 0
                                    z += 1
                                    if z == Z:
                                        z = 0
                                        n += 1
                        tile_store(acc, scratch, at, width, lanes)
            for ja in range(ja0, ja1):
                total = pointer(scratch, (ja - ja0) * taps * size)
                target = pointer(w, part * w_part + g * w_group + ja * rows * w_a + jb * width * w_b)
                for m in range(min(rows, MA - ja * rows)):
                    if w_b == 1:
                        for i in range(min(width, MB - jb * width)):
                            target[m * w_a + i] = total[m * width + i]
                    else:
                        for i in range(min(width, MB - jb * width)):
                            for t in range(taps):
                                target[m * w_a + i * w_b + t] = total[t * size + m * width + i]
        return 0

    return weight


def add_up(arrays, scratch, plan, first, last):
    """w = the sum over the parts, one after the other, of partial (parts, elements of w)."""
    partial, w = arrays
    parts, size = plan[0], plan[1]
    for part in range(parts):
        for i in range(first, last):
            w[i] = partial[part * size + i] if part == 0 else w[i] + partial[part * size + i]
    return 0


def make_add_up():
    return add_up
