"""Forward and adjoint over flattened buffers: one kernel for every stride, dilation, rank and phase."""

from loopconv.tiled.simd import pointer, tile_outer, tile_spill, tile_zeros


def make_direct(lanes, rows, cols):
    """The direct kernel with a tile of `rows` result channels x `cols` vectors of pixels."""
    width = cols * lanes

    def direct(buffer, w, out, bias, results, tap_offset, plan, first, last):
        """Compute the units of work first .. last-1; a unit is (image, group, result phase, pixels, channels)."""
        G, M, C, taps, channel, slice_, row = plan[0], plan[1], plan[2], plan[3], plan[4], plan[5], plan[6]
        out_image, out_channel, s0, s1, s2, parts, blocks, in_place = (
            plan[7], plan[8], plan[9], plan[10], plan[11], plan[12], plan[13], plan[14],
        )  # fmt: skip
        phases, row_blocks = results.shape[0], (M + rows - 1) // rows
        for unit in range(first, last):
            block = unit % blocks
            part = unit // blocks % parts
            phase = unit // (blocks * parts) % phases
            n = unit // (blocks * parts * phases * G)
            g = unit // (blocks * parts * phases) % G
            t0, t1, P, Q, start, flat = (
                results[phase, 0], results[phase, 1], results[phase, 3], results[phase, 4], results[phase, 5],
                results[phase, 6],
            )  # fmt: skip
            tiles = (flat + width - 1) // width
            for tile in range(tiles * part // parts, tiles * (part + 1) // parts):
                # where the array itself is the buffer, the last tile ends with it, over the one before
                j = min(tile * width, flat - width) if in_place else tile * width
                for r in range(row_blocks * block // blocks, row_blocks * (block + 1) // blocks):
                    # the sum over channels and taps; w holds its factors in this order
                    acc = tile_zeros(buffer, lanes, rows, cols)
                    i = ((g * row_blocks + r) * taps + t0) * C * rows
                    for c in range(C):
                        b = ((n * G + g) * C + c) * channel + j
                        for t in range(t0, t1):
                            acc = tile_outer(acc, w, i, 1, buffer, b + tap_offset[t])
                            i += rows
                    # the tile's pixels, row by row of the result, without the gaps
                    numbers = tile_spill(acc)
                    m0 = g * M + r * rows
                    here = min(rows, M - r * rows)
                    z, p, q = j // slice_, j % slice_ // row, j % row
                    f, end = 0, min(width, flat - j)
                    while f < end:
                        run = min(row - q, end - f)
                        if p < P and q < Q:
                            target = pointer(out, n * out_image + m0 * out_channel + start + z * s0 + p * s1 + q * s2)
                            for m in range(here):
                                add = bias[m0 + m]
                                if s2 == 1:
                                    for i in range(min(Q - q, run)):
                                        target[m * out_channel + i] = numbers[m * width + f + i] + add
                                else:
                                    for i in range(min(Q - q, run)):
                                        target[m * out_channel + i * s2] = numbers[m * width + f + i] + add
                        f += run
                        q = 0
                        p += 1
                        if p * row == slice_:
                            p = 0
                            z += 1

    return direct
