"""Winograd's F(m x m, R x S): (m+R-1) * (m+S-1) multiplications where a direct sum over R x S taps makes m*m * R*S.

Lavin and Gray, "Fast algorithms for convolutional neural networks", arXiv:1509.09308. With m = 2 the rounding error is
of the direct sum's size, but relative to its 2x2 pixels together, not to each; with m = 4 it is about ten times that.

R and S are the taps of a stencil (`layout.stencil_layout`): all of a kernel's, or, of a strided one's, those that meet
one phase of the source. Along an axis of one tap there are no tiles.
"""

from functools import cache

from numba.extending import register_jitable

from loopconv.loops.compile import named
from loopconv.tiled.linked import ARRAY, TABLE, linked
from loopconv.tiled.simd import (
    pointer,
    prefetch,
    sides,
    tile_add,
    tile_corner,
    tile_gather,
    tile_load,
    tile_load_every,
    tile_outer,
    tile_spill,
    tile_store,
    tile_store_every,
    tile_transform,
    tile_zeros,
)

# How far ahead weights are asked for: 256->256, 14x14, 1.56 -> 1.33 ms with a tile of (12, 2), 1.7 -> 1.5 with (16, 1);
# but 1.41 -> 1.67 with (24, 1).
AHEAD = 2048


@cache
def make_transform(m, R, S, rows, cols, lanes):
    """The transform of stencils of `rows` x `cols` taps, zeros for the others, for all channels of a block.

    Where there are less than R x S, it leaves out what no sum takes (`plans.Lines.ranges`): 128->128 3x3, stride 2,
    0.13 -> 0.11 ms.
    """
    *_, down, across = sides(m, R, S)
    high, wide = down - (rows < R), across - (cols < S)

    @register_jitable
    @named(m, R, S, rows, cols, lanes)
    def transform(w, at, w_row, w_channel, step_r, step_s, C, u, to, step):
        for c in range(C):
            g = tile_gather(w, at + c * w_channel, step_r, step_s, w_row, lanes, lanes, rows, cols)
            g = tile_corner(tile_transform(g, m, R, S, "weight"), high, wide)
            tile_store(g, u, to + c * lanes, across * step, step)

    return transform


@cache
def make_transform_last(m, R, S, lanes):
    """The same for any stencils of a block with fewer rows, which all kinds of them share: 0.1 s each to compile."""
    *_, across = sides(m, R, S)

    @register_jitable
    @named(m, R, S, lanes)
    def transform_last(w, at, here, rows, cols, w_row, w_channel, step_r, step_s, C, u, to, step):
        for c in range(C):
            tile_store(tile_zeros(u, lanes, R, S), u, to + c * lanes, S * step, step)
            for row in range(here):
                first, place = pointer(w, at + c * w_channel + row * w_row), pointer(u, to + c * lanes + row)
                for r in range(rows):
                    for s in range(cols):
                        place[(r * S + s) * step] = first[r * step_r + s * step_s]
            g = tile_load(u, to + c * lanes, S * step, step, lanes, R, S)
            tile_store(tile_transform(g, m, R, S, "weight"), u, to + c * lanes, across * step, step)

    return transform_last


@cache
def make_transform_set(m, R, S, rows, are_whole):
    """The transform of one of the sets of weights; with `are_whole`, all stencils are of R x S taps."""
    fewer_r, fewer_s = (R, S) if are_whole else (max(R - 1, 1), max(S - 1, 1))
    kinds = {(r, s): make_transform(m, R, S, r, s, rows) for r in (R, fewer_r) for s in (S, fewer_s)}
    of_all, of_less, of_low, of_few = (kinds[r, s] for r in (R, fewer_r) for s in (S, fewer_s))
    of_last = make_transform_last(m, R, S, rows)

    @linked(w=ARRAY, plan=TABLE, u=ARRAY)
    @named(m, R, S, rows, are_whole)
    def transform_set(w, plan, where, block, f, c0, c1, u, begin):
        """Write the channels c0 .. c1-1 of set f of a row block to u[begin:] (numbers of a tile, T, C, rows).

        Rows past the last are zeros. The table begins at plan[where], and after its first 8 numbers has for each set
        and each of its T stencils (first tap, steps between rows and columns, how many rows and columns).
        """
        table = pointer(plan, where)
        M, C, w_group, w_row, w_channel, T = table[0], table[1], table[2], table[3], table[4], table[6]
        blocks, step = (M + rows - 1) // rows, T * C * rows
        m0 = block % blocks * rows
        here, first = min(rows, M - m0), block // blocks * w_group + m0 * w_row + c0 * w_channel
        for t in range(T):
            one = 8 + (f * T + t) * 5
            at, step_r, step_s, high, wide = (
                first + table[one], table[one + 1], table[one + 2], table[one + 3], table[one + 4],
            )  # fmt: skip
            to = begin + (t * C + c0) * rows
            if here < rows:
                of_last(w, at, here, high, wide, w_row, w_channel, step_r, step_s, c1 - c0, u, to, step)
            elif are_whole or (high == R and wide == S):
                of_all(w, at, w_row, w_channel, step_r, step_s, c1 - c0, u, to, step)
            elif high == R:
                of_less(w, at, w_row, w_channel, step_r, step_s, c1 - c0, u, to, step)
            elif wide == S:
                of_low(w, at, w_row, w_channel, step_r, step_s, c1 - c0, u, to, step)
            else:
                of_few(w, at, w_row, w_channel, step_r, step_s, c1 - c0, u, to, step)
        return 0

    return transform_set


def make_transform_weights(m, R, S, rows, are_whole):
    """The transform of all weights, for tiles of `rows` rows."""
    *_, down, across = sides(m, R, S)
    transform_set = make_transform_set(m, R, S, rows, are_whole)

    def transform_weights(arrays, scratch, plan, first, last):
        """Write the row blocks first .. last-1 of u (block, set of weights, numbers of a tile, T, C, rows)."""
        w, u = arrays
        C, F, T, together = plan[1], plan[5], plan[6], plan[7]
        for block in range(first, last):
            for c0 in range(0, C, together):
                for f in range(F):
                    begin = (block * F + f) * down * across * T * C * rows
                    transform_set(w, plan, 0, block, f, c0, min(c0 + together, C), u, begin)
        return 0

    return transform_weights


@cache
def make_inputs(m, R, S, lanes):
    """The transform of a part's inputs: tiles of pixels lie side by side in the lanes."""
    _, pixels, down, across = sides(m, R, S)

    @linked(buffer=ARRAY, plan=TABLE, v=ARRAY)
    @named(m, R, S, lanes)
    def inputs(buffer, plan, image, f, start, stop, v, begin):
        """Write the T * C stencils of channels of the tiles start .. stop-1 to v[begin:] (side, side, T, C, tile)."""
        C, T, lines, tiles, channel, row = plan[2], plan[4], plan[5], plan[6], plan[7], plan[8]
        most, v_step, terms, line = plan[15], plan[17], plan[19] + f * T, plan[20] + f * lines * 4
        for tc in range(T * C):
            at = (image * C + tc % C) * channel + plan[terms + tc // C]
            tile = start
            while tile < stop:
                i, j = tile // tiles, tile % tiles
                d = tile_load_every(buffer, at + plan[line + i * 4] + pixels * j, row, pixels, lanes, down, across)
                d = tile_transform(d, m, R, S, "input")
                tile_store(d, v, begin + tc * most + tile - start, across * v_step, v_step)
                tile += min(lanes, tiles - j, stop - tile)
        return 0

    return inputs


@cache
def make_outputs(m, R, S, lanes):
    """The transform of a part's products into results."""
    high, wide, down, across = sides(m, R, S)

    @linked(products=ARRAY, out=ARRAY, bias=ARRAY, plan=TABLE)
    @named(m, R, S, lanes)
    def outputs(products, begin, out, bias, plan, image, f, k0, k1, start, stop, room):
        """Write the channels k0 .. k1-1 of the tiles start .. stop-1, whose products are products[begin:] (side, side,
        channel, tile); `room` is where it may turn a tile. Whether some result is not finite.
        """
        G, M, lines, tiles = plan[0], plan[1], plan[5], plan[6]
        out_image, out_channel, out_row, out_step = plan[9], plan[10], plan[11], plan[12]
        most, step, spread = plan[15], plan[18], 0.0
        n, g = image // G, image % G
        for k in range(k0, k1):
            target = n * out_image + (g * M + k) * out_channel
            tile = start
            while tile < stop:
                line, j = plan[20] + (f * lines + tile // tiles) * 4, tile % tiles
                run = min(lanes, tiles - j, stop - tile)
                at = begin + (k - k0) * most + tile - start
                y = tile_load(products, at, across * step, step, lanes, down, across)
                y = tile_add(tile_transform(y, m, R, S, "output"), bias, g * M + k, 0)
                place, P = target + plan[line + 1], plan[line + 2]
                Q = min(wide * run, plan[line + 3] - wide * j)
                if out_step == 1:
                    spread += tile_store_every(y, out, place + wide * j, out_row, 1, P, Q)
                elif out_step == 2:
                    spread += tile_store_every(y, out, place + 2 * wide * j, out_row, 2, P, Q)
                else:
                    spread += tile_store_every(y, products, room, wide * lanes, 1, P, Q)
                    numbers, to = pointer(products, room), pointer(out, place + wide * j * out_step)
                    for p in range(min(high, P)):
                        for q in range(Q):
                            to[p * out_row + q * out_step] = numbers[p * wide * lanes + q]
                tile += run
        return 1 if spread != 0 else 0

    return outputs


def make_winograd(m, R, S, lanes, rows, cols, is_fused):
    """The kernel with a tile of `rows` result channels x `cols` vectors of tiles of pixels.

    With `is_fused` it transforms the weights too, block by block (`plans.is_weight_of_one_unit`).
    """
    width = cols * lanes
    transform_set = make_transform_set(m, R, S, rows, True) if is_fused else None
    inputs, outputs = make_inputs(m, R, S, lanes), make_outputs(m, R, S, lanes)
    high, wide, down, across = sides(m, R, S)
    size = down * across

    def winograd(arrays, scratch, plan, first, last):
        """Compute the units of work first .. last-1; a unit is (image, group, part of the tiles of pixels, set of
        weights, share of the result channels).

        `most` is the largest part and a vector more, which stores may run over. Tiles lie in lines, for each of which
        the plan has (offset in a channel, first result element, rows of pixels, pixels of a row).

        A thread transforms the inputs that several shares need once: the first number of its scratch says which these
        are. Done before all and by all threads, 256->256, 14x14, took two of them 0.10 to 0.16 ms, and one 0.05.

        Returns whether some result is not finite: then an input was not, or a sum overflowed, and the
        transform has spread that over the tile.
        """
        buffer, weights, out, bias = arrays
        G, M, C, F, T, lines, tiles = plan[0], plan[1], plan[2], plan[3], plan[4], plan[5], plan[6]
        parts, shares, most, group, v_step, step = plan[13], plan[14], plan[15], plan[16], plan[17], plan[18]
        blocks, runs = (M + rows - 1) // rows, (lines * tiles + width - 1) // width
        products = lanes + size * v_step
        apart = products + size * step + lanes
        u, u_block = (scratch, apart + high * wide * lanes) if is_fused else (weights, 0)
        said = 0
        for unit in range(first, last):
            share, f = unit % shares, unit // shares % F
            part, image = unit // (shares * F) % parts, unit // (shares * F * parts)
            g, ranges = image % G, plan[21] + f * size * 2
            start, stop = runs * part // parts * width, min(lines * tiles, runs * (part + 1) // parts * width)
            if shares == 1 or scratch[0] != unit // shares + 1:
                inputs(buffer, plan, image, f, start, stop, scratch, lanes)
                scratch[0] = unit // shares + 1
            block0, block1 = blocks * share // shares, blocks * (share + 1) // shares
            for b0 in range(block0, block1, group):
                b1 = min(b0 + group, block1)
                if is_fused:
                    transform_set(weights, plan, plan[22], g * blocks + b0, f, 0, C, u, u_block)
                # products: (size, rows of these blocks, tiles), each a sum over stencils and channels
                for xi in range(size):
                    t0, t1 = plan[ranges + 2 * xi], plan[ranges + 2 * xi + 1]
                    for j in range(0, stop - start, width):
                        for block in range(b0, b1):
                            acc = tile_zeros(buffer, lanes, rows, cols)
                            i = u_block if is_fused else ((g * blocks + block) * F + f) * size * T * C * rows
                            i += (xi * T + t0) * C * rows
                            b = lanes + xi * v_step + t0 * C * most + j
                            for _ in range((t1 - t0) * C):
                                acc = tile_outer(acc, u, i, 1, scratch, b)
                                if rows <= 16:
                                    prefetch(u, i + AHEAD, 2)
                                i += rows
                                b += most
                            tile_store(acc, scratch, products + xi * step + (block - b0) * rows * most + j, most, lanes)
                m0, m1 = b0 * rows, min(b1 * rows, M)
                said += outputs(scratch, products, out, bias, plan, image, f, m0, m1, start, stop, apart)
        return said

    return winograd


@cache
def make_spread(R, S, name, width, lanes):
    """The transform of some pixels of `width` channels, which lie in blocks (position, channel)."""
    high, wide, down, across = sides(2, R, S)
    rows, cols = (down, across) if name == "input" else (high, wide)

    @register_jitable
    @named(R, S, name, width, lanes)
    def spread(source, position, row, target, at, step):
        """target[at + i*step:] = the i-th of the results, for every channel."""
        for c in range(0, width, lanes):
            d = tile_load(source, position * width + c, row * width, width, lanes, rows, cols)
            tile_store(tile_transform(d, 2, R, S, name), target, at + c, across * step, step)

    return spread


def make_winograd_weight(R, S, lanes, rows, cols, channels, swapped):
    """The weight gradient by F(2x2, RxS), with a tile of `rows` channels of A x `cols` vectors of channels of B.

    A and B are y and x, or, where `swapped`, x and y. Both are packed as for the kernel of outer products, A in blocks
    of `channels`, whose transforms fill vectors.
    """
    width, wide, (*_, down, across) = cols * lanes, sides(2, R, S)[1], sides(2, R, S)
    size = down * across
    of_a, of_b = ("input", "grad") if swapped else ("grad", "input")
    spread_a, spread_b = make_spread(R, S, of_a, channels, lanes), make_spread(R, S, of_b, width, lanes)
    tiles_of_a = (channels + rows - 1) // rows

    def winograd_weight(arrays, scratch, plan, first, last):
        """Compute the units of work first .. last-1; a unit is (group, block of A, block of B, part of the tiles of
        pixels, stencil).

        Each part has a result of its own in `w` (part, group, K, C, taps). `chunk` tiles are transformed, and then
        summed for each of the numbers of a tile, before the next; the scratch has (number, tile, channel) of A and of
        B, and the sums (number, tile of channels). Tables in `plan`: for each line of tiles, where it is in A and in B;
        for each stencil, where it is in A and in B, its first tap, steps of rows and columns, and how many it has. What
        is not finite is spread over the stencil.
        """
        a, b, w = arrays
        N, G, MA, MB, lines, tiles, T = plan[0], plan[1], plan[2], plan[3], plan[4], plan[5], plan[6]
        chunk, parts, a_step, b_step = plan[7], plan[8], plan[9], plan[10]
        w_part, w_group, w_a, w_b = plan[11], plan[12], plan[13], plan[14]
        a_block, a_row, b_block, b_row = plan[15], plan[16], plan[17], plan[18]
        line_table, stencils = pointer(plan, plan[19]), plan[20]
        a_blocks, b_blocks = (MA + channels - 1) // channels, (MB + width - 1) // width
        step, b0, sums = tiles_of_a * rows * width, size * a_step, size * (a_step + b_step)
        # what stencils write lies between each other, so they follow each other; at once, as sums of all of them do not
        # fit into the second-level cache, 256->128 3x3, stride 2, 128x128, took 29 instead of 22 ms
        for unit in range(first, last):
            t, part = unit % T, unit // T % parts
            jb, ja = unit // (T * parts) % b_blocks, unit // (T * parts * b_blocks) % a_blocks
            g, one = unit // (T * parts * b_blocks * a_blocks), pointer(plan, stencils + 7 * t)
            tap, step_r, step_s, taps_r, taps_s = one[2], one[3], one[4], one[5], one[6]
            here_a, here_b = min(channels, MA - ja * channels), min(width, MB - jb * width)
            tile0, stop = N * lines * tiles * part // parts, N * lines * tiles * (part + 1) // parts
            for from_ in range(tile0, stop, chunk):
                here = min(chunk, stop - from_)
                for tile in range(here):
                    line, q = (from_ + tile) // tiles, (from_ + tile) % tiles * wide
                    image, line = line // lines * G + g, line % lines * 2
                    at = (image * a_blocks + ja) * a_block + line_table[line] + q + one[0]
                    spread_a(a, at, a_row, scratch, tile * channels, a_step)
                    at = (image * b_blocks + jb) * b_block + line_table[line + 1] + q + one[1]
                    spread_b(b, at, b_row, scratch, b0 + tile * width, b_step)
                for xi in range(size):
                    # without the last taps the last numbers are nothing
                    if (xi // across == down - 1 and taps_r < R) or (xi % across == across - 1 and taps_s < S):
                        continue
                    to = sums + xi * step
                    for m in range(0, here_a, rows):
                        if from_ == tile0:
                            acc = tile_zeros(a, lanes, rows, cols)
                        else:
                            acc = tile_load(scratch, to, width, lanes, lanes, rows, cols)
                        i, j = xi * a_step + m, b0 + xi * b_step
                        for _ in range(here):
                            acc = tile_outer(acc, scratch, i, 1, scratch, j)
                            i += channels
                            j += width
                        tile_store(acc, scratch, to, width, lanes)
                        to += rows * width
            for m in range(here_a):
                for c in range(0, here_b, lanes):
                    dw = tile_load(scratch, sums + m * width + c, across * step, step, lanes, down, across)
                    numbers = tile_spill(tile_transform(dw, 2, R, S, "weight_grad"))
                    at = part * w_part + g * w_group + (ja * channels + m) * w_a + (jb * width + c) * w_b + tap
                    for i in range(min(lanes, here_b - c)):
                        for r in range(taps_r):
                            for s in range(taps_s):
                                w[at + i * w_b + r * step_r + s * step_s] = numbers[(r * S + s) * lanes + i]
        return 0

    return winograd_weight
