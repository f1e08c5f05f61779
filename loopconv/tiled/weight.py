"""The weight contraction as tiles of outer products over pixels."""

from loopconv.tiled.pack import make_interleave
from loopconv.tiled.simd import pointer, tile_load, tile_outer_at, tile_store, tile_transpose, tile_zeros


def make_weight(lanes, few_lanes, rows, cols):
    """The weight kernel with a tile of `rows` (channel, tap) of A x `cols` vectors of channels of B.

    A and B are source and result of the forward sum, x and y, or of the adjoint, y and x. A lies in planes, which
    serve all taps; what a tile needs of B is interleaved.
    """
    width, size, interleave = cols * lanes, rows * cols * lanes, make_interleave(1, few_lanes)
    turns = cols == 1 and rows % lanes == 0

    # over 100 lines in all: each loop needs what those around it have worked out
    def weight(arrays, scratch, plan, first, last):
        """Compute the units of work first .. last-1; a unit is (group, some blocks of rows, block of B, part of the
        pixels).

        Each part has a result of its own in `w` (part, group, K, C, taps). Pixels are summed piece by piece of a
        row, `chunk` pieces before the next, so that those of B stay in the second-level cache for all rows; the scratch
        has them (pixel, channel), and the sums (row, channel). Tables in `plan`: where each row of a group begins in A,
        and in `w`; and for each block of rows how many there are, and the pixels on three axes, from the first to past
        the last, that they are summed over.
        """
        a, b, w = arrays
        N, a_blocks, MB, Z, P, Q = plan[0], plan[1], plan[2], plan[3], plan[4], plan[5]
        chunk, piece, parts, group = plan[6], plan[7], plan[8], plan[9]
        w_part, w_group, w_b = plan[10], plan[11], plan[12]
        a_image, a_group, a_slice, a_row = plan[13], plan[14], plan[15], plan[16]
        b_image, b_group, b_channel, b_slice = plan[17], plan[18], plan[19], plan[20]
        a_table, w_table, block_table = plan[21], pointer(plan, plan[22]), plan[23]
        b_blocks = (MB + width - 1) // width
        groups, pieces = (a_blocks + group - 1) // group, (Q + piece - 1) // piece
        sums, inside = chunk * piece * width, P * pieces
        if MB % width:  # channels past the last are zeros
            for i in range(sums):
                scratch[i] = 0
        for unit in range(first, last):
            part, jb = unit % parts, unit // parts % b_blocks
            ja0 = unit // (parts * b_blocks) % groups * group
            ja1 = min(ja0 + group, a_blocks)
            g, here = unit // (parts * b_blocks * groups), min(width, MB - jb * width)
            begin, stop = N * Z * inside * part // parts, N * Z * inside * (part + 1) // parts
            for from_ in range(begin, stop, chunk):
                to = min(from_ + chunk, stop)
                line, j = from_, 0
                while line < to:  # the pieces of a slice follow each other
                    n, z, i = line // (Z * inside), line // inside % Z, line % inside
                    line += min(inside - i, to - line)
                    start, end = i // pieces * Q + i % pieces * piece, P * Q
                    if line % inside:
                        end = line % inside // pieces * Q + line % inside % pieces * piece
                    at, count = n * b_image + g * b_group + z * b_slice + start, end - start
                    source = pointer(b, at + jb * width * b_channel)
                    interleave(source, b_channel, count, count, pointer(scratch, j), width, here)
                    j += count * width
                n0, z0 = from_ // (Z * inside), from_ // inside % Z
                p0, q0 = from_ % inside // pieces, from_ % pieces
                for ja in range(ja0, ja1):
                    total = sums + (ja - ja0) * size
                    if from_ == begin:
                        acc = tile_zeros(b, lanes, rows, cols)
                    else:
                        acc = tile_load(scratch, total, width, lanes, lanes, rows, cols)
                    block = pointer(plan, block_table + 7 * ja)
                    z1, z2, p1, p2, q1, q2 = block[1], block[2], block[3], block[4], block[5], block[6]
                    n, z, p, q, there = n0, z0, p0, q0, 0
                    for _ in range(from_, to):
                        start, end = q * piece, min(q * piece + piece, Q)
                        if z1 <= z < z2 and p1 <= p < p2:
                            i = n * a_image + g * a_group + z * a_slice + p * a_row + max(start, q1)
                            j = there + max(0, q1 - start) * width
                            for _ in range(max(start, q1), min(end, q2)):
                                acc = tile_outer_at(acc, a, i, plan, a_table + ja * rows, scratch, j, lanes)
                                i += 1
                                j += width
                        there += (end - start) * width
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
                    tile_store(acc, scratch, total, width, lanes)
            for ja in range(ja0, ja1):
                total = pointer(scratch, sums + (ja - ja0) * size)
                target = pointer(w, part * w_part + g * w_group + jb * width * w_b)
                row, count = pointer(w_table, ja * rows), plan[block_table + 7 * ja]
                if w_b == 1 and here == width:
                    for m in range(count):
                        tile_store(tile_load(total, m * width, 0, lanes, lanes, 1, cols), target, row[m], 0, lanes)
                elif w_b == 1:
                    for m in range(count):
                        for i in range(here):
                            target[row[m] + i] = total[m * width + i]
                elif turns and count == rows and here == width and row[count - 1] == row[0] + count - 1:
                    sums_of_rows = tile_load(total, 0, width, lanes, lanes, rows, cols)
                    tile_store(tile_transpose(sums_of_rows), target, row[0], w_b, lanes)
                elif row[count - 1] == row[0] + count - 1:
                    for i in range(here):
                        for m in range(count):
                            target[row[0] + i * w_b + m] = total[m * width + i]
                else:
                    for m in range(count):
                        for i in range(here):
                            target[row[m] + i * w_b] = total[m * width + i]
        return 0

    return weight


# Elements whose parts are added up together, so that they are written once.
SUMS = 1024


def add_up(arrays, scratch, plan, first, last):
    """w = the sum over the parts, one after the other, of partial (parts, elements of w)."""
    partial, w = arrays
    parts, size = plan[0], plan[1]
    for begin in range(first, last, SUMS):
        target, count = pointer(w, begin), min(SUMS, last - begin)
        for part in range(parts):
            source = pointer(partial, part * size + begin)
            if part == 0:
                for i in range(count):
                    target[i] = source[i]
            else:
                for i in range(count):
                    target[i] += source[i]
    return 0


def make_add_up():
    return add_up
