"""Forward and adjoint of groups of one channel: tiles of pixels, each row a row of the image."""

from loopconv.tiled.pack import pack_channel
from loopconv.tiled.simd import pointer, tile_add, tile_axpy, tile_spill, tile_store, tile_zeros


def make_depthwise(lanes, few_lanes, rows, cols):
    """The kernel with a tile of `rows` rows of pixels x `cols` vectors.

    The source is copied by vectors of `few_lanes`, as rows may be short.
    """
    width = cols * lanes

    def depthwise(arrays, scratch, plan, first, last):
        """Compute the units of work first .. last-1; a unit is (image, channel).

        Its channel of the source is copied into the scratch, padded, and stays in the first or second cache.
        """
        x, w, out, bias = arrays
        channels, taps, slice_, row, out_channel, s0, s1, s2, phases = (
            plan[0], plan[1], plan[2], plan[3], plan[4], plan[5], plan[6], plan[7], plan[8],
        )  # fmt: skip
        phase_table, tap_table, weight_table, source = plan[9], plan[10], plan[11], plan[12]
        offset, weight = pointer(plan, tap_table), pointer(plan, weight_table)
        for unit in range(first, last):
            k = unit % channels
            pack_channel(x, scratch, plan, source, unit, 0, few_lanes)
            for phase in range(phases):
                at = phase_table + phase * 6
                t0, t1, Z, P, Q, start = plan[at], plan[at + 1], plan[at + 2], plan[at + 3], plan[at + 4], plan[at + 5]
                # where rows are shorter than a tile, its two vectors overlap
                overlap = cols == 2 and lanes <= Q < width and rows <= P and s2 == 1
                step = Q - lanes if overlap else lanes
                tile_pixels = (cols - 1) * step + lanes
                for z in range(Z):
                    p = 0
                    while p < P:
                        i = max(min(p, P - rows), 0)  # the last tile lies over the one before
                        q = 0
                        while q < Q:
                            j = max(min(q, Q - width), 0)
                            acc = tile_zeros(x, lanes, rows, cols)
                            base = z * slice_ + i * row + j
                            for t in range(t0, t1):
                                acc = tile_axpy(acc, w, k * taps + weight[t], scratch, base + offset[t], row, step)
                            acc = tile_add(acc, bias, k, 0)
                            to = unit * out_channel + start + z * s0 + i * s1 + j * s2
                            if s2 == 1 and i + rows <= P and j + tile_pixels <= Q:
                                tile_store(acc, out, to, s1, step)
                            else:
                                numbers = tile_spill(acc)
                                for m in range(min(rows, P - i)):
                                    target = pointer(out, to + m * s1)
                                    for n in range(min(width, Q - j)):
                                        target[n * s2] = numbers[m * width + n]
                            q += width
                        p += rows
        return 0

    return depthwise
