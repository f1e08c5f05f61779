"""Winograd's F(2x2, 3x3): 16 multiplications where a direct sum over 3x3 taps makes 36.

Lavin and Gray, "Fast algorithms for convolutional neural networks", arXiv:1509.09308. Its rounding error is
of the direct sum's size, but relative to its 2x2 pixels together, not to each.
"""

from loopconv.tiled.simd import (
    tile_add,
    tile_load,
    tile_load_pairs,
    tile_outer,
    tile_store,
    tile_store_pairs,
    tile_transform,
    tile_zeros,
)


def make_transform_weights(rows):
    """The transform of weights packed for tiles of `rows` rows."""

    def transform_weights(packed, u, C, T, step_t, step_r, step_s, first, last):
        """u (block, 16, T, C, rows) from packed (block, C, T x 3 x 3 taps, rows).

        Taps are read in these steps from the first on, or from the last where the steps are negative.
        """
        for block in range(first, last):
            for t in range(T):
                for c in range(C):
                    at = (block * C + c) * T * 9 * rows + t * step_t
                    if step_t < 0:
                        at += (T * 9 - 1) * rows
                    g = tile_load(packed, at, step_r, step_s, rows, 3, 3)
                    at = (block * 16 * T * C + t * C + c) * rows
                    tile_store(tile_transform(g, "weight"), u, at, 4 * T * C * rows, T * C * rows)

    return transform_weights


def make_winograd(lanes, rows, cols):
    """The kernel with a tile of `rows` result channels x `cols` vectors of 2x2 pixels."""
    width = cols * lanes

    def winograd(buffer, u, out, bias, scratch, plan, first, last):
        """Compute the units of work first .. last-1; a unit is (image, group, slice, part of its 2x2 tiles, part of
        the result channels). `most` is the largest part and a vector more, which stores may run over.

        Returns whether some result is not finite: then an input was not, or a sum overflowed, and the
        transform has spread that over 2x2 pixels.
        """
        G, M, C, Z, P, Q = plan[0], plan[1], plan[2], plan[3], plan[4], plan[5]
        channel, slice_, row, offset = plan[6], plan[7], plan[8], plan[9]
        out_image, out_channel, out_slice, parts, splits, most = (
            plan[10], plan[11], plan[12], plan[13], plan[14], plan[15],
        )  # fmt: skip
        T, step_t = plan[16], plan[17]
        blocks = (M + rows - 1) // rows
        across = (Q + 1) // 2
        tiles = (P + 1) // 2 * across
        runs = (tiles + width - 1) // width
        v, products = 0, 16 * T * C * most + lanes
        spread = 0.0
        for unit in range(first, last):
            split = unit % splits
            part = unit // splits % parts
            z = unit // (splits * parts) % Z
            n, g = unit // (splits * parts * Z * G), unit // (splits * parts * Z) % G
            start, stop = runs * part // parts * width, min(tiles, runs * (part + 1) // parts * width)
            # inputs: v (16, T, C, tiles of this unit)
            for tc in range(T * C):
                at = ((n * G + g) * C + tc % C) * channel + offset + z * slice_ + tc // C * step_t
                tile = start
                while tile < stop:
                    i, j = tile // across, tile % across
                    d = tile_load_pairs(buffer, at + 2 * i * row + 2 * j, row, lanes, 4, 4)
                    d = tile_transform(d, "input")
                    tile_store(d, scratch, v + tc * most + tile - start, 4 * T * C * most, T * C * most)
                    tile += min(lanes, across - j, stop - tile)
            for block in range(blocks * split // splits, blocks * (split + 1) // splits):
                # products: (16, rows, tiles), each a sum over channels, and in three dimensions over slices
                for xi in range(16):
                    for j in range(0, stop - start, width):
                        acc = tile_zeros(buffer, lanes, rows, cols)
                        i = ((g * blocks + block) * 16 + xi) * T * C * rows
                        b = v + xi * T * C * most + j
                        for _ in range(T * C):
                            acc = tile_outer(acc, u, i, 1, scratch, b)
                            i += rows
                            b += most
                        tile_store(acc, scratch, products + xi * rows * most + j, most, lanes)
                # results
                first_out = n * out_image + (g * M + block * rows) * out_channel + z * out_slice
                for m in range(min(rows, M - block * rows)):
                    tile = start
                    while tile < stop:
                        i, j = tile // across, tile % across
                        run = min(lanes, across - j, stop - tile)
                        at = products + m * most + tile - start
                        y = tile_load(scratch, at, 4 * rows * most, rows * most, lanes, 4, 4)
                        y = tile_add(tile_transform(y, "output"), bias, g * M + block * rows + m)
                        target = first_out + m * out_channel + 2 * i * Q + 2 * j
                        spread += tile_store_pairs(y, out, target, Q, P - 2 * i, min(2 * run, Q - 2 * j))
                        tile += run
        return spread != 0

    return winograd
